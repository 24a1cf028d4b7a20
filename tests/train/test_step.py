"""The step: golden metrics, and what must not change them: microbatches, devices, packing, a step that is not finite."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbert.config import MeshConfig, ModelConfig, OptimizerConfig
from jaxbert.model import dense, layout
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.optimizer import make_optimizer, make_schedule
from jaxbert.train.sharding import make_mesh, path_name, put_batch, unbox
from jaxbert.train.state import abstract_state
from jaxbert.train.step import make_eval_step, make_train_step, split_rows, train_step

VOCABULARY, LENGTH, PREDICTIONS = 200, 16, 3
TINY = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
)
DRY = dataclasses.replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)
# The layers lie on an axis of their own, which one block would hide.
SCANNED = dataclasses.replace(DRY, num_layers=2, scan_layers=True)
ONE = (1, 1, 1)
# Rates 0, 0.005, 0.01, 0.005, 0, counted in updates.
SCHEDULED = {"warmup_steps": 2, "schedule": "linear", "num_steps": 5, "weight_decay": 0.0}


def make_batch(rows=16, seed=0):
    """Rows of one sequence each, with ragged lengths and numbers of targets; the first four have no NSP label."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(6, LENGTH + 1, size=(rows, 1))
    real = np.arange(LENGTH)[None, :] < lengths
    positions = np.broadcast_to(np.arange(LENGTH), (rows, LENGTH))
    targets = np.arange(PREDICTIONS)[None, :] < generator.integers(0, PREDICTIONS + 1, size=(rows, 1))
    integers = {
        "input_ids": generator.integers(5, VOCABULARY, size=(rows, LENGTH)) * real,
        "token_type_ids": (positions >= lengths // 2) * real,
        "sequence_ids": real,
        "position_ids": positions * real,
        "mlm_positions": generator.integers(1, 6, size=(rows, PREDICTIONS)) * targets,
        "mlm_labels": generator.integers(5, VOCABULARY, size=(rows, PREDICTIONS)) * targets,
        "cls_positions": np.zeros((rows, 1)),
        "nsp_labels": generator.integers(0, 2, size=(rows, 1)),
    }
    floats = {"mlm_weights": targets, "nsp_weights": np.arange(rows)[:, None] >= 4}
    return {name: values.astype(np.int32) for name, values in integers.items()} | {
        name: values.astype(np.float32) for name, values in floats.items()
    }


@functools.cache
def initial_parameters(model):
    """Parameters as numpy arrays. `test_sharding.py` shows that they are the same on every mesh."""
    return jax.tree.map(np.asarray, unbox(jax.jit(PretrainingTask(model).init)(jax.random.key(0))))


@functools.cache
def compiled(model, mesh, accumulation_steps, num_steps, **optimizer):
    """Mesh, task, abstract state and step: compiling is nearly all the time that these tests take."""
    config = OptimizerConfig(**{"peak_learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant", **optimizer})
    mesh = make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])
    task = PretrainingTask(model)
    optimizer = make_optimizer(config, num_steps, jax.eval_shape(task.init, jax.random.key(0)))
    abstract = abstract_state(task, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    schedule = make_schedule(config, num_steps)
    step = make_train_step(task, optimizer, schedule, shardings, mesh, seed=0, accumulation_steps=accumulation_steps)
    return mesh, task, abstract, shardings, step


class Run:
    """A tiny run on a mesh, from step 0; runs of the same settings share the compiled step."""

    def __init__(self, model=TINY, mesh=ONE, accumulation_steps=1, num_steps=40, **optimizer):
        self.mesh, self.task, abstract, self.shardings, self.step = compiled(
            model, mesh, accumulation_steps, num_steps, **optimizer
        )
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        self.state = jax.device_put(zeros.replace(params=initial_parameters(model)), self.shardings)

    def take(self, batch):
        """One step; metrics as numpy."""
        self.state, metrics = self.step(self.state, put_batch(batch, self.mesh))
        return jax.tree.map(np.asarray, metrics)


@functools.cache
def two_steps(model=TINY, mesh=ONE, accumulation_steps=1):
    """Metrics of two steps and the parameters after them."""
    run = Run(model, mesh, accumulation_steps)
    metrics = [run.take(make_batch(seed=seed)) for seed in range(2)]
    return metrics, jax.tree.map(np.asarray, run.state.params)


def assert_close(left, right, tolerance):
    for (path, ours), other in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, atol=tolerance, rtol=tolerance, err_msg=path_name(path))


