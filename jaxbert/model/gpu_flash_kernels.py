"""The bodies of the GPU's attention kernels: what one program does with one block of one row and head (see `gpu_flash`)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxbert.model.dropout import mix, row_words, threshold

_LOG2_E = math.log2(math.e)
Ref = Any
"""An array in the GPU's memory, or the block of it that the program has."""


class Blocks(NamedTuple):
    """How one kernel cuts its work: queries and keys a block, warps a program, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Float[Array, "R C"]:
    """left and right with these axes contracted, summed in float32."""
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _same(query_ids: Int[Array, " Q"], key_ids: Int[Array, " K"]) -> Bool[Array, "Q K"]:
    return (query_ids[:, None] == key_ids[None, :]) & (query_ids != 0)[:, None]


def _kept(rows: tuple[Array, Array], first_key: Array, keys: int, rate: float) -> Bool[Array, "Q K"]:
    """What dropout keeps of the weights of some queries for `keys` keys from `first_key` on."""
    step, offset = rows
    columns = (first_key + jax.lax.iota(jnp.int32, keys)).astype(jnp.uint32)
    return mix(columns[None, :] * step[:, None] + offset[:, None]) >= threshold(rate)


def _row_words(
    rows_ref: Any, words_ref: Any, first_query: Array, queries: int, rate: float
) -> tuple[UInt32[Array, " Q"], UInt32[Array, " Q"]] | None:
    """What dropout's hash takes of some queries of this row and head; None where nothing is dropped."""
    if not rate:
        return None
    numbers = rows_ref[...] + (first_query + jax.lax.iota(jnp.int32, queries)).astype(jnp.uint32)
    return row_words(numbers, words_ref[0], words_ref[1])


def forward(
    query_ref: Ref,
    key_ref: Ref,
    value_ref: Ref,
    query_ids_ref: Ref,
    key_ids_ref: Ref,
    visited_ref: Ref,
    rows_ref: Ref,
    words_ref: Ref,
    output_ref: Ref,
    log_sums_ref: Ref,
    *,
    blocks: Blocks,
    rate: float,
) -> None:
    """Outputs of some queries, and the base-2 logarithm of each one's sum of exponentials, in one pass over the keys that they see."""
    query, query_ids = query_ref[...], query_ids_ref[...]
    scale = _LOG2_E / math.sqrt(query.shape[-1])
    rows = _row_words(rows_ref, words_ref, pl.program_id(0) * blocks.queries, blocks.queries, rate)

    def visit(block, carry):
        total, maximum, total_weight = carry
        at = pl.ds(block * blocks.keys, blocks.keys)
        scores = _dot(query, key_ref[at, :], 1, 1) * scale
        scores = jnp.where(_same(query_ids, key_ids_ref[at]), scores, -jnp.inf)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1))
        # A query that has seen no key yet: exp2 of -inf less a finite number is 0, of -inf less -inf it would be NaN.
        shift = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
        weights = jnp.exp2(scores - shift[:, None])
        shrink = jnp.exp2(maximum - shift)
        total_weight = total_weight * shrink + jnp.sum(weights, axis=1)
        if rows is not None:
            weights = jnp.where(_kept(rows, block * blocks.keys, blocks.keys, rate), weights, 0.0)
        value = value_ref[at, :]
        total = total * shrink[:, None] + _dot(weights.astype(value.dtype), value, 1, 0)
        return total, new_maximum, total_weight

    start = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full((blocks.queries,), -jnp.inf, jnp.float32),
        jnp.zeros((blocks.queries,), jnp.float32),
    )
    total, maximum, total_weight = jax.lax.fori_loop(visited_ref[0], visited_ref[1], visit, start)
    sees = total_weight > 0.0
    total_weight = jnp.where(sees, total_weight, 1.0)
    output_ref[...] = (total / (total_weight * (1.0 - rate))[:, None]).astype(output_ref.dtype)
    log_sums_ref[...] = jnp.where(sees, maximum + jnp.log2(total_weight), 0.0)


def _weights(query, key, query_ids, key_ids, log_sums) -> Float[Array, "Q K"]:
    """The attention weights again, from what the forward pass kept of each query."""
    scores = _dot(query, key, 1, 1) * (_LOG2_E / math.sqrt(query.shape[-1]))
    return jnp.where(_same(query_ids, key_ids), jnp.exp2(scores - log_sums[:, None]), 0.0)


