"""The rules cover the model, name what does not fit, and really split parameters, moments and batches."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxbert.config import MeshConfig, ModelConfig, OptimizerConfig
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train import sharding
from jaxbert.train.optimizer import make_optimizer
from jaxbert.train.sharding import (
    RULES,
    ShardingError,
    batch_sharding,
    make_mesh,
    partition_spec,
    path_name,
    process_slice,
    put_batch,
    rule_table,
    state_shardings,
)
from jaxbert.train.state import StateError, abstract_state, create_state, with_params

TINY = ModelConfig(
    vocab_size=200, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_position_embeddings=8
)


def make(task, mesh, seed=0):
    optimizer = make_optimizer(OptimizerConfig(), 10, jax.eval_shape(task.init, jax.random.key(0)))
    return create_state(task, optimizer, seed, mesh)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=-1, fsdp=4), (2, 4, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_mesh_shape(config, shape):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_mesh_of_one_device():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=2, tensor=2)])
def test_mesh_that_does_not_fit(config):
    with pytest.raises(ShardingError, match=r"mesh\.data .* does not make the 8 devices there are"):
        make_mesh(config)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_axis_of_every_parameter_has_a_rule(scan_layers):
    task = PretrainingTask(dataclasses.replace(TINY, scan_layers=scan_layers))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    boxes = jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    assert boxes
    assert all(isinstance(box, nn.Partitioned) for box in boxes)
    assert all(len(box.names) == box.value.ndim for box in boxes)
    named = {name for box in boxes for name in box.names} - {None}
    assert named <= set(rule_table(RULES))
    assert {"vocab", "embed", "heads", "kv", "mlp", "position"} <= named
    assert ("layers" in named) == scan_layers


def test_every_axis_of_every_activation_has_a_rule(monkeypatch):
    """linen leaves an axis without a rule unsplit in silence, so the names are caught here."""
    seen = set()

    def record(x, names, *args, **kwargs):
        seen.update(names)
        assert len(names) == x.ndim
        return x

    monkeypatch.setattr(nn.spmd, "with_logical_constraint", record)
    jax.eval_shape(PretrainingTask(TINY).init, jax.random.key(0))
    assert {"batch", "mlp"} <= seen
    assert seen - {None} <= set(rule_table(RULES))


def test_colliding_rules_raise():
    with pytest.raises(ShardingError, match=r'rules collide: "mlp" goes to tensor and to fsdp'):
        rule_table((*RULES, ("mlp", "fsdp")))


def test_unknown_axis_is_named():
    with pytest.raises(ShardingError, match=r'head/kernel: logical axis "expert" has no rule'):
        partition_spec(("embed", "expert"), parameter="head/kernel")


def test_two_dimensions_on_one_mesh_axis_raise():
    with pytest.raises(ShardingError, match=r'kernel: axes .* would lie on the mesh axis "tensor" twice'):
        partition_spec(("vocab", "mlp"), parameter="kernel")
    with pytest.raises(ShardingError, match=r'the mesh axis "fsdp" twice'):
        partition_spec(("batch", "embed"))


def test_partition_spec():
    assert partition_spec(("embed", "heads", "kv")) == PartitionSpec("fsdp", "tensor", None)
    assert partition_spec((None, "vocab")) == PartitionSpec(None, "tensor")
    assert partition_spec(("batch", "length")) == PartitionSpec(("data", "fsdp"), None)


def test_parameter_that_cannot_be_divided_is_named():
    mesh = make_mesh(MeshConfig(fsdp=8))
    boxed = {"dense": {"kernel": nn.LogicallyPartitioned(jnp.zeros((12, 4)), ("embed", "mlp"))}}
    with pytest.raises(ShardingError, match=r'^dense/kernel: "embed" \(12\) is not divisible by mesh\.fsdp \(8\)$'):
        state_shardings(mesh, boxed)


def test_parameters_and_moments_are_really_split():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state, _ = make(PretrainingTask(TINY), mesh)
    layer = state.params["encoder"]["layers_0"]
    expected = {
        "word": (state.params["encoder"]["embeddings"]["word"]["embedding"], (256, 16), (128, 8)),
        "query": (layer["attention"]["query"]["kernel"], (16, 2, 8), (8, 1, 8)),
        "intermediate": (layer["feed_forward"]["intermediate"]["kernel"], (16, 32), (8, 16)),
        "mlm bias": (state.params["mlm"]["bias"], (256,), (128,)),
        "scale": (layer["attention"]["layer_norm"]["scale"], (16,), (8,)),
    }
    for name, (array, shape, part) in expected.items():
        assert array.shape == shape, name
        assert {shard.data.shape for shard in array.addressable_shards} == {part}, name
    for moment in ("mu", "nu"):
        placed = jax.tree.map(
            lambda p, m: p.sharding == m.sharding, state.params, optax.tree.get(state.opt_state, moment)
        )
        assert all(jax.tree.leaves(placed))
    assert state.step.sharding.is_fully_replicated


def test_initial_parameters_do_not_depend_on_the_mesh():
    task = PretrainingTask(TINY)
    one, _ = make(task, make_mesh(MeshConfig(), jax.devices()[:1]), seed=3)
    many, _ = make(task, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), seed=3)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(one.params), jax.tree.leaves(many.params), strict=True
    ):
        np.testing.assert_array_equal(left, right, err_msg=path_name(path))
    other, _ = make(task, make_mesh(MeshConfig(), jax.devices()[:1]), seed=4)
    word = [state.params["encoder"]["embeddings"]["word"]["embedding"] for state in (one, other)]
    assert not np.array_equal(*word)


def test_abstract_state_matches_the_real_one():
    task, mesh = PretrainingTask(TINY), make_mesh(MeshConfig(fsdp=2))
    optimizer = make_optimizer(OptimizerConfig(name="lamb"), 10, jax.eval_shape(task.init, jax.random.key(0)))
    state, shardings = create_state(task, optimizer, 0, mesh)
    abstract = abstract_state(task, optimizer, mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(state) == jax.tree.structure(shardings)
    for real, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype, real.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_batch_rows_lie_in_order_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = np.arange(8, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32)
    array = put_batch({"input_ids": rows}, mesh)["input_ids"]
    assert array.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    np.testing.assert_array_equal(array, rows)
    held = {
        device: np.asarray(shard.data)[:, 0].tolist() for shard in array.addressable_shards for device in [shard.device]
    }
    # Neighbours along tensor hold the same two rows.
    assert [held[device] for device in mesh.devices.flat] == [[0, 1]] * 2 + [[2, 3]] * 2 + [[4, 5]] * 2 + [[6, 7]] * 2


def test_batch_that_cannot_be_divided_is_named():
    with pytest.raises(ShardingError, match=r"^input_ids: 12 rows .* not divisible by the 8 devices"):
        put_batch({"input_ids": np.zeros((12, 4), np.int32)}, make_mesh(MeshConfig()))


def slice_of(monkeypatch, mesh, processes, index):
    """process_slice on `mesh`, were its devices spread over processes like this."""
    fakes = [types.SimpleNamespace(process_index=process) for process in processes]
    real = batch_sharding(mesh).devices_indices_map((mesh.shape["data"] * mesh.shape["fsdp"],))
    pairs = [(fake, real[device]) for fake, device in zip(fakes, mesh.devices.flat, strict=True)]
    table = types.SimpleNamespace(items=lambda: pairs)
    monkeypatch.setattr(
        sharding, "batch_sharding", lambda mesh: types.SimpleNamespace(devices_indices_map=lambda _: table)
    )
    monkeypatch.setattr(jax, "process_index", lambda: index)
    return process_slice(mesh)


@pytest.mark.parametrize(
    ("config", "processes", "slices"),
    [
        (MeshConfig(), [0] * 8, {0: (0, 1)}),
        (MeshConfig(), [0] * 4 + [1] * 4, {0: (0, 2), 1: (1, 2)}),
        # A torus may deal the devices of a process out: its rows are then not neighbours, and still its own.
        (MeshConfig(), [0, 0, 1, 1, 0, 0, 1, 1], {0: (0, 2), 1: (1, 2)}),
        # Eight devices along tensor span both processes, which need the same rows.
        (MeshConfig(tensor=8), [0] * 4 + [1] * 4, {0: (0, 1), 1: (0, 1)}),
        (MeshConfig(tensor=4), [0, 0, 1, 1, 2, 2, 3, 3], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ],
)
def test_process_slice(monkeypatch, config, processes, slices):
    for index, expected in slices.items():
        with monkeypatch.context() as patch:
            assert slice_of(patch, make_mesh(config), processes, index) == expected


def test_process_slice_refuses_rows_that_overlap_in_part(monkeypatch):
    with pytest.raises(ShardingError, match=r"^mesh\.tensor \(2\) splits the devices of a process unevenly"):
        slice_of(monkeypatch, make_mesh(MeshConfig(tensor=2)), [0, 0, 0, 1, 1, 1, 2, 2], 0)


def test_loaded_parameters_lie_where_the_fresh_ones_lay():
    task = PretrainingTask(TINY)
    state, shardings = make(task, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    loaded = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float64), state.params["encoder"])
    changed = with_params(state, {"encoder": loaded})
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.5), changed.params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, changed.params["mlm"], state.params["mlm"])
    for leaf, wanted in zip(jax.tree.leaves(changed.params), jax.tree.leaves(shardings.params), strict=True):
        assert leaf.sharding == wanted
        assert leaf.dtype == jnp.float32
    with pytest.raises(StateError, match=r"encoder/pool: the state has no such parameter"):
        with_params(state, {"encoder": {"pool": np.zeros(3)}})
    with pytest.raises(StateError, match=r"nsp/dense/bias is \[3\] and the state has \[2\]"):
        with_params(state, {"nsp": {"dense": {"bias": np.zeros(3)}}})
