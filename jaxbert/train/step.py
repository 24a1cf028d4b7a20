"""One training step and one evaluation step: pure functions of (state, batch), jitted once with explicit shardings."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxbert.model.layout import axis_rules, constrain
from jaxbert.train.losses import Sums, inverse_weight
from jaxbert.train.optimizer import part
from jaxbert.train.sharding import RULES, batch_sharding
from jaxbert.train.state import Batch, Task, TrainState

Metrics = dict[str, Any]
"""Name -> (sum, weight) for what the task measures; name -> scalar for loss, grad_norm, learning_rate, nonfinite, tokens."""


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulation_steps: int,
    trained: Sequence[str] | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after one optimizer step on the global batch, and its metrics.

    The loss is the sum over the task's terms of coefficient x mean over the *global* batch's targets, so
    `accumulation_steps` changes memory and time, and which dropout masks are drawn, and nothing else. It must divide the rows.
    A step whose loss or gradient norm is not finite leaves parameters and optimizer as they are, counts itself, and reports
    0 for the task's sums and weights. `learning_rate` is the rate of this update; skipped steps do not advance it.
    `trained`: groups of the parameters that have gradients; the others stay as they are, and `optimizer` is one `of_groups`.
    """
    with jax.named_scope("weights"):
        totals = task.weights(batch)
        coefficients = {
            name: coefficient * inverse_weight(totals[name])
            for name, coefficient in task.loss_weights.items()
            if coefficient
        }
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    before = state.params if trained is None else part(state.params, trained)

    def forward(params: Any, batch: Batch, key: jax.Array) -> dict[str, Sums]:
        return task.forward(params if trained is None else {**state.params, **params}, batch, key)

    loss, sums, grads = _accumulate(forward, before, batch, coefficients, key, accumulation_steps)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def apply() -> tuple[Any, Any]:
        takes_norm = optax.with_extra_args_support(optimizer)
        updates, opt_state = takes_norm.update(grads, state.opt_state, state.params, grad_norm=grad_norm)
        return optax.apply_updates(before, updates), opt_state

    with jax.named_scope("optimizer"):
        params, opt_state = jax.lax.cond(finite, apply, lambda: (before, state.opt_state))
    skipped = 1 - finite.astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=params if trained is None else {**state.params, **params},
        opt_state=opt_state,
        nonfinite_steps=state.nonfinite_steps + skipped,
        nonfinite_in_a_row=(state.nonfinite_in_a_row + skipped) * skipped,
    )
    metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), sums) | {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(schedule(state.step - state.nonfinite_steps), jnp.float32),
        "nonfinite": skipped,
        "tokens": jnp.sum(batch["sequence_ids"] > 0, dtype=jnp.int32),
    }
    return new_state, metrics


def _accumulate(
    forward: Callable[[Any, Batch, jax.Array], dict[str, Sums]],
    params: Any,
    batch: Batch,
    coefficients: Mapping[str, Array],
    key: jax.Array,
    accumulation_steps: int,
) -> tuple[Float[Array, ""], dict[str, Sums], Any]:
    """Loss, metric sums and gradients of the batch, computed in `accumulation_steps` microbatches."""

    def loss_of(params: Any, batch: Batch, key: jax.Array) -> tuple[Array, dict[str, Sums]]:
        with jax.named_scope("forward"):
            sums = forward(params, batch, key)
        terms = [coefficient * sums[name][0] for name, coefficient in coefficients.items()]
        return jnp.sum(jnp.stack(terms)), sums

    def of_microbatch(microbatch: Batch, number: Array | int) -> tuple[Array, dict[str, Sums], Any]:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, sums), grads = grad(params, microbatch, jax.random.fold_in(key, number))
        return loss, sums, grads

    if accumulation_steps == 1:
        return of_microbatch(batch, 0)

    def add(carry: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
        number, microbatch = numbered
        return jax.tree.map(jnp.add, carry, of_microbatch(microbatch, number)), None

    microbatches = split_rows(batch, accumulation_steps)
    shapes = jax.eval_shape(of_microbatch, jax.tree.map(lambda values: values[0], microbatches), 0)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    totals, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation_steps), microbatches))
    return totals


def split_rows(batch: Batch, parts: int) -> dict[str, Array]:
    """[B, ...] -> [parts, B / parts, ...]: part a has the rows a, a + parts, a + 2 x parts, ...

    A device holds a contiguous range of rows. Taking every `parts`-th of them leaves each on its device; contiguous parts would
    send nearly all of them to another.
    """

    def split(values: Array) -> Array:
        strided = values.reshape(values.shape[0] // parts, parts, *values.shape[1:]).swapaxes(0, 1)
        return constrain(strided, (None, "batch") + (None,) * (values.ndim - 1))

    return {name: split(values) for name, values in batch.items()}


def eval_step(state: TrainState, batch: Batch, *, task: Task) -> dict[str, Sums]:
    """(sum, weight) of every loss term and metric over the batch, without dropout."""
    with jax.named_scope("forward"):
        return task.forward(state.params, batch, None)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: TrainState,
    mesh: Mesh,
    *,
    seed: int,
    accumulation_steps: int = 1,
    trained: Sequence[str] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` for one mesh, jitted: the state is donated (the one handed in is used up), metrics are replicated.

    `shardings`: as from `create_state`. `schedule` is the one inside `optimizer`. `trained`: as in `train_step`. It compiles once for each batch shape.
    """
    step = functools.partial(
        train_step,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        seed=seed,
        accumulation_steps=accumulation_steps,
        trained=trained,
    )
    return jax.jit(
        _laid_out(step, mesh),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )


def make_eval_step(task: Task, shardings: TrainState, mesh: Mesh) -> Callable[[TrainState, Batch], dict[str, Sums]]:
    """`eval_step` for one mesh, jitted; the sums are replicated and the state stays usable."""
    return jax.jit(
        _laid_out(functools.partial(eval_step, task=task), mesh),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def make_outputs_step(
    outputs: Callable[[Any, Batch], Any], shardings: TrainState, mesh: Mesh
) -> Callable[[TrainState, Batch], Any]:
    """`outputs(params, batch)` for one mesh, jitted: what the host decodes, replicated, so that every process has all of it."""

    def step(state: TrainState, batch: Batch) -> Any:
        with jax.named_scope("forward"):
            return outputs(state.params, batch)

    return jax.jit(
        _laid_out(step, mesh),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _laid_out(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`step`, traced where the modules find the mesh, and the rules that place their logical axes on it."""

    # Over data alone, the batch's own layout says it all; constraints then only keep XLA from combining collectives, which took
    # a third of a small model's speed on two CPU devices.
    constraining = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    # Compiled for devices that are elsewhere, it is the program that they would compile.
    platform = mesh.devices.flat[0].platform

    @functools.wraps(step, updated=())
    def traced(state: TrainState, batch: Batch) -> Any:
        with (
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
            axis_rules(RULES, constraining=constraining, platform=platform),
        ):
            return step(state, batch)

    return traced