def query_gradient(
    query_ref: Ref,
    key_ref: Ref,
    value_ref: Ref,
    gradient_ref: Ref,
    output_ref: Ref,
    log_sums_ref: Ref,
    query_ids_ref: Ref,
    key_ids_ref: Ref,
    visited_ref: Ref,
    rows_ref: Ref,
    words_ref: Ref,
    query_gradient_ref: Ref,
    means_ref: Ref,
    *,
    blocks: Blocks,
    rate: float,
) -> None:
    """Gradients of some queries, over the keys that they see, and the mean that softmax's backward pass subtracts for each."""
    query, query_ids, gradient = query_ref[...], query_ids_ref[...], gradient_ref[...]
    log_sums = log_sums_ref[...]
    # What softmax's backward pass subtracts: the sum over keys of weight x its gradient is that of output x its gradient.
    means = jnp.sum(output_ref[...].astype(jnp.float32) * gradient.astype(jnp.float32), axis=1)
    means_ref[...] = means
    rows = _row_words(rows_ref, words_ref, pl.program_id(0) * blocks.queries, blocks.queries, rate)

    def visit(block, total):
        at = pl.ds(block * blocks.keys, blocks.keys)
        key = key_ref[at, :]
        weights = _weights(query, key, query_ids, key_ids_ref[at], log_sums)
        weight_gradient = _dot(gradient, value_ref[at, :], 1, 1)
        if rows is not None:
            kept = _kept(rows, block * blocks.keys, blocks.keys, rate)
            weight_gradient = jnp.where(kept, weight_gradient * np.float32(1.0 / (1.0 - rate)), 0.0)
        score_gradient = weights * (weight_gradient - means[:, None])
        return total + _dot(score_gradient.astype(key.dtype), key, 1, 0)

    total = jax.lax.fori_loop(visited_ref[0], visited_ref[1], visit, jnp.zeros(query.shape, jnp.float32))
    query_gradient_ref[...] = (total * np.float32(1 / math.sqrt(query.shape[-1]))).astype(query_gradient_ref.dtype)


def key_gradient(
    query_ref: Ref,
    key_ref: Ref,
    value_ref: Ref,
    gradient_ref: Ref,
    log_sums_ref: Ref,
    means_ref: Ref,
    query_ids_ref: Ref,
    key_ids_ref: Ref,
    visited_ref: Ref,
    rows_ref: Ref,
    words_ref: Ref,
    key_gradient_ref: Ref,
    value_gradient_ref: Ref,
    *,
    blocks: Blocks,
    rate: float,
) -> None:
    """Gradients of some keys and of their values, over the queries that see them."""
    key, value, key_ids = key_ref[...], value_ref[...], key_ids_ref[...]
    first_key = pl.program_id(0) * blocks.keys

    def visit(block, carry):
        key_total, value_total = carry
        at = pl.ds(block * blocks.queries, blocks.queries)
        query, gradient = query_ref[at, :], gradient_ref[at, :]
        weights = _weights(query, key, query_ids_ref[at], key_ids, log_sums_ref[at])
        weight_gradient = _dot(gradient, value, 1, 1)
        dropped = weights
        rows = _row_words(rows_ref, words_ref, block * blocks.queries, blocks.queries, rate)
        if rows is not None:
            kept = _kept(rows, first_key, blocks.keys, rate)
            dropped = jnp.where(kept, weights * np.float32(1.0 / (1.0 - rate)), 0.0)
            weight_gradient = jnp.where(kept, weight_gradient * np.float32(1.0 / (1.0 - rate)), 0.0)
        value_total += _dot(dropped.astype(gradient.dtype), gradient, 0, 0)
        score_gradient = weights * (weight_gradient - means_ref[at][:, None])
        key_total += _dot(score_gradient.astype(query.dtype), query, 0, 0)
        return key_total, value_total

    start = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32))
    key_total, value_total = jax.lax.fori_loop(visited_ref[0], visited_ref[1], visit, start)
    key_gradient_ref[...] = (key_total * np.float32(1 / math.sqrt(key.shape[-1]))).astype(key_gradient_ref.dtype)
    value_gradient_ref[...] = value_total.astype(value_gradient_ref.dtype)
