"""The training state, the protocol of a task, and how a state is made: in parts, on the devices that keep them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxbert.config import UserError
from jaxbert.train.losses import Sums
from jaxbert.train.sharding import state_shardings, unbox

Batch = Mapping[str, Array]
"""Arrays whose first axis is the rows; `sequence_ids` [B, L] is always there (0 is padding)."""


class StateError(UserError):
    """Parameters that are not the state's; its text is one line that names the first of them."""


class Task(Protocol):
    """What differs between pretraining, tagging and question answering: the rest of the step is the same."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Coefficient of each loss term: the loss is the sum over terms of coefficient x sum / weight."""
        ...

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axis names."""
        ...

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Total weight of each loss term over the batch, from the data alone."""
        ...

    def forward(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, Sums]:
        """(sum, weight) of each loss term and metric over the batch. `dropout_key` None: no dropout."""
        ...


@flax.struct.dataclass
class TrainState:
    """All that a step changes. Every leaf is an array, so that it can be donated, sharded and saved."""

    step: Int[Array, ""]
    """Steps taken, the skipped ones included; the number of the next one."""
    params: Any
    """Parameters, without boxes of axis names."""
    opt_state: Any
    """Optax's state; its moments lie where their parameters lie."""
    nonfinite_steps: Int[Array, ""]
    """Steps of the run that were skipped for a loss or gradient that is not finite."""
    nonfinite_in_a_row: Int[Array, ""]
    """The last so many steps were skipped."""


def _initial(task: Task, optimizer: optax.GradientTransformation, key: jax.Array, boxed: bool) -> TrainState:
    params = task.init(key) if boxed else unbox(task.init(key))

    # One array each: a buffer that is used twice cannot be donated.
    def zero() -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    return TrainState(zero(), params, optimizer.init(params), zero(), zero())


def abstract_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with their shardings: what a checkpoint is restored into. Computes nothing.

    Raises ShardingError naming the first parameter that does not fit the mesh.
    """
    shapes = jax.eval_shape(lambda key: _initial(task, optimizer, key, boxed=True), jax.random.key(0))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        unbox(shapes),
        state_shardings(mesh, shapes),
    )


def create_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """A fresh state and the tree of its shardings.

    The parameters depend on the seed alone, not on the mesh. Each device computes the parts that it keeps, so a model
    that is too large for one device is never put together on one.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, optimizer, mesh))
    make = jax.jit(lambda key: _initial(task, optimizer, key, boxed=False), out_shardings=shardings)
    return make(jax.random.key(seed)), shardings


def with_params(state: TrainState, params: Mapping[str, Any]) -> TrainState:
    """The state with these parameters in place of its own, each laid out as the one that it replaces.

    `params`: a tree of numpy or jax arrays with all of the state's parameters or a part of them, such as the encoder of
    `jaxbert.load(path)`; the others stay. Raises StateError for one that the state has not, or has in another shape.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(state.params), sep="/")
    given: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    for path, array in given.items():
        if path not in flat:
            raise StateError(f"{path}: the state has no such parameter: leave it out of the tree")
        if np.shape(array) != flat[path].shape:
            raise StateError(
                f"{path} is {list(np.shape(array))} and the state has {list(flat[path].shape)}: make the task with the "
                "configuration that the parameters came with"
            )
        flat[path] = jax.device_put(np.asarray(array, flat[path].dtype), flat[path].sharding)
    return dataclasses.replace(state, params=traverse_util.unflatten_dict(flat, sep="/"))
