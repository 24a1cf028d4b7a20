"""The loop: bitwise resume, order of its parts, signals, input, non-finite steps. With the real step and a small task."""

import dataclasses
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig
from jaxbert.train.checkpoint import CheckpointError, Checkpoints
from jaxbert.train.evaluate import evaluate
from jaxbert.train.loop import FitResult, NonFiniteError, fit
from jaxbert.train.optimizer import make_optimizer, make_schedule
from jaxbert.train.prefetch import Prefetch
from jaxbert.train.sharding import make_mesh, put_batch
from jaxbert.train.state import abstract_state, create_state
from jaxbert.train.step import make_eval_step, make_train_step
from jaxbert.train.tracking import JsonlTracker

NUM_STEPS = 12
TRAIN = TrainConfig(num_steps=NUM_STEPS, batch_size=8, log_every=3, evaluate_every=4, max_nonfinite_steps=2, prefetch=2)
CHECKPOINT = CheckpointConfig(every=5, keep_last=3)
OPTIMIZER = OptimizerConfig(peak_learning_rate=0.05, warmup_steps=2)
TIMES = {"time", "tokens_per_second", "input_wait_share"}


class Guessing:
    """Two loss terms over an embedding with dropout: the least that has what a step can go wrong by."""

    loss_weights: ClassVar = {"mlm_loss": 1.0, "nsp_loss": 0.5}

    def init(self, key):
        keys = jax.random.split(key)
        return {
            "embedding": jax.random.normal(keys[0], (16, 4)),
            "kernel": jax.random.normal(keys[1], (4, 16)),
            "bias": jnp.zeros(16),
        }

    def weights(self, batch):
        return {"mlm_loss": jnp.sum(batch["mlm_weights"]), "nsp_loss": jnp.float32(len(batch["labels"]))}

    def forward(self, params, batch, dropout_key):
        hidden = jnp.mean(params["embedding"][batch["input_ids"]], axis=1)
        if dropout_key is not None:
            hidden = jnp.where(jax.random.bernoulli(dropout_key, 0.5, hidden.shape), hidden * 2, 0.0)
        logits = jnp.dot(hidden, params["kernel"]) + params["bias"][None] + batch["noise"][:, None]
        log_probs = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(log_probs, batch["labels"][:, None], axis=1)[:, 0]
        right = (jnp.argmax(logits, axis=1) == batch["labels"]) * batch["mlm_weights"]
        weight = jnp.sum(batch["mlm_weights"])
        return {
            "mlm_loss": (jnp.sum(losses * batch["mlm_weights"]), weight),
            "mlm_accuracy": (jnp.sum(right), weight),
            "nsp_loss": (jnp.sum(jnp.square(losses)), jnp.float32(len(losses))),
        }


TASK = Guessing()


def make_batch(step: int) -> dict[str, np.ndarray]:
    """The batch of a step: a function of the step alone."""
    random = np.random.default_rng(step)
    return {
        "input_ids": random.integers(0, 16, (8, 5)).astype(np.int32),
        "sequence_ids": (np.arange(5)[None, :] < random.integers(1, 6, (8, 1))).astype(np.int32),
        "labels": random.integers(0, 16, 8).astype(np.int32),
        "mlm_weights": random.integers(0, 2, 8).astype(np.float32),
        "noise": np.zeros(8, np.float32),
    }


def make_batches(first: int, last: int):
    yield from (make_batch(step) for step in range(first, last))