def test_golden_metrics_of_one_step():
    """Renew the figures when model, initialisation, dropout or loss change on purpose, and say so in the commit.

    A change of the optimizer, the mesh or the accumulation must not move them.
    """
    metrics = two_steps()[0][0]
    golden = {"loss": 6.0043458, "grad_norm": 2.1070429, "learning_rate": 1e-2, "nonfinite": 0, "tokens": 177}
    assert {name: float(metrics[name]) for name in golden} == pytest.approx(golden, rel=1e-5)
    sums = {
        "mlm_loss": (153.95865, 29.0),
        "mlm_accuracy": (0.0, 29.0),
        "nsp_loss": (8.3451242, 12.0),
        "nsp_accuracy": (3.0, 12.0),
    }
    for name, expected in sums.items():
        assert tuple(map(float, metrics[name])) == pytest.approx(expected, rel=1e-5), name
    assert set(metrics) == set(golden) | set(sums)


def test_loss_is_the_sum_of_means_over_the_batch():
    metrics, batch = two_steps()[0][0], make_batch()
    assert float(metrics["mlm_loss"][1]) == batch["mlm_weights"].sum()
    assert float(metrics["nsp_loss"][1]) == batch["nsp_weights"].sum() == 12
    assert int(metrics["tokens"]) == (batch["sequence_ids"] > 0).sum()
    means = [metrics[name][0] / metrics[name][1] for name in ("mlm_loss", "nsp_loss")]
    assert float(metrics["loss"]) == pytest.approx(sum(means), rel=1e-6)


@pytest.mark.parametrize(("mesh", "accumulation_steps"), [(ONE, 2), (ONE, 4), ((8, 1, 1), 2), ((2, 2, 2), 2)])
def test_accumulation_changes_nothing(mesh, accumulation_steps):
    """With ragged weights: the mean of the microbatches' means would be another number."""
    metrics, params = two_steps(DRY)
    accumulated, accumulated_params = two_steps(DRY, mesh, accumulation_steps)
    assert_close(accumulated, metrics, 2e-5)
    assert_close(accumulated_params, params, 1e-4)


def test_microbatches_draw_different_dropout():
    """The same rows in both microbatches: equal masks would give twice the loss of either one."""
    half = make_batch(8)
    # Microbatch a of 2 takes the rows a, a + 2, ...: repeated rows make the two alike.
    batch = {name: np.repeat(values, 2, axis=0) for name, values in half.items()}
    total = Run(accumulation_steps=2).take(batch)["mlm_loss"]
    forward = jax.jit(lambda key: PretrainingTask(TINY).forward(initial_parameters(TINY), half, key)["mlm_loss"])
    step_key = jax.random.fold_in(jax.random.key(0), 0)
    parts = [forward(jax.random.fold_in(step_key, number)) for number in range(2)]
    assert abs(float(parts[0][0] - parts[1][0])) > 1e-3
    assert_close(total, jax.tree.map(jnp.add, *parts), 1e-5)


def test_every_step_draws_different_dropout():
    losses = []
    for number in range(2):
        run = Run()
        run.state = run.state.replace(step=jax.device_put(np.int32(number), run.shardings.step))
        losses.append(float(run.take(make_batch())["loss"]))
    assert losses[0] != pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_devices_change_nothing(mesh):
    """With dropout on: its bits depend on the key alone, not on how an array is divided."""
    metrics, params = two_steps()
    divided, divided_params = two_steps(mesh=mesh)
    assert_close(divided, metrics, 2e-5)
    assert_close(divided_params, params, 1e-4)


def test_scanned_layers_run_on_a_mesh():
    metrics, params = two_steps(SCANNED, (2, 2, 2))
    alone, alone_params = two_steps(SCANNED)
    assert_close(metrics, alone, 2e-5)
    assert_close(params, alone_params, 1e-4)


