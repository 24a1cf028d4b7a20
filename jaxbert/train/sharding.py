"""Where arrays lie: one mesh (data, fsdp, tensor) and one table from logical axis names to its axes.

Modules name the axes of their parameters (`nn.with_logical_partitioning`) and say nothing of devices; `RULES` is the
only place that does. One device is the same program with a mesh of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbert.config import MeshConfig, UserError

MeshAxes = str | tuple[str, ...] | None
Rules = Sequence[tuple[str, MeshAxes]]

AXES = ("data", "fsdp", "tensor")
"""Names of the mesh axes, in the order in which devices are laid out (the last one between nearest neighbours)."""

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    # Parameters are stored in parts over fsdp along the model width, and computed in parts over tensor.
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("kv", None),
    ("layers", None),
    ("position", None),
    # Of low-rank adapters.
    ("rank", None),
    # Hidden states are split by rows alone: fsdp already splits their rows.
    ("activation_embed", None),
    ("length", None),
    ("predictions", None),
)
"""Logical axis -> mesh axis, mesh axes, or None (replicated). Every axis that a module names must stand here."""


class ShardingError(UserError):
    """A parameter, batch or rule that does not fit the mesh; its text is one line that names it."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices of all processes (or of `devices`), in the shape that `config` asks for."""
    devices = jax.devices() if devices is None else devices
    sharers, rest = divmod(len(devices), max(config.fsdp * config.tensor, 1))
    data = sharers if config.data == -1 else config.data
    shape = (data, config.fsdp, config.tensor)
    if min(shape) < 1 or rest or data != sharers:
        raise ShardingError(
            f"mesh.data ({config.data}) x mesh.fsdp ({config.fsdp}) x mesh.tensor ({config.tensor}) "
            f"does not make the {len(devices)} devices there are"
        )
    # Auto: the compiler lays out what the shardings of parameters and batch leave open; linen knows no Explicit axes.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def rule_table(rules: Rules = RULES) -> dict[str, MeshAxes]:
    """`rules` as a mapping. Raises ShardingError when two of them place the same logical axis differently."""
    table: dict[str, MeshAxes] = {}
    for name, axes in rules:
        if name in table and table[name] != axes:
            raise ShardingError(f'sharding rules collide: "{name}" goes to {table[name]} and to {axes}')
        table[name] = axes
    return table


def partition_spec(names: Sequence[str | None], rules: Rules = RULES, parameter: str = "array") -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical names (None: replicated).

    Raises ShardingError, naming `parameter`, for a name without a rule and for two dimensions on one mesh axis.
    """
    table = rule_table(rules)
    unknown = [name for name in names if name is not None and name not in table]
    if unknown:
        raise ShardingError(f'{parameter}: logical axis "{unknown[0]}" has no rule in jaxbert.train.sharding.RULES')
    axes = [None if name is None else table[name] for name in names]
    used = [axis for entry in axes for axis in _as_tuple(entry)]
    repeated = sorted({axis for axis in used if used.count(axis) > 1})
    if repeated:
        raise ShardingError(f'{parameter}: axes {tuple(names)} would lie on the mesh axis "{repeated[0]}" twice')
    return PartitionSpec(*axes)


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes


def state_shardings(mesh: Mesh, abstract_state: Any, rules: Rules = RULES) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes, boxed with logical axis names or not.

    What carries no names (counters) is replicated. Optimizer moments carry the names of their parameters, because
    `optimizer.init` maps over the boxed tree. Raises ShardingError naming the parameter that does not fit.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, meta.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        name = path_name(path)
        spec = partition_spec(leaf.names, rules, name)
        for dimension, (size, axes) in enumerate(zip(leaf.value.shape, spec, strict=True)):
            parts = int(np.prod([mesh.shape[axis] for axis in _as_tuple(axes)], initial=1))
            if size % parts:
                raise ShardingError(
                    f'{name}: "{leaf.names[dimension]}" ({size}) is not divisible by mesh.{axes} ({parts})'
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, abstract_state, is_leaf=meta.is_axis_metadata)


def path_name(path: Any) -> str:
    """A tree path as 'encoder/layer_0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def unbox(tree: Any) -> Any:
    """The tree without its boxes of axis names; places nothing."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, meta.Partitioned) else leaf, tree, is_leaf=meta.is_axis_metadata
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows in parts over the devices that share the batch; the devices along `tensor` hold the same rows."""
    return NamedSharding(mesh, partition_spec(["batch"]))


def process_slice(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process loads part `index` of the `count` equal parts of each global batch.

    Processes that hold different shards of the same rows (a `tensor` axis across hosts) get the same index. Raises
    ShardingError when the rows of two processes overlap in part.
    """
    sharers = mesh.shape["data"] * mesh.shape["fsdp"]
    rows_of: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((sharers,)).items():
        rows_of.setdefault(device.process_index, set()).update(range(sharers)[rows])
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, parts)) != sharers or len({len(rows) for rows in parts}) > 1:
        raise ShardingError(
            f"mesh.tensor ({mesh.shape['tensor']}) splits the devices of a process unevenly: choose a divisor or a "
            "multiple of the devices per process"
        )
    mine = tuple(sorted(rows_of[jax.process_index()]))
    return parts.index(mine), len(parts)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays on the mesh from this process's rows of the batch (`process_slice` says which rows).

    Raises ShardingError when the rows cannot be divided over the devices.
    """
    sharding = batch_sharding(mesh)
    count = process_slice(mesh)[1]
    sharers = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, values in batch.items():
        if len(values) * count % sharers:
            raise ShardingError(
                f"{name}: {len(values) * count} rows in the global batch are not divisible by the {sharers} devices that share it"
            )
    return {name: jax.make_array_from_process_local_data(sharding, values) for name, values in batch.items()}
