"""Attention within sequences on GPUs, with dropout, and without a matrix of scores in memory (Dao 2023, FlashAttention-2).

Kernels in Pallas, compiled by Triton. Three things are this model's own:

- Dropout is the keyed hash of `jaxbert.model.dropout` over the same indices, so the masks are those that attention backend
  "explicit" draws, on every mesh, and no mask is stored.
- Blocks of keys that no query of a block may see are not visited: padding costs nothing, and in a packed row a sequence costs what
  it costs alone.
- No sum depends on the order in which programs run: the same inputs give the same bits.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, UInt32

from jaxbert.model import gpu_flash_kernels as kernels
from jaxbert.model.gpu_flash_kernels import Blocks

# Of seven each the fastest, or within 2 % of it, on an H100 with heads of 64, in rows of 128 and of 512.
_FORWARD = Blocks(64, 64, 4, 3)
_QUERY_GRADIENT = Blocks(64, 32, 4, 3)
_KEY_GRADIENT = Blocks(64, 64, 4, 3)


class _Settings(NamedTuple):
    """What the kernels are compiled for."""

    dropout_rate: float
    interpret: bool


def flash_attention(
    query_BxQxNxH: Float[Array, "B Q N H"],
    key_BxLxNxH: Float[Array, "B L N H"],
    value_BxLxNxH: Float[Array, "B L N H"],
    query_ids_BxQ: Int[Array, "B Q"],
    key_ids_BxL: Int[Array, "B L"],
    rows_BxN: UInt32[Array, "B N"],
    dropout_words_2: UInt32[Array, "2"],
    *,
    dropout_rate: float,
    interpret: bool = False,
) -> Float[Array, "B Q N H"]:
    """softmax(q k / sqrt(H)) v where the ids are equal and not 0; 0 for queries that see nothing.

    Args:
      query_ids_BxQ, key_ids_BxL: the sequence that each token belongs to, 0 for padding.
      rows_BxN: number of the first query of each row and head, as dropout counts rows.
      dropout_words_2: the two words that dropout's key gives. Not read at dropout_rate 0.
      interpret: run the kernels in Pallas' interpreter, on any device.
    """
    settings = _Settings(dropout_rate, interpret)
    # Whole blocks of each kernel, all powers of two; what is added is padding, which is nobody's and gets nothing.
    fitted = [_fit(blocks, query_BxQxNxH, key_BxLxNxH) for blocks in (_FORWARD, _QUERY_GRADIENT, _KEY_GRADIENT)]
    query_block, key_block = max(one.queries for one in fitted), max(one.keys for one in fitted)
    query, query_ids = (_padded(x, query_block) for x in (query_BxQxNxH, query_ids_BxQ))
    key, value, key_ids = (_padded(x, key_block) for x in (key_BxLxNxH, value_BxLxNxH, key_ids_BxL))
    output: Array = _attention(settings, query, key, value, query_ids, key_ids, rows_BxN, dropout_words_2)
    return output[:, : query_BxQxNxH.shape[1]]


def _padded(x: Array, block: int) -> Array:
    missing = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) if missing else x


def _fit(blocks: Blocks, query: Array, key: Array) -> Blocks:
    """The blocks of one kernel for these arrays."""
    bytes_a_token = query.shape[-1] * query.dtype.itemsize
    # What is in flight has to fit the shared memory of an SM, 99 KiB on the smaller GPUs.
    most, stages = (64, blocks.stages) if bytes_a_token <= 128 else (64, 2) if bytes_a_token <= 256 else (32, 2)
    # No longer than short rows need; 16 is the least that a matrix unit takes.
    queries, keys = (min(most, max(16, 1 << (x.shape[1] - 1).bit_length())) for x in (query, key))
    return blocks._replace(queries=min(blocks.queries, queries), keys=min(blocks.keys, keys), stages=stages)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, query, key, value, query_ids, key_ids, rows, words) -> Any:
    return _forward(settings, query, key, value, query_ids, key_ids, rows, words)[0]


def _forward(settings, query, key, value, query_ids, key_ids, rows, words):
    batch, queries, heads, width = query.shape
    blocks = _fit(_FORWARD, query, key)
    output, log_sums = _kernel(
        kernels.forward,
        blocks,
        settings,
        grid=(queries // blocks.queries, heads, batch),
        in_specs=[
            *_tiles(blocks.queries, key.shape[1], width),
            _ids(blocks.queries),
            _all_ids(key.shape[1]),
            *_shared_specs(),
        ],
        out_specs=[_tile(blocks.queries, width), _a_number(blocks.queries)],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32),
        ],
    )(query, key, value, query_ids, key_ids, _visited(query_ids, key_ids, blocks.queries, blocks.keys), rows, words)
    return output, (query, key, value, query_ids, key_ids, rows, words, output, log_sums)


def _backward(settings, saved, output_gradient):
    query, key, value, query_ids, key_ids, rows, words, output, log_sums = saved
    batch, queries, heads, width = query.shape
    keys = key.shape[1]
    arrays, ids = (query, key, value, output_gradient), (query_ids, key_ids)

    blocks = _fit(_QUERY_GRADIENT, query, key)
    query_gradient, means = _kernel(
        kernels.query_gradient,
        blocks,
        settings,
        grid=(queries // blocks.queries, heads, batch),
        in_specs=[
            *_tiles(blocks.queries, keys, width),
            _tile(blocks.queries, width),
            _tile(blocks.queries, width),
            _a_number(blocks.queries),
            _ids(blocks.queries),
            _all_ids(keys),
            *_shared_specs(),
        ],
        out_specs=[_tile(blocks.queries, width), _a_number(blocks.queries)],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(log_sums.shape, jnp.float32),
        ],
    )(*arrays, output, log_sums, *ids, _visited(query_ids, key_ids, blocks.queries, blocks.keys), rows, words)

    blocks = _fit(_KEY_GRADIENT, query, key)
    key_gradient, value_gradient = _kernel(
        kernels.key_gradient,
        blocks,
        settings,
        grid=(keys // blocks.keys, heads, batch),
        in_specs=[
            _row(queries, width),
            _tile(blocks.keys, width),
            _tile(blocks.keys, width),
            _row(queries, width),
            _all_numbers(queries),
            _all_numbers(queries),
            _all_ids(queries),
            _ids(blocks.keys),
            *_shared_specs(),
        ],
        out_specs=[_tile(blocks.keys, width)] * 2,
        out_shape=[jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)],
    )(*arrays, log_sums, means, *ids, _visited(key_ids, query_ids, blocks.keys, blocks.queries), rows, words)
    return query_gradient, key_gradient, value_gradient, None, None, None, None


_attention.defvjp(_forward, _backward)


def _visited(
    own_BxR: Int[Array, "B R"], other_BxC: Int[Array, "B C"], own_block: int, other_block: int
) -> Int[Array, "B blocks 2"]:
    """For each block of `own`: the first block of `other` that shares a sequence with it, and the one behind the last."""
    batch, own, other = own_BxR.shape[0], own_BxR.shape[1] // own_block, other_BxC.shape[1] // other_block
    same_BxRxC = (own_BxR[:, :, None] == other_BxC[:, None, :]) & (own_BxR != 0)[:, :, None]
    meets = same_BxRxC.reshape(batch, own, own_block, other, other_block).any(axis=(2, 4))
    number = jnp.arange(other, dtype=jnp.int32)[None, None, :]
    first = jnp.min(jnp.where(meets, number, other), axis=-1)
    behind = jnp.max(jnp.where(meets, number + 1, 0), axis=-1)
    return jnp.stack([first, behind], axis=-1)


def _tile(block: int, width: int) -> pl.BlockSpec:
    """The program's own block of one row and head."""
    return pl.BlockSpec((None, block, None, width), lambda i, n, b: (b, i, n, 0))


