"""Where activations lie on the mesh: modules name the axes, and whoever traces them gives the rules that place the names.

`flax.linen.logical_axis_rules` cannot serve here: under its rules a boxed parameter is constrained whenever it is unboxed, and
DenseGeneral unboxes its kernel flattened, with the axes of the kernel as it will be.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
from flax.linen import spmd
from jax.sharding import PartitionSpec

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

_RULES: contextvars.ContextVar[Rules] = contextvars.ContextVar("axis_rules", default=())


@contextlib.contextmanager
def axis_rules(rules: Rules) -> Iterator[None]:
    """Within: `constrain` places axes by these rules, on the mesh that jax finds in its own context."""
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """`x` with its axes placed as the rules say; None, and names without a rule, are not split. Without rules or mesh: `x`."""
    return spmd.with_logical_constraint(x, names, rules=_RULES.get())


def mesh_axes(names: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of these names, for `jax.shard_map`."""
    axes = spmd.logical_to_mesh_axes(names, _RULES.get())
    return PartitionSpec() if axes is None else axes