class Rig:
    """Everything that `fit` is handed, with the compiled steps shared by all tests."""

    def __init__(self):
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:2])
        schedule = make_schedule(OPTIMIZER, NUM_STEPS)
        optimizer = make_optimizer(OPTIMIZER, NUM_STEPS, jax.eval_shape(TASK.init, jax.random.key(0)))
        self.fresh = lambda: create_state(TASK, optimizer, 0, self.mesh)[0]
        self.abstract = abstract_state(TASK, optimizer, self.mesh)
        shardings = create_state(TASK, optimizer, 0, self.mesh)[1]
        self.train_step = make_train_step(TASK, optimizer, schedule, shardings, self.mesh, seed=1)
        self.eval_step = make_eval_step(TASK, shardings, self.mesh)

    def put(self, batch):
        return put_batch(batch, self.mesh)

    def evaluate(self, state, should_stop):
        heldout = (make_batch(1000 + number) for number in range(3))
        return evaluate(
            self.eval_step, state, heldout, self.put, loss_weights=TASK.loss_weights, should_stop=should_stop
        )

    def run(self, workdir: pathlib.Path, **changes: Any) -> FitResult:
        """One start of the program: restore what there is, train, close."""
        with Checkpoints(workdir, changes.get("checkpoint", CHECKPOINT)) as checkpoints:
            restored = checkpoints.restore_latest(self.abstract)
            state = self.fresh() if restored is None else restored
            tracker = changes.pop("tracker", None) or JsonlTracker(workdir / "metrics.jsonl", int(state.step))
            handed = {
                "state": state,
                "train_step": self.train_step,
                "batches": make_batches,
                "put": self.put,
                "evaluate": self.evaluate,
                "loss_weights": TASK.loss_weights,
                "checkpoints": checkpoints,
                "tracker": tracker,
                "train": TRAIN,
                "checkpoint": CHECKPOINT,
                "workdir": workdir,
            }
            try:
                return fit(**{**handed, **changes})
            finally:
                tracker.close()


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


def lines_of(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_state(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)


def batches_that(act: Callable[[int], None]) -> Callable[[int, int], Any]:
    """Batches that call `act(step)` before that step's batch is handed out."""

    def batches(first, last):
        for step in range(first, last):
            act(step)
            yield make_batch(step)

    return batches


def signal_at(rig: Rig, step: int, number: int = signal.SIGTERM) -> Callable[[Any, Any], Any]:
    """A train_step that sends a signal to this process while it takes that step, so that the run ends after it."""

    def train_step(state, batch):
        if int(state.step) == step:
            os.kill(os.getpid(), number)
        return rig.train_step(state, batch)

    return train_step


@pytest.fixture(scope="module")
def uninterrupted(rig, tmp_path_factory) -> tuple[FitResult, list[dict], Any]:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    result = rig.run(workdir)
    return result, lines_of(workdir), jax.device_get(result.state)


def test_an_uninterrupted_run_logs_and_saves_at_its_steps(uninterrupted):
    result, lines, _ = uninterrupted
    assert (result.step, result.interrupted) == (NUM_STEPS, False)
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if line["split"] == "heldout"] == [4, 8, 12]
    assert result.evaluation is not None
    assert {"step": 12, "split": "heldout", **result.evaluation} in lines
    assert set(lines[0]) == {
        "step", "split", "loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "learning_rate", "grad_norm", "nonfinite_steps",
    }  # fmt: skip
    assert lines[0]["loss"] == pytest.approx(lines[0]["mlm_loss"] + 0.5 * lines[0]["nsp_loss"])


def test_resuming_at_three_steps_is_bitwise_the_uninterrupted_run(rig, uninterrupted, tmp_path):
    """Dropout on. The run ends inside a line's window, at a checkpoint's step, and at a line's step."""
    _, lines, state = uninterrupted
    for step in (2, 5, 9):
        result = rig.run(tmp_path, train_step=signal_at(rig, step - 1))
        assert (result.step, result.interrupted) == (step, True)
    result = rig.run(tmp_path)
    assert not result.interrupted
    assert_same_state(result.state, state)
    assert lines_of(tmp_path) == lines