@pytest.fixture(params=["float32", "bfloat16"])
def dry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Without dropout; in bfloat16 as on a CPU that multiplies it natively."""
    monkeypatch.setattr(dense, "multiplies_bfloat16", lambda: True)
    return dataclasses.replace(DRY, dtype=request.param)


def test_microbatches_stay_on_their_devices(dry):
    """Data parallel: gradients and sums are added up over devices, and nothing else moves."""
    run = Run(dry, (8, 1, 1), accumulation_steps=2)
    text = run.step.lower(run.state, put_batch(make_batch(), run.mesh)).compile().as_text()
    moves = set(
        re.findall(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    )
    assert moves == {"all-reduce"}


def test_no_device_gets_the_hidden_states_of_the_whole_batch(dry):
    mesh, _, abstract, _, step = compiled(dry, (2, 4, 1), 1, 40)
    batch = put_batch(make_batch(), mesh)
    text = step.lower(abstract, batch).compile().as_text()
    assert "f32[2,16,32]" in text, "rows of a device"
    assert not re.findall(r".*f(?:32|16)\[16,16,32\].*", text)


def test_a_step_is_for_the_devices_of_its_mesh(monkeypatch: pytest.MonkeyPatch):
    """Wherever it is compiled."""

    def forward(*_):
        raise LookupError(layout.platform())

    mesh, task, abstract, shardings, step = compiled(DRY, (2, 1, 1), 1, 40)
    monkeypatch.setattr(PretrainingTask, "forward", forward)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for traced in (step, make_eval_step(task, shardings, mesh)):
        with pytest.raises(LookupError, match="cpu"):
            traced.trace(abstract, make_batch(rows=18))


def test_split_rows_takes_every_nth():
    batch = {"input_ids": jnp.arange(12).reshape(6, 2)}
    parts = split_rows(batch, 3)["input_ids"]
    assert parts.tolist() == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]


def pack(batch):
    """Rows 2i and 2i + 1 in one row of twice the length, the second right behind the first one's tokens."""
    rows = len(batch["input_ids"]) // 2
    packed = {name: np.zeros((rows, 2 * LENGTH), np.int32) for name in list(batch)[:4]}
    targets = {
        name: batch[name].reshape(rows, -1).copy()
        for name in ("mlm_positions", "mlm_labels", "mlm_weights", "cls_positions", "nsp_labels", "nsp_weights")
    }
    for row in range(rows):
        start = 0
        for place, source in enumerate((2 * row, 2 * row + 1)):
            length = int(batch["sequence_ids"][source].sum())
            for name, values in packed.items():
                values[row, start : start + length] = batch[name][source, :length]
            packed["sequence_ids"][row, start : start + length] = place + 1
            targets["mlm_positions"][row, place * PREDICTIONS : (place + 1) * PREDICTIONS] += start
            targets["cls_positions"][row, place] = start
            start += length
    # Unused slots point at position 0, as the contract of the batch has it.
    targets["mlm_positions"] *= targets["mlm_weights"] > 0
    return packed | targets


def gradients(task, params, batch):
    """Loss and raw gradients of a batch: one step of plain descent at rate 1."""
    run = functools.partial(
        train_step,
        task=task,
        optimizer=optax.sgd(1.0),
        schedule=optax.constant_schedule(1.0),
        seed=0,
        accumulation_steps=1,
    )
    state = Run(DRY).state.replace(params=params, opt_state=optax.sgd(1.0).init(params))
    new_state, metrics = jax.jit(run)(state, batch)
    return metrics, jax.tree.map(jnp.subtract, params, new_state.params)


def test_packed_rows_give_the_same_loss_and_gradients():
    state = Run(DRY).state
    batch = make_batch(8)
    metrics, grads = gradients(PretrainingTask(DRY), state.params, batch)
    packed_metrics, packed_grads = gradients(PretrainingTask(DRY), state.params, pack(batch))
    assert_close(packed_metrics, metrics, 1e-5)
    assert_close(packed_grads, grads, 1e-5)
    assert float(metrics["grad_norm"]) > 0.1


