"""One attention function, several kernels.

`sequence_ids` is the only mask there is: a token attends to the tokens that carry the same non-zero sequence id.
A query that has none (padding) gets some finite output that nothing reads.

A backend that was asked for and cannot serve raises `AttentionError`; none ever stands in for another.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import spmd
from jax.experimental.pallas.ops.tpu import flash_attention as tpu_flash
from jaxtyping import Array, Bool, Float, Int

from jaxbert.config import UserError
from jaxbert.model.dropout import dropout

Backend = Literal["explicit", "xla", "cudnn", "tpu_flash"]


class AttentionError(UserError):
    """An attention backend that cannot serve what was asked of it."""


def attend(
    query_BxLxNxH: Float[Array, "B L N H"],
    key_BxLxNxH: Float[Array, "B L N H"],
    value_BxLxNxH: Float[Array, "B L N H"],
    sequence_ids_BxL: Int[Array, "B L"],
    *,
    backend: Backend = "explicit",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    one_sequence: bool = False,
) -> Float[Array, "B L N H"]:
    """Softmax attention within each sequence of each row (Vaswani et al. 2017, section 3.2.1).

    Args:
      sequence_ids_BxL: 0 is padding, 1..S the sequence that a token belongs to.
      backend: the kernel; all but "explicit" need dropout_rate 0 or dropout_key None.
      dropout_rate: share of the attention probabilities that are dropped, where there is a key.
      dropout_key: None: no dropout.
      one_sequence: every row holds at most one sequence, which starts at position 0. "cudnn" then gets lengths
        instead of a mask, which is its fast path.

    Raises AttentionError when the backend cannot serve here.
    """
    if dropout_key is None:
        dropout_rate = 0.0
    _check(backend, query_BxLxNxH, dropout_rate)
    arrays = (query_BxLxNxH, key_BxLxNxH, value_BxLxNxH, sequence_ids_BxL)
    if backend == "explicit":
        return _explicit(*arrays, dropout_rate, dropout_key)
    if backend == "xla":
        mask_Bx1xLxL = same_sequence(sequence_ids_BxL)[:, None]
        return jax.nn.dot_product_attention(*arrays[:3], mask=mask_Bx1xLxL, implementation="xla")
    if backend == "cudnn":
        return _cudnn(*arrays, one_sequence)
    return _tpu_flash(*arrays)


def same_sequence(sequence_ids_BxL: Int[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Who may attend to whom: True where query (second axis) and key (third) are of one sequence, padding of none."""
    same_BxLxL = sequence_ids_BxL[:, :, None] == sequence_ids_BxL[:, None, :]
    return same_BxLxL & (sequence_ids_BxL != 0)[:, None, :]


def _check(backend: Backend, query: Float[Array, "B L N H"], dropout_rate: float) -> None:
    platform = jax.default_backend()
    if backend != "explicit" and dropout_rate > 0.0:
        raise AttentionError(
            f"attention backend {backend!r} has no dropout: set attention_dropout to 0 or attention_backend to 'explicit'"
        )
    if backend == "cudnn" and platform != "gpu":
        raise AttentionError(
            f"attention backend 'cudnn' needs a GPU, and jax runs on {platform}: use 'explicit' or 'xla'"
        )
    if backend == "cudnn" and query.dtype not in (jnp.bfloat16, jnp.float16):
        raise AttentionError(f"attention backend 'cudnn' needs model.dtype 'bfloat16', and got {query.dtype}")
    if backend == "tpu_flash" and platform != "tpu":
        raise AttentionError(
            f"attention backend 'tpu_flash' needs a TPU, and jax runs on {platform}: use 'explicit' or 'xla'"
        )


def _explicit(query, key, value, sequence_ids_BxL, dropout_rate, dropout_key):
    # Scaling the queries costs less than scaling the scores, of which there are more.
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    # Softmax in float32: bfloat16 has 8 bits of mantissa, and the sum runs over every key.
    scores_BxNxLxL = jnp.einsum("bqnh,bknh->bnqk", query, key, preferred_element_type=jnp.float32)
    mask_Bx1xLxL = same_sequence(sequence_ids_BxL)[:, None]
    # A finite fill: with -inf, a padding query, which has no key at all, would be NaN and poison every gradient.
    scores_BxNxLxL = jnp.where(mask_Bx1xLxL, scores_BxNxLxL, np.finfo(np.float32).min)
    weights_BxNxLxL = jax.nn.softmax(scores_BxNxLxL, axis=-1).astype(value.dtype)
    weights_BxNxLxL = dropout(weights_BxNxLxL, dropout_rate, dropout_key)
    return jnp.einsum("bnqk,bknh->bqnh", weights_BxNxLxL, value)


def _cudnn(query, key, value, sequence_ids_BxL, one_sequence):
    if not one_sequence:
        mask_Bx1xLxL = same_sequence(sequence_ids_BxL)[:, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask_Bx1xLxL, implementation="cudnn")
    # A row of padding alone still needs a key, or its output would be 0/0.
    lengths_B = jnp.maximum(jnp.sum(sequence_ids_BxL != 0, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths_B, implementation="cudnn")


def _tpu_flash(query, key, value, sequence_ids_BxL):
    length = query.shape[1]
    if length % 128:
        raise AttentionError(f"attention backend 'tpu_flash' needs rows of a multiple of 128 tokens, and got {length}")
    scale = query.shape[-1] ** -0.5

    def kernel(query_BxLxNxH, key_BxLxNxH, value_BxLxNxH, ids_BxL):
        heads_first = (x.swapaxes(1, 2) for x in (query_BxLxNxH, key_BxLxNxH, value_BxLxNxH))
        segments = tpu_flash.SegmentIds(q=ids_BxL, kv=ids_BxL)
        return tpu_flash.flash_attention(*heads_first, segment_ids=segments, sm_scale=scale).swapaxes(1, 2)

    if jax.sharding.get_abstract_mesh().empty:
        return kernel(query, key, value, sequence_ids_BxL)
    # The partitioner cannot split a Pallas kernel: each device runs it on its own rows and heads.
    tokens = spmd.logical_to_mesh_axes(("batch", None, "heads", None))
    ids = spmd.logical_to_mesh_axes(("batch", None))
    sharded = jax.shard_map(kernel, in_specs=(tokens, tokens, tokens, ids), out_specs=tokens, check_vma=False)
    return sharded(query, key, value, sequence_ids_BxL)
