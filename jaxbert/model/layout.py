"""Where activations lie on the mesh: modules name the axes, and whoever traces them gives the rules that place the names.

`flax.linen.logical_axis_rules` cannot serve here: under its rules every boxed parameter is constrained when it is unboxed, whether or not
constraints are wanted; and flax's DenseGeneral, which modules of users may have, unboxes its kernel flattened, with the axes of the
kernel as it will be.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
from flax.linen import spmd
from jax.sharding import PartitionSpec

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

_RULES: contextvars.ContextVar[Rules] = contextvars.ContextVar("axis_rules", default=())


_CONSTRAINING: contextvars.ContextVar[bool] = contextvars.ContextVar("constraining", default=True)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def axis_rules(rules: Rules, *, constraining: bool = True, platform: str | None = None) -> Iterator[None]:
    """Within: `constrain` (unless `constraining` is False) and `mesh_axes` go by these rules, on the mesh in jax's context.

    platform: what the program is for ("cpu", "gpu", "tpu"), where that may be another machine than this one. None: jax's default.
    """
    tokens = [
        (_RULES, _RULES.set(rules)),
        (_CONSTRAINING, _CONSTRAINING.set(constraining)),
        (_PLATFORM, _PLATFORM.set(platform)),
    ]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def platform() -> str:
    """What the program that is being traced is for, as `axis_rules` says: "cpu", "gpu" or "tpu". Without that: jax's default."""
    return _PLATFORM.get() or jax.default_backend()


def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """`x` with its axes placed as the rules say; None, and names without a rule, are not split. Without rules or mesh: `x`."""
    return spmd.with_logical_constraint(x, names, rules=_RULES.get()) if _CONSTRAINING.get() else x


def mesh_axes(names: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of these names, for `jax.shard_map`."""
    axes = spmd.logical_to_mesh_axes(names, _RULES.get())
    return PartitionSpec() if axes is None else axes


def is_split(name: str) -> bool:
    """Whether the rules put the axis in parts over several devices of the mesh in jax's context."""
    (axes,) = mesh_axes((name,)) or (None,)
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in ((axes,) if isinstance(axes, str) else axes or ())) > 1
