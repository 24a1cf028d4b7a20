"""AdamW and LAMB from Optax's parts, their learning-rate schedules, and the rules for weight decay.

Differs from BERT: Google's AdamWeightDecayOptimizer (google-research/bert, optimization.py) leaves out Adam's bias
correction; ours has it, as Optax, torch and Loshchilov & Hutter 2019 do. Google's first update is 3.2 times as large.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from jaxbert.config import OptimizerConfig, UserError
from jaxbert.train.sharding import path_name, unbox

DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"(^|/)bias$", False),
    (r"(^|/)scale$", False),
    (r"(^|/)kernel$", True),
    (r"(^|/)embedding$", True),
    (r"^lora/.*/[ab]$", True),
)
"""(regular expression searched for in the '/'-joined parameter path, decayed?); the first that matches decides.

As in bert/optimization.py, which excludes "LayerNorm", "layer_norm" and "bias": kernels and embeddings decay,
and low-rank adapters, which are parts of kernels, too.
"""


class OptimizerError(UserError):
    """An optimizer that cannot be built for these parameters; its text is one line that names the parameter."""


def describe_decay(params: Any, rules: tuple[tuple[str, bool], ...] = DECAY_RULES) -> list[tuple[str, str, bool]]:
    """(path, rule, decayed) of every parameter, in tree order.

    `params`: arrays or shapes, boxed or not. Raises OptimizerError naming the first parameter that no rule covers.
    """
    described = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=meta.is_axis_metadata):
        name = path_name(path)
        rule = next(((pattern, decayed) for pattern, decayed in rules if re.search(pattern, name)), None)
        if rule is None:
            raise OptimizerError(
                f"{name}: no weight decay rule covers it; add one to jaxbert.train.optimizer.DECAY_RULES"
            )
        described.append((name, *rule))
    return described


def decay_mask(params: Any) -> Any:
    """A tree like `params` with True where weight decay applies."""
    structure = jax.tree.structure(params, is_leaf=meta.is_axis_metadata)
    return jax.tree.unflatten(structure, [decayed for _, _, decayed in describe_decay(params)])


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of a step (0 for the first), by `config.schedule`, for a run of `num_steps`.

    0 at step 0, the peak at the end of the warm-up, and `final_learning_rate_share` of the peak at step `num_steps - 1` and after it.
    Differs from BERT: Google's decay starts at step 0 and so falls short of the peak at the end of the warm-up, and would
    reach its end one step after the last.
    """
    peak, warmup, last = config.peak_learning_rate, config.num_warmup_steps(num_steps), num_steps - 1
    final = peak * config.final_learning_rate_share
    start, length = warmup, max(last - warmup, 1)
    if config.schedule == "wsd":
        length = min(max(round(config.wsd_decay_share * num_steps), 1), length)
        start = max(last - length, warmup)
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, length, alpha=config.final_learning_rate_share)
    else:
        decay = optax.linear_schedule(peak, final, length)
    pieces, boundaries = [decay], []
    if start > warmup:
        pieces, boundaries = [optax.constant_schedule(peak), decay], [start]
    if warmup:
        pieces, boundaries = [optax.linear_schedule(0.0, peak, warmup), *pieces], [warmup, *boundaries]
    return optax.join_schedules(pieces, boundaries)


def make_optimizer(config: OptimizerConfig, num_steps: int, params: Any) -> optax.GradientTransformation:
    """Clipping, then AdamW or LAMB with decay by `DECAY_RULES`, at the rates of `make_schedule`.

    `params`: shapes are enough (`jax.eval_shape(task.init, key)`). Keep the boxes of axis names on: LAMB reads from
    them which parameters are stacked over layers. Raises OptimizerError for a parameter without a rule.
    """
    mask = decay_mask(params)
    parts = [clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm > 0 else []
    parts += [
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=mask),
    ]
    if config.name == "lamb":
        parts.append(scale_by_layer_trust_ratio(mask, stacked_axes(params)))
    if config.layer_decay != 1 or config.freeze_embeddings or config.freeze_layers:
        parts.append(scale_by_depth(config, params))
    return optax.chain(*parts, optax.scale_by_learning_rate(make_schedule(config, num_steps)))