def test_resuming_from_an_earlier_checkpoint_is_bitwise_the_same(rig, uninterrupted, tmp_path):
    """A crash: nothing was saved at the last step, and lines were logged beyond the checkpoint."""
    _, lines, state = uninterrupted

    def crash(step: int) -> None:
        if step == 9:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        rig.run(tmp_path, batches=batches_that(crash))
    assert lines_of(tmp_path)[-1]["step"] > 5
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert steps == [5]
    result = rig.run(tmp_path)
    assert_same_state(result.state, state)
    assert lines_of(tmp_path) == lines


def test_dropout_is_on_in_these_runs(rig):
    """Without it the tests above would prove less."""
    forward = jax.jit(TASK.forward)
    params = jax.jit(TASK.init)(jax.random.key(0))
    first, second = (forward(params, make_batch(0), jax.random.key(seed))["mlm_loss"][0] for seed in (1, 2))
    assert first != second


def test_a_finished_run_does_nothing_again(rig, tmp_path):
    first = rig.run(tmp_path)
    lines = lines_of(tmp_path)
    calls = []
    again = rig.run(tmp_path, evaluate=lambda state, stop: calls.append(state))
    assert (again.step, again.interrupted, calls) == (NUM_STEPS, False, [])
    assert again.evaluation == first.evaluation
    assert lines_of(tmp_path) == lines


