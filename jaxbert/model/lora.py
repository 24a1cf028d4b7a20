"""Low-rank adapters of kernels (LoRA, Hu et al. 2021, section 4.1): W + (alpha / rank) A B, of which A and B alone are trained.

The modules stay as they are: they are called with the sums (`merge`). An adapter of a kernel [inputs..., outputs...] is
"a" [inputs..., rank] and "b" [rank, outputs...]; of blocks that are stacked, both have the axis of layers in front.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PROJECTIONS: Mapping[str, tuple[str, str]] = {
    "query": ("attention", "query"),
    "key": ("attention", "key"),
    "value": ("attention", "value"),
    "attention_output": ("attention", "output"),
    "intermediate": ("feed_forward", "intermediate"),
    "feed_forward_output": ("feed_forward", "output"),
}
"""What may have an adapter, and its module in a block."""
_CONTRACTED = {"attention_output": 2}
"""Axes of a kernel that it contracts, where that is not 1."""
Adapters = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Block ("layers_3", or "layers" of a stack) -> projection -> "a" and "b"."""


def init_adapters(key: jax.Array, encoder: Mapping[str, Any], rank: int, targets: Sequence[str]) -> dict[str, Any]:
    """Fresh adapters for the blocks of an encoder, whose parameters are boxed with their logical axis names; boxed likewise.

    As in Hugging Face's peft (tuners/lora/layer.py, reset_lora_parameters): A is uniform within 1 / sqrt(inputs), which is what
    its kaiming_uniform with a = sqrt(5) comes to, and B is 0, so that the encoder computes what it did.
    """
    adapters: dict[str, Any] = {}
    for block in sorted(name for name in encoder if name.startswith("layers")):
        adapters[block] = {}
        for projection in sorted(targets):
            key, own = jax.random.split(key)
            module, name = PROJECTIONS[projection]
            kernel = encoder[block][module][name]["kernel"]
            lead = int(block == "layers")
            cut = lead + _CONTRACTED.get(projection, 1)
            shape, axes = kernel.value.shape, kernel.names
            bound = 1 / math.sqrt(math.prod(shape[lead:cut]))
            a = jax.random.uniform(own, (*shape[:cut], rank), jnp.float32, -bound, bound)
            b = jnp.zeros((*shape[:lead], rank, *shape[cut:]), jnp.float32)
            adapters[block][projection] = {
                "a": nn.LogicallyPartitioned(a, (*axes[:cut], "rank")),
                "b": nn.LogicallyPartitioned(b, (*axes[:lead], "rank", *axes[cut:])),
            }
    return adapters


def merge(encoder: Mapping[str, Any], adapters: Adapters, scale: float) -> dict[str, Any]:
    """The parameters of an encoder with `scale` x A B added to its kernels; no gradient flows to what was there before."""
    merged: dict[str, Any] = jax.tree.map(jax.lax.stop_gradient, dict(encoder))
    for block, projections in adapters.items():
        for projection, adapter in projections.items():
            module, name = PROJECTIONS[projection]
            dense = merged[block][module][name]
            product = jax.vmap(_product) if block == "layers" else _product
            dense["kernel"] = dense["kernel"] + scale * product(adapter["a"], adapter["b"])
    return merged


def _product(a: Float[Array, "... R"], b: Float[Array, "R ..."]) -> Float[Array, "..."]:
    # Small products, added to weights: TPUs and GPUs would round them to fewer digits than the weights have.
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
