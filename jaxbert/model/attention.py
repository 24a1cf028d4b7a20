"""One attention function, several kernels.

`sequence_ids` is the only mask there is: a token attends to the tokens that carry the same non-zero sequence id.
A query that has none (padding) gets some finite output that nothing reads.

A backend that was asked for and cannot serve raises `AttentionError`; none ever stands in for another.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import flash_attention as tpu_flash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxbert.config import AttentionBackend, UserError
from jaxbert.model import gpu_flash, layout
from jaxbert.model.dropout import dropout, key_words
from jaxbert.model.layout import mesh_axes
from jaxbert.validation import FLASH_BLOCK, GPU_FLASH_HEADS

TAKES_SOME_QUERIES: tuple[AttentionBackend, ...] = ("explicit", "xla", "gpu_flash")
"""Backends that can be asked about some of the tokens only; the other kernels want as many queries as keys."""
HAS_DROPOUT: tuple[AttentionBackend, ...] = ("explicit", "gpu_flash")
"""Backends that can drop attention probabilities, and draw the same ones from the same key."""


class AttentionError(UserError):
    """An attention backend that cannot serve what was asked of it."""


def attend(
    query_BxQxNxH: Float[Array, "B Q N H"],
    key_BxLxNxH: Float[Array, "B L N H"],
    value_BxLxNxH: Float[Array, "B L N H"],
    sequence_ids_BxL: Int[Array, "B L"],
    query_ids_BxQ: Int[Array, "B Q"] | None = None,
    *,
    backend: AttentionBackend = "explicit",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    one_sequence: bool = False,
) -> Float[Array, "B Q N H"]:
    """Softmax attention within each sequence of each row (Vaswani et al. 2017, section 3.2.1).

    Args:
      sequence_ids_BxL: 0 is padding, 1..S the sequence that a token belongs to.
      query_ids_BxQ: those of the queries, where there are queries for some of the tokens only, which the backends in
        `TAKES_SOME_QUERIES` allow. None: one query for each token.
      backend: the kernel; those not in `HAS_DROPOUT` need dropout_rate 0 or dropout_key None.
      dropout_rate: share of the attention probabilities that are dropped, where there is a key.
      dropout_key: None: no dropout.
      one_sequence: every row holds at most one sequence, which starts at position 0. "cudnn" then gets lengths
        instead of a mask, which is its fast path.

    Raises AttentionError when the backend cannot serve here.
    """
    if dropout_key is None:
        dropout_rate = 0.0
    if dropout_rate >= 1.0:
        return jnp.zeros_like(query_BxQxNxH)
    _check(backend, query_BxQxNxH, dropout_rate, query_ids_BxQ is not None)
    arrays = (query_BxQxNxH, key_BxLxNxH, value_BxLxNxH)
    if backend in ("explicit", "xla"):
        mask_Bx1xQxL = same_sequence(sequence_ids_BxL, query_ids_BxQ)[:, None]
        if backend == "explicit":
            return _explicit(*arrays, mask_Bx1xQxL, dropout_rate, dropout_key)
        return jax.nn.dot_product_attention(*arrays, mask=mask_Bx1xQxL, implementation="xla")
    if backend == "gpu_flash":
        query_ids_BxQ = sequence_ids_BxL if query_ids_BxQ is None else query_ids_BxQ
        return _gpu_flash(*arrays, query_ids_BxQ, sequence_ids_BxL, dropout_rate, dropout_key)
    if backend == "cudnn":
        return _cudnn(*arrays, sequence_ids_BxL, one_sequence)
    return _tpu_flash(*arrays, sequence_ids_BxL)


def same_sequence(
    sequence_ids_BxL: Int[Array, "B L"], query_ids_BxQ: Int[Array, "B Q"] | None = None
) -> Bool[Array, "B Q L"]:
    """Who may attend to whom: True where query (second axis) and key (third) are of one sequence, padding of none."""
    query_ids_BxQ = sequence_ids_BxL if query_ids_BxQ is None else query_ids_BxQ
    same_BxQxL = query_ids_BxQ[:, :, None] == sequence_ids_BxL[:, None, :]
    return same_BxQxL & (sequence_ids_BxL != 0)[:, None, :]


def _check(backend: AttentionBackend, query: Float[Array, "B Q N H"], dropout_rate: float, some_queries: bool) -> None:
    platform = layout.platform()
    if some_queries and backend not in TAKES_SOME_QUERIES:
        raise AttentionError(
            f"attention backend {backend!r} needs a query for every token: leave out query_ids or use one of "
            f"{', '.join(map(repr, TAKES_SOME_QUERIES))}"
        )
    if backend not in HAS_DROPOUT and dropout_rate > 0.0:
        raise AttentionError(
            f"attention backend {backend!r} has no dropout: set attention_dropout to 0 or use one of "
            f"{', '.join(map(repr, HAS_DROPOUT))}"
        )
    if backend in ("cudnn", "gpu_flash") and platform != "gpu":
        raise AttentionError(
            f"attention backend {backend!r} needs a GPU, and jax runs on {platform}: use 'explicit' or 'xla'"
        )
    if backend == "gpu_flash" and not gpu_flash.serves(jax.local_devices()[0]):
        raise AttentionError(
            f"attention backend 'gpu_flash' needs an NVIDIA GPU of compute capability 8 (Ampere) or more, and this is "
            f"{jax.local_devices()[0].device_kind}: use 'explicit'"
        )
    if backend == "gpu_flash" and not gpu_flash.is_available():
        raise AttentionError(
            f"attention backend 'gpu_flash' needs Pallas' Triton backend, which jax {jax.__version__} has no more: use 'explicit'"
        )
    if backend == "gpu_flash" and query.shape[-1] not in GPU_FLASH_HEADS:
        raise AttentionError(
            f"attention backend 'gpu_flash' takes heads of {', '.join(map(str, GPU_FLASH_HEADS))}, and these have {query.shape[-1]}: "
            "use 'explicit'"
        )
    if backend == "cudnn" and query.dtype not in (jnp.bfloat16, jnp.float16):
        raise AttentionError(f"attention backend 'cudnn' needs model.dtype 'bfloat16', and got {query.dtype}")
    if backend == "tpu_flash" and platform != "tpu":
        raise AttentionError(
            f"attention backend 'tpu_flash' needs a TPU, and jax runs on {platform}: use 'explicit' or 'xla'"
        )


def _explicit(query, key, value, mask_Bx1xQxL, dropout_rate, dropout_key):
    # Scaling the queries costs less than scaling the scores, of which there are more.
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    # Softmax in float32: bfloat16 has 8 bits of mantissa, and the sum runs over every key.
    scores_BxNxQxL = jnp.einsum("bqnh,bknh->bnqk", query, key, preferred_element_type=jnp.float32)
    # A finite fill: with -inf, a padding query, which has no key at all, would be NaN and poison every gradient.
    scores_BxNxQxL = jnp.where(mask_Bx1xQxL, scores_BxNxQxL, np.finfo(np.float32).min)
    weights_BxNxQxL = jax.nn.softmax(scores_BxNxQxL, axis=-1).astype(value.dtype)
    weights_BxNxQxL = dropout(weights_BxNxQxL, dropout_rate, dropout_key)
    return jnp.einsum("bnqk,bknh->bqnh", weights_BxNxQxL, value)


def _cudnn(query, key, value, sequence_ids_BxL, one_sequence):
    if not one_sequence:
        mask_Bx1xLxL = same_sequence(sequence_ids_BxL)[:, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask_Bx1xLxL, implementation="cudnn")
    # A row of padding alone still needs a key, or its output would be 0/0.
    lengths_B = jnp.maximum(jnp.sum(sequence_ids_BxL != 0, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths_B, implementation="cudnn")


def _gpu_flash(query, key, value, query_ids_BxQ, key_ids_BxL, dropout_rate, dropout_key):
    batch, queries, heads, _ = query.shape
    # Each row of probabilities by the number that dropout knows it by.
    rows_BxN = jnp.arange(batch * heads, dtype=jnp.uint32).reshape(batch, heads) * np.uint32(queries)
    words = jnp.zeros(2, jnp.uint32) if dropout_key is None else key_words(dropout_key)
    kernel = functools.partial(gpu_flash.flash_attention, dropout_rate=dropout_rate)
    arrays = (query, key, value, query_ids_BxQ, key_ids_BxL, rows_BxN, words)
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(*arrays)
    tokens = mesh_axes(("batch", None, "heads", None))
    ids, rows = mesh_axes(("batch", None)), mesh_axes(("batch", "heads"))
    in_specs = (tokens, tokens, tokens, ids, ids, rows, PartitionSpec())
    _check_divides("gpu_flash", query, tokens)
    return jax.shard_map(kernel, in_specs=in_specs, out_specs=tokens, check_vma=False)(*arrays)


def _check_divides(backend: AttentionBackend, query: Float[Array, "B Q N H"], axes: PartitionSpec) -> None:
    """The partitioner pads what it splits; a kernel that each device runs on its own part cannot."""
    for size, name, what in zip(query.shape, axes, ("rows", "queries", "heads", "widths"), strict=False):
        names = (name,) if isinstance(name, str) else tuple(name or ())
        parts = math.prod(jax.sharding.get_abstract_mesh().shape[one] for one in names)
        if size % parts:
            raise AttentionError(
                f"attention backend {backend!r} needs as many {what} on each device: {size} do not divide into {parts} parts "
                f"({' x '.join(names)}); take other sizes, or 'explicit'"
            )


def _tpu_flash(query, key, value, sequence_ids_BxL):
    length = query.shape[1]
    if length % FLASH_BLOCK:
        raise AttentionError(
            f"attention backend 'tpu_flash' needs rows of a multiple of {FLASH_BLOCK} tokens, and got {length}"
        )
    scale = query.shape[-1] ** -0.5

    def kernel(query_BxLxNxH, key_BxLxNxH, value_BxLxNxH, ids_BxL):
        heads_first = (x.swapaxes(1, 2) for x in (query_BxLxNxH, key_BxLxNxH, value_BxLxNxH))
        segments = tpu_flash.SegmentIds(q=ids_BxL, kv=ids_BxL)
        return tpu_flash.flash_attention(*heads_first, segment_ids=segments, sm_scale=scale).swapaxes(1, 2)

    if jax.sharding.get_abstract_mesh().empty:
        return kernel(query, key, value, sequence_ids_BxL)
    # The partitioner cannot split a Pallas kernel: each device runs it on its own rows and heads.
    tokens = mesh_axes(("batch", None, "heads", None))
    ids = mesh_axes(("batch", None))
    _check_divides("tpu_flash", query, tokens)
    sharded = jax.shard_map(kernel, in_specs=(tokens, tokens, tokens, ids), out_specs=tokens, check_vma=False)
    return sharded(query, key, value, sequence_ids_BxL)