class Tape:
    """Notes what happens, in order, as a tracker and in place of the others."""

    def __init__(self):
        self.events: list[tuple] = []

    def log(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        self.events.append((split, step))

    def close(self) -> None:
        pass


def test_enough_ends_a_run_after_an_evaluation_and_for_good(rig, tmp_path):
    asked: list[int] = []

    def enough(step: int) -> bool:
        asked.append(step)
        return step >= 2 * TRAIN.evaluate_every

    first = rig.run(tmp_path, enough=enough)
    assert (first.step, first.interrupted) == (2 * TRAIN.evaluate_every, False)
    assert asked == [TRAIN.evaluate_every, 2 * TRAIN.evaluate_every]
    asked.clear()
    again = rig.run(tmp_path, enough=enough)
    assert asked == [2 * TRAIN.evaluate_every]
    assert (again.step, again.interrupted, again.evaluation) == (first.step, False, first.evaluation)
    assert_same_state(again.state, first.state)
    assert rig.run(tmp_path).step == NUM_STEPS


def test_the_order_is_evaluate_save_next_step_report(rig, tmp_path, monkeypatch):
    tape = Tape()
    save = Checkpoints.save

    def noted_save(self, step, state, **options):
        tape.events.append(("save", step, options["evaluation"] is not None))
        save(self, step, state, **options)

    def noted_step(state, batch):
        tape.events.append(("step", int(batch["number"])))
        return rig.train_step(state, {name: values for name, values in batch.items() if name != "number"})

    def noted_evaluate(state, stop):
        tape.events.append(("evaluate", int(state.step)))
        return rig.evaluate(state, stop)

    monkeypatch.setattr(Checkpoints, "save", noted_save)
    rig.run(
        tmp_path,
        tracker=tape,
        train_step=noted_step,
        evaluate=noted_evaluate,
        batches=lambda first, last: ({**make_batch(step), "number": np.int32(step)} for step in range(first, last)),
        put=lambda batch: {**rig.put({k: v for k, v in batch.items() if k != "number"}), "number": batch["number"]},
        train=dataclasses.replace(TRAIN, num_steps=5, log_every=1, evaluate_every=2),
        checkpoint=CheckpointConfig(every=4),
    )
    # Line n appears after step n (the one with number n, which is the n+1st) was started, or before an evaluation or a save.
    assert tape.events == [
        ("step", 0), ("step", 1), ("train", 1), ("train", 2), ("evaluate", 2), ("heldout", 2),
        ("step", 2), ("step", 3), ("train", 3), ("train", 4), ("evaluate", 4), ("heldout", 4), ("save", 4, True),
        ("step", 4), ("train", 5), ("evaluate", 5), ("heldout", 5), ("save", 5, True),
    ]  # fmt: skip


def test_a_line_is_sums_over_weights_of_its_steps(rig, tmp_path):
    metrics = []

    def step(state, batch):
        state, found = rig.train_step(state, batch)
        metrics.append(jax.device_get(found))
        return state, found

    rig.run(tmp_path, train_step=step)
    first = lines_of(tmp_path)[0]
    for name in ("mlm_loss", "mlm_accuracy", "nsp_loss"):
        expected = sum(float(m[name][0]) for m in metrics[:3]) / sum(float(m[name][1]) for m in metrics[:3])
        assert first[name] == pytest.approx(expected, rel=1e-12)
    assert first["grad_norm"] == pytest.approx(np.mean([float(m["grad_norm"]) for m in metrics[:3]]))
    assert first["learning_rate"] == pytest.approx(float(metrics[2]["learning_rate"]))


def test_evaluation_divides_once_over_all_batches():
    batches = [(1.0, 1.0), (30.0, 3.0), (0.0, 0.0)]
    found = evaluate(
        lambda state, batch: {"mlm_loss": batch, "nsp_loss": (4.0, 2.0), "empty": (0.0, 0.0)},
        None,
        batches,
        lambda batch: batch,
        loss_weights={"mlm_loss": 1.0, "nsp_loss": 0.5, "empty": 1.0},
    )
    assert found == {"mlm_loss": 31 / 4, "nsp_loss": 2.0, "loss": 31 / 4 + 1.0}


def test_evaluation_keeps_what_float32_would_lose():
    batches = [(1e8, 1.0)] + [(1.0, 1.0)] * 100
    found = evaluate(lambda _, batch: {"x": batch}, None, batches, lambda batch: batch, loss_weights={})
    assert found == {"x": (1e8 + 100) / 101}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_handlers_are_put_back(rig, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()

    result = rig.run(tmp_path, train_step=signal_at(rig, 2, number))
    assert (result.step, result.interrupted) == (3, True)
    assert [path.name for path in (tmp_path / "checkpoints_sha256").iterdir()] == ["3.json"]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert threading.active_count() <= threads


def test_a_second_sigint_ends_it_at_once(rig, tmp_path):
    def step(state, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return rig.train_step(state, batch)

    with pytest.raises(KeyboardInterrupt):
        rig.run(tmp_path, train_step=step)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_signal_during_evaluation_leaves_and_the_evaluation_is_made_up_for(rig, uninterrupted, tmp_path):
    _, lines, state = uninterrupted
    seen = []

    def stop_within(state, should_stop):
        seen.append(int(state.step))
        os.kill(os.getpid(), signal.SIGTERM)
        return rig.evaluate(state, should_stop)

    result = rig.run(tmp_path, evaluate=stop_within)
    assert (seen, result.step, result.interrupted) == ([4], 4, True)
    with Checkpoints(tmp_path, CHECKPOINT) as checkpoints:
        assert checkpoints.record(4).evaluation is None
    # Interrupted again one step later: the evaluation is in the checkpoint's record by then, and is not logged twice.
    assert rig.run(tmp_path, train_step=signal_at(rig, 4)).step == 5
    with Checkpoints(tmp_path, CHECKPOINT) as checkpoints:
        assert checkpoints.record(4).evaluation["loss"] == lines_of(tmp_path)[-1]["loss"]
    result = rig.run(tmp_path)
    assert_same_state(result.state, state)
    assert lines_of(tmp_path) == lines


def test_a_signal_while_waiting_for_input_leaves(rig, tmp_path):
    stuck = threading.Event()

    def act(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            # The input hangs here until the run is over.
            stuck.wait(20)

    timer = threading.Timer(0.5, stuck.set)
    timer.start()
    result = rig.run(tmp_path, batches=batches_that(act), train=dataclasses.replace(TRAIN, prefetch=1))
    timer.join()
    assert (result.step, result.interrupted) == (2, True)


def test_an_error_in_the_input_surfaces_after_the_batches_before_it(rig, tmp_path):
    taken = []

    def fail(step: int) -> None:
        if step == 3:
            raise OSError("row 17 is damaged")

    def count(state, batch):
        taken.append(1)
        return rig.train_step(state, batch)

    with pytest.raises(OSError, match="row 17 is damaged"):
        rig.run(tmp_path, batches=batches_that(fail), train_step=count)
    assert len(taken) == 3
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_that_end_early_are_an_error(rig, tmp_path):
    with pytest.raises(EOFError, match="ended before the training"):
        rig.run(tmp_path, batches=lambda first, last: make_batches(first, 2))


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_batches_wait_on_the_device_than_asked_for(ahead):
    placed, closed = [], threading.Event()
    full = threading.Event()

    def numbers():
        try:
            yield from range(100)
        finally:
            closed.set()

    def put(number: int) -> int:
        placed.append(number)
        if len(placed) >= ahead + 1:
            full.set()
        return number

    with Prefetch(numbers(), put, ahead) as incoming:
        first = incoming.next(lambda: False)
        assert first == (0, 0)
        assert full.wait(10)
    # One was taken; `ahead` more were placed, and no other.
    assert placed == list(range(ahead + 1))
    assert closed.is_set()


def poisoned(*steps: int) -> Callable[[int, int], Any]:
    def batches(first, last):
        for step in range(first, last):
            batch = make_batch(step)
            yield {**batch, "noise": np.full(8, np.nan, np.float32)} if step in steps else batch

    return batches


def test_single_non_finite_steps_are_skipped_counted_and_leave_no_trace_in_the_means(rig, tmp_path):
    result = rig.run(tmp_path, batches=poisoned(1, 4))
    lines = [line for line in lines_of(tmp_path) if line["split"] == "train"]
    assert [line["nonfinite_steps"] for line in lines] == [1, 2, 2, 2]
    assert all(value is not None for line in lines for value in line.values())
    assert int(result.state.nonfinite_steps) == 2


@pytest.mark.parametrize("resume_between", [False, True])
def test_too_many_non_finite_steps_in_a_row_stop_the_run_with_the_batch(rig, tmp_path, resume_between):
    bad = poisoned(1, 6, 7)
    if resume_between:
        # The count of steps in a row goes on after a resume.
        assert rig.run(tmp_path, batches=bad, train_step=signal_at(rig, 6)).step == 7
    with pytest.raises(NonFiniteError) as error:
        rig.run(tmp_path, batches=bad)
    path = tmp_path / "nonfinite_step_7.npz"
    assert str(error.value).startswith("loss or gradient is not finite at step 7, the last of 2 in a row")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with np.load(path) as written:
        assert set(written) == set(make_batch(7))
        np.testing.assert_array_equal(written["input_ids"], make_batch(7)["input_ids"])
        assert np.isnan(written["noise"]).all()


def test_a_save_that_failed_stops_the_run(rig, tmp_path, monkeypatch):
    def fail(self, record):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "_write_record", fail)
    with pytest.raises(CheckpointError, match="the checkpoint of step 5 was not saved: OSError: no space left"):
        rig.run(tmp_path)


def test_derived_metrics_join_the_line(rig, tmp_path):
    rig.run(tmp_path, derive=lambda step, line: {"mlm_loss_per_step": line["mlm_loss"] / step})
    lines = [line for line in lines_of(tmp_path) if line["split"] == "train"]
    assert [line["mlm_loss_per_step"] for line in lines] == [line["mlm_loss"] / line["step"] for line in lines]


def test_speed_and_input_wait_are_measured_after_the_first_step(rig, tmp_path):
    rig.run(tmp_path, train=dataclasses.replace(TRAIN, log_every=1))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert "tokens_per_second" not in train[0]
    for line in train[1:]:
        assert line["tokens_per_second"] > 0
        assert 0 <= line["input_wait_share"] <= 1