def _row(length: int, width: int) -> pl.BlockSpec:
    """All of one row and head, which the program goes through."""
    return pl.BlockSpec((None, length, None, width), lambda i, n, b: (b, 0, n, 0))


def _tiles(query_block: int, keys: int, width: int) -> tuple[pl.BlockSpec, ...]:
    return _tile(query_block, width), _row(keys, width), _row(keys, width)


def _a_number(block: int) -> pl.BlockSpec:
    """A number for each query of the program's own block."""
    return pl.BlockSpec((None, None, block), lambda i, n, b: (b, n, i))


def _all_numbers(length: int) -> pl.BlockSpec:
    """A number for each query of one row and head."""
    return pl.BlockSpec((None, None, length), lambda i, n, b: (b, n, 0))


def _ids(block: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, block), lambda i, n, b: (b, i))


def _all_ids(length: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, length), lambda i, n, b: (b, 0))


def _shared_specs() -> tuple[pl.BlockSpec, ...]:
    """Those of the visited blocks, of the number of the first row, and of dropout's words."""
    return (
        pl.BlockSpec((None, None, 2), lambda i, n, b: (b, i, 0)),
        pl.BlockSpec((None, None), lambda i, n, b: (b, n)),
        pl.BlockSpec((2,), lambda i, n, b: (0,)),
    )


def is_available() -> bool:
    """Whether this jax has Pallas' Triton backend, which is deprecated since jax 0.11."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def serves(device: Any) -> bool:
    """Whether a device is an NVIDIA GPU of compute capability 8 (Ampere) or more, which Triton compiles for."""
    # "8.0" of NVIDIA's; AMD's are called "gfx90a".
    capability = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return capability.isdigit() and int(capability) >= 8


def _kernel(body: Callable[..., None], blocks: Blocks, settings: _Settings, **shapes: Any) -> Callable[..., Any]:
    """One of the kernels over a grid; `shapes`: as `pl.pallas_call` takes them."""
    compiler_params = None
    if not settings.interpret:
        # Here, so that a jax without it still has the other kernels.
        from jax.experimental.pallas import triton

        compiler_params = triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    return pl.pallas_call(
        functools.partial(body, blocks=blocks, rate=settings.dropout_rate),
        compiler_params=compiler_params,
        interpret=settings.interpret,
        name=f"attention_{body.__name__}",
        **shapes,
    )