@pytest.mark.parametrize("poison", ["weight", "parameter"])
def test_step_that_is_not_finite_is_skipped_and_counted(poison):
    run = Run(DRY, **SCHEDULED)
    run.take(make_batch(seed=0))
    if poison == "parameter":
        bias = run.state.params["mlm"]["bias"]
        run.state.params["mlm"]["bias"] = jax.device_put(bias.at[3].set(jnp.inf), bias.sharding)
    bad = make_batch(seed=1)
    if poison == "weight":
        bad["mlm_weights"][0, 0] = np.inf
    before = jax.tree.map(np.array, (run.state.params, run.state.opt_state))
    for skipped in (1, 2):
        metrics = run.take(bad)
        assert int(metrics["nonfinite"]) == 1
        assert not np.isfinite(metrics["loss"])
        assert tuple(map(float, metrics["mlm_loss"])) == (0.0, 0.0)
        # The schedule counts updates, so it waits for the skipped ones.
        assert float(metrics["learning_rate"]) == pytest.approx(5e-3)
        state = run.state
        counters = (state.step, state.nonfinite_steps, state.nonfinite_in_a_row)
        assert tuple(map(int, counters)) == (1 + skipped, skipped, skipped)
    after = jax.tree.map(np.array, (run.state.params, run.state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_run_goes_on_after_a_skipped_step():
    run = Run(DRY, **SCHEDULED)
    bad = make_batch()
    bad["nsp_weights"][5, 0] = np.nan
    run.take(bad)
    metrics = [run.take(make_batch(seed=seed)) for seed in range(2)]
    clean = Run(DRY, **SCHEDULED)
    assert_close(metrics, [clean.take(make_batch(seed=seed)) for seed in range(2)], 0)
    state = run.state
    counters = (state.step, state.nonfinite_steps, state.nonfinite_in_a_row)
    assert tuple(map(int, counters)) == (3, 1, 0)


def test_batch_without_targets_changes_nothing_but_decay():
    run = Run(DRY, **SCHEDULED)
    empty = make_batch()
    empty["mlm_weights"][:] = 0
    empty["nsp_weights"][:] = 0
    before = jax.tree.map(np.array, run.state.params)
    # The rate of the first step is 0, that of the second is not; and SCHEDULED has no decay.
    for rate in (0.0, 5e-3):
        metrics = run.take(empty)
        assert (float(metrics["loss"]), float(metrics["grad_norm"]), int(metrics["nonfinite"])) == (0.0, 0.0, 0)
        assert float(metrics["learning_rate"]) == pytest.approx(rate)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, run.state.params))


def test_state_is_donated_and_compiled_once():
    run = Run(mesh=(2, 2, 2))
    for seed in range(3):
        old = run.state
        run.take(make_batch(seed=seed))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert run.step._cache_size() == 1
    placed = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, run.state, run.shardings)
    assert all(jax.tree.leaves(placed))


def test_reported_learning_rate_is_the_schedule():
    run = Run(DRY, **SCHEDULED)
    rates = [float(run.take(make_batch())["learning_rate"]) for _ in range(5)]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005, 0.0], abs=1e-8)


@pytest.mark.parametrize("optimizer", [{}, {"name": "lamb", "peak_learning_rate": 3e-2}])
def test_loss_falls_on_a_batch_that_repeats(optimizer):
    run = Run(DRY, **optimizer)
    losses = [float(run.take(make_batch())["loss"]) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]


def test_evaluation_is_deterministic_and_leaves_the_state():
    run = Run(mesh=(2, 2, 2))
    evaluate = make_eval_step(run.task, run.shardings, run.mesh)
    batch = make_batch()
    first, second = (jax.tree.map(np.asarray, evaluate(run.state, put_batch(batch, run.mesh))) for _ in range(2))
    assert_close(first, second, 0)
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        weights = {name: np.zeros_like(batch[name]) for name in ("mlm_weights", "nsp_weights")}
        for name, values in weights.items():
            values[rows] = batch[name][rows]
        halves.append(evaluate(run.state, put_batch(batch | weights, run.mesh)))
    assert_close(jax.tree.map(jnp.add, *halves), first, 1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.state))
