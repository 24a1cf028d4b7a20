"""Schedules against tables, AdamW against torch, LAMB against its paper, who decays, and what depth does."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxbert.config import ModelConfig, OptimizerConfig
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.freezing import stop_gradients
from jaxbert.train.optimizer import (
    OptimizerError,
    decay_mask,
    describe_decay,
    make_optimizer,
    make_schedule,
    scale_by_depth,
    scale_by_layer_trust_ratio,
    stacked_axes,
)
from jaxbert.train.sharding import path_name

TINY = ModelConfig(
    vocab_size=50, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, max_position_embeddings=8
)

# Peak 2, 21 steps of which 5 warm up: step -> rate. The last step is 20.
SCHEDULES = {
    "linear": {0: 0.0, 1: 0.4, 4: 1.6, 5: 2.0, 8: 1.6, 20: 0.0, 25: 0.0},
    "cosine": {0: 0.0, 5: 2.0, 10: 1.5, 15: 0.5, 20: 0.0, 25: 0.0},
    "constant": {0: 0.0, 4: 1.6, 5: 2.0, 20: 2.0, 25: 2.0},
    # 0.2 x 21 steps, rounded, are 4.
    "wsd": {0: 0.0, 5: 2.0, 16: 2.0, 17: 1.5, 19: 0.5, 20: 0.0, 25: 0.0},
}


def schedule_config(**changes):
    return OptimizerConfig(peak_learning_rate=2.0, warmup_steps=5, wsd_decay_share=0.2, **changes)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_table(name):
    schedule = make_schedule(schedule_config(schedule=name), 21)
    rates = {step: float(schedule(jnp.int32(step))) for step in SCHEDULES[name]}
    assert rates == pytest.approx(SCHEDULES[name], abs=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_schedule_ends_at_the_final_share(name):
    schedule = make_schedule(schedule_config(schedule=name, final_learning_rate_share=0.25), 21)
    assert [float(schedule(step)) for step in (0, 5, 20, 21)] == pytest.approx([0.0, 2.0, 0.5, 0.5], abs=1e-6)
    # Halfway down, every shape is halfway between the peak and the end.
    assert float(schedule(18 if name == "wsd" else 12.5)) == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("warmup", "num_steps"), [(0, 10), (10, 10), (9, 10), (0, 1), (1, 1), (8, 10)])
def test_schedule_at_the_edges_starts_and_peaks_where_it_should(name, warmup, num_steps):
    config = dataclasses.replace(schedule_config(schedule=name), warmup_steps=warmup)
    schedule = make_schedule(config, num_steps)
    rates = np.array([float(schedule(step)) for step in range(num_steps + 1)])
    assert rates[0] == (2.0 if warmup == 0 else 0.0)
    assert rates[warmup] == pytest.approx(2.0)
    assert ((rates >= 0) & (rates <= 2.0 + 1e-6)).all()


def test_decay_of_the_real_model():
    table = describe_decay(jax.eval_shape(PretrainingTask(TINY).init, jax.random.key(0)))
    decayed = {path for path, _, decays in table if decays}
    spared = {path for path, _, decays in table if not decays}
    assert len(table) == 46
    assert {path.rsplit("/", 1)[1] for path in decayed} == {"kernel", "embedding"}
    assert {path.rsplit("/", 1)[1] for path in spared} == {"bias", "scale"}
    assert {"encoder/embeddings/word/embedding", "encoder/layers_1/attention/query/kernel"} <= decayed
    assert {"mlm/bias", "encoder/embeddings/layer_norm/scale", "pooler/dense/bias"} <= spared


def test_scanned_model_has_the_same_rules():
    scanned = dataclasses.replace(TINY, scan_layers=True)
    table = describe_decay(jax.eval_shape(PretrainingTask(scanned).init, jax.random.key(0)))
    assert ("encoder/layers/attention/query/kernel", r"(^|/)kernel$", True) in table


def test_first_matching_rule_decides():
    params = {"a": {"kernel": jnp.ones(2)}, "b": {"kernel": jnp.ones(2)}}
    assert describe_decay(params, ((r"^a/", False), (r"kernel", True))) == [
        ("a/kernel", "^a/", False),
        ("b/kernel", "kernel", True),
    ]


def test_uncovered_parameter_is_named():
    params = {"head": {"kernel": jnp.ones(2), "temperature": jnp.ones(())}}
    with pytest.raises(OptimizerError, match=r"^head/temperature: no weight decay rule covers it"):
        make_optimizer(OptimizerConfig(), 10, params)


def random_tree(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    shapes = {"layer": {"kernel": (4, 3), "bias": (3,)}, "norm": {"scale": (3,)}, "word": {"embedding": (5, 4)}}
    return jax.tree.map(
        lambda shape: (scale * generator.normal(size=shape)).astype(np.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def test_adamw_equals_torch_on_the_same_gradients():
    config = OptimizerConfig(
        peak_learning_rate=0.01, schedule="cosine", warmup_steps=2, weight_decay=0.1, max_grad_norm=0.0
    )
    num_steps = 6
    params = random_tree(0)
    schedule = make_schedule(config, num_steps)
    paths = [path for path, _, _ in describe_decay(params)]
    decayed = [decays for _, _, decays in describe_decay(params)]
    theirs = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(params)]
    groups = [
        {"params": [p for p, d in zip(theirs, decayed, strict=True) if d == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    reference = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    optimizer = make_optimizer(config, num_steps, params)
    state = optimizer.init(params)
    for step in range(num_steps):
        grads = random_tree(step + 1)
        for parameter, gradient in zip(theirs, jax.tree.leaves(grads), strict=True):
            parameter.grad = torch.tensor(gradient)
        for group in reference.param_groups:
            group["lr"] = float(schedule(step))
        reference.step()
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for path, ours, other in zip(paths, jax.tree.leaves(params), theirs, strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), atol=1e-6, rtol=0, err_msg=path)


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_clipping_scales_down_to_the_global_norm(norm):
    """With one step of SGD-like momentum the clip shows in the first moment: mu = (1 - beta1) x clipped gradient."""
    params, grads = random_tree(0), random_tree(1)
    config = OptimizerConfig(max_grad_norm=norm)
    optimizer = make_optimizer(config, 10, params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moment = optax.tree.get(state, "mu")
    before = float(optax.tree.norm(grads))
    assert float(optax.tree.norm(moment)) == pytest.approx(0.1 * min(norm, before), rel=1e-5)


def lamb_config():
    return OptimizerConfig(
        name="lamb",
        peak_learning_rate=0.1,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.1,
        max_grad_norm=0.0,
    )


def test_lamb_first_step_follows_the_paper():
    """Algorithm 2 of You et al. 2020 with m and v corrected: the first update is sign-like, g / (|g| + epsilon)."""
    params, grads = random_tree(0), random_tree(1)
    optimizer = make_optimizer(lamb_config(), 10, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    direction = jax.tree.map(lambda g: g / (np.abs(g) + 1e-6), grads)
    kernel, decayed = params["layer"]["kernel"], direction["layer"]["kernel"] + 0.1 * params["layer"]["kernel"]
    ratio = np.linalg.norm(kernel) / np.linalg.norm(decayed)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.1 * ratio * decayed, rtol=1e-4)
    # Neither decay nor trust ratio on biases and scales.
    np.testing.assert_allclose(updates["layer"]["bias"], -0.1 * direction["layer"]["bias"], rtol=1e-4)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1 * direction["norm"]["scale"], rtol=1e-4)


def test_trust_ratio_is_per_layer_in_a_scanned_stack():
    generator = np.random.default_rng(0)
    params, updates = (generator.normal(size=(3, 4, 2)).astype(np.float32) for _ in range(2))
    boxed = {"kernel": nn.LogicallyPartitioned(params, ("layers", "embed", "mlp"))}
    assert stacked_axes(boxed) == {"kernel": 0}
    stacked = scale_by_layer_trust_ratio({"kernel": True}, {"kernel": 0})
    scaled, _ = stacked.update({"kernel": updates}, optax.EmptyState(), {"kernel": params})
    for layer in range(3):
        ratio = np.linalg.norm(params[layer]) / np.linalg.norm(updates[layer])
        np.testing.assert_allclose(scaled["kernel"][layer], ratio * updates[layer], rtol=1e-5)


def test_make_optimizer_reads_the_stack_from_the_boxes():
    scanned = dataclasses.replace(TINY, scan_layers=True)
    shapes = jax.eval_shape(PretrainingTask(scanned).init, jax.random.key(0))
    axes = stacked_axes(shapes)
    assert set(jax.tree.leaves(axes["encoder"]["layers"])) == {0}
    assert set(jax.tree.leaves(axes["encoder"]["embeddings"])) == {-1}
    assert jax.tree.structure(decay_mask(shapes)) == jax.tree.structure(axes)


@pytest.mark.parametrize(
    ("share", "num_steps", "expected"),
    [(None, 50, 5), (0.1, 50, 5), (0.0, 50, 0), (1.0, 7, 7), (0.1, 4, 0), (0.5, 3, 2)],
)
def test_warmup_as_a_share_of_all_steps_takes_the_place_of_its_steps(share, num_steps, expected):
    config = schedule_config(warmup_share=share)
    assert config.num_warmup_steps(num_steps) == expected
    schedule = make_schedule(config, num_steps)
    assert float(schedule(expected)) == pytest.approx(2.0)
    assert float(schedule(0)) == (0.0 if expected else 2.0)
    if expected > 1:
        assert float(schedule(expected - 1)) < 2.0


def block_of(name: str) -> str:
    """ "embeddings", the number of the block, or "top"."""
    if "encoder/embeddings/" in name:
        return "embeddings"
    return name.split("layers_")[1].split("/")[0] if "layers_" in name else "top"


# Three blocks: share of the learning rate of each part.
SHARES = [
    ({}, {"embeddings": 1, "0": 1, "1": 1, "2": 1, "top": 1}),
    ({"layer_decay": 0.5}, {"embeddings": 0.125, "0": 0.25, "1": 0.5, "2": 1, "top": 1}),
    ({"freeze_embeddings": True}, {"embeddings": 0, "0": 1, "1": 1, "2": 1, "top": 1}),
    ({"freeze_layers": 2}, {"embeddings": 0, "0": 0, "1": 0, "2": 1, "top": 1}),
    ({"freeze_layers": 1, "layer_decay": 0.5}, {"embeddings": 0, "0": 0, "1": 0.5, "2": 1, "top": 1}),
    ({"freeze_layers": 3}, {"embeddings": 0, "0": 0, "1": 0, "2": 0, "top": 1}),
]


@pytest.mark.parametrize(("settings", "shares"), SHARES)
def test_depth_decides_the_share_of_the_learning_rate(settings, shares):
    task = PretrainingTask(dataclasses.replace(TINY, num_layers=3))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    transform = scale_by_depth(OptimizerConfig(**settings), shapes)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), nn.unbox(shapes))
    scaled, _ = transform.update(ones, transform.init(ones))
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(scaled):
        part = block_of(path_name(path))
        seen.add(part)
        assert np.unique(leaf).tolist() == [shares[part]], path_name(path)
    assert seen == set(shares)


def test_stacked_blocks_have_the_shares_of_blocks_one_by_one():
    task = PretrainingTask(dataclasses.replace(TINY, num_layers=3, scan_layers=True))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    transform = scale_by_depth(OptimizerConfig(layer_decay=0.5, freeze_layers=1), shapes)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), nn.unbox(shapes))
    scaled, _ = transform.update(ones, transform.init(ones))
    for leaf in jax.tree.leaves(scaled["encoder"]["layers"]):
        assert [np.unique(block).tolist() for block in leaf] == [[0], [0.5], [1]]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_more_frozen_blocks_than_there_are_is_refused(scan_layers):
    task = PretrainingTask(dataclasses.replace(TINY, scan_layers=scan_layers))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(OptimizerError, match=r"optimizer.freeze_layers is 3, and the encoder has 2 blocks"):
        make_optimizer(OptimizerConfig(freeze_layers=3), 10, shapes)


def test_weight_decay_does_not_move_what_is_frozen():
    params = {"encoder": {"embeddings": {"word": {"embedding": np.ones((5, 4), np.float32)}}}, "head": random_tree(0)}
    optimizer = make_optimizer(OptimizerConfig(freeze_embeddings=True, warmup_steps=0, weight_decay=0.5), 10, params)
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
    assert not np.any(updates["encoder"]["embeddings"]["word"]["embedding"])
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(updates["head"]))


def test_no_gradient_reaches_what_is_frozen():
    shapes = jax.eval_shape(PretrainingTask(TINY).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), nn.unbox(shapes))

    def loss(params, config):
        return sum(leaf.sum() for leaf in jax.tree.leaves(stop_gradients(params, config)))

    for config, frozen in (
        (OptimizerConfig(freeze_embeddings=True), {"embeddings"}),
        (OptimizerConfig(freeze_layers=1), {"embeddings", "0"}),
        (OptimizerConfig(freeze_layers=2), {"embeddings", "0", "1"}),
    ):
        grads = jax.grad(loss)(params, config)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            assert np.any(leaf) == (block_of(path_name(path)) not in frozen), path_name(path)