def of_groups(optimizer: optax.GradientTransformation, groups: Sequence[str]) -> optax.GradientTransformationExtraArgs:
    """`optimizer` for some of the groups of the parameters: it has no moments for the others.

    It takes all parameters, and the gradients of these groups alone.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(updates, state, None if params is None else part(params, groups), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(part(params, groups)), update_fn)


def part(params: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Some groups ("encoder", "pooler") of the parameters."""
    return {name: params[name] for name in groups}


def scale_by_depth(config: OptimizerConfig, params: Any) -> optax.GradientTransformation:
    """Each update times its parameter's share of the learning rate, by its depth in the encoder; 0 where it is frozen.

    Heads and pooler have share 1, as has the highest block; `params` as in `make_optimizer`. Raises OptimizerError where more
    blocks are to be frozen than there are, or blocks are not numbered.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=meta.is_axis_metadata)
    names = [path_name(path) for path, _ in leaves]
    stacked = next((leaf for name, (_, leaf) in zip(names, leaves, strict=True) if "encoder/layers/" in name), None)
    if stacked is not None:
        num_layers = unbox(stacked).shape[0]
    else:
        num_layers = 1 + max((int(n) for name in names for n in re.findall(r"encoder/layers_(\d+)/", name)), default=-1)
    if config.freeze_layers > num_layers:
        raise OptimizerError(
            f"optimizer.freeze_layers is {config.freeze_layers}, and the encoder has {num_layers} blocks"
        )
    embeddings = 0.0 if config.freeze_embeddings or config.freeze_layers else config.layer_decay**num_layers
    shares = [
        0.0 if number < config.freeze_layers else config.layer_decay ** (num_layers - 1 - number)
        for number in range(num_layers)
    ]

    def share(path: Any, leaf: Any) -> float | np.ndarray:
        name = path_name(path)
        if "encoder/embeddings/" in name:
            return embeddings
        if "encoder/layers/" in name:
            # Stacked blocks lie along the first axis.
            return np.array(shares, np.float32).reshape(-1, *[1] * (unbox(leaf).ndim - 1))
        found = re.search(r"encoder/layers_(\d+)/", name)
        return shares[int(found[1])] if found else 1.0

    factors = jax.tree_util.tree_map_with_path(share, params, is_leaf=meta.is_axis_metadata)

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda update, factor: update * factor, updates, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` with one multiplication for each element, which fuses into what follows.

    Optax divides and multiplies; XLA keeps the result of a division in memory, as large as the gradients. Who knows the norm
    already hands it to `update` as `grad_norm`, which saves reading all gradients once more.
    """

    def update_fn(
        updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any
    ) -> tuple[Any, Any]:
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def stacked_axes(params: Any) -> Any:
    """A tree like `params` with the position of the "layers" axis of each parameter, or -1 where it has none."""

    def position(leaf: Any) -> int:
        names = leaf.names if isinstance(leaf, meta.Partitioned) else ()
        return names.index("layers") if "layers" in names else -1

    return jax.tree.map(position, params, is_leaf=meta.is_axis_metadata)


def scale_by_layer_trust_ratio(adapted: Any, stacked: Any) -> optax.GradientTransformation:
    """LAMB's trust ratio ||p|| / ||u|| (You et al. 2020, algorithm 2), per layer, where `adapted` is True.

    `stacked`: as from `stacked_axes`; each slice along that axis is a layer with a ratio of its own, so that
    scanned and unscanned models train alike. A zero norm gives the ratio 1.
    Differs from optax.lamb, which adapts biases and LayerNorm scales too: the paper's reference
    code (lamb_optimizer.py in google-research/albert) excludes from the ratio what it excludes from decay, and so do we.
    """
    ratio = optax.scale_by_trust_ratio()

    def scale(update: jax.Array, param: jax.Array) -> Any:
        return ratio.update(update, optax.EmptyState(), param)[0]

    def scale_leaf(adapt: bool, axis: int, update: jax.Array, param: jax.Array) -> Any:
        if not adapt:
            return update
        return scale(update, param) if axis < 0 else jax.vmap(scale, axis, axis)(update, param)

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(scale_leaf, adapted, stacked, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
