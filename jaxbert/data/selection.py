"""Which tokens are masked: single tokens, whole words, or spans of words, each sequence to its own budget.

BERT shuffles the units (tokens, or words) of a sequence, walks through them, and takes each unit that still fits into
the budget (`create_masked_lm_predictions` in google-research/bert, create_pretraining_data.py). Here a unit's place in the
random order is the hash of its first token, and the walk is a few passes over all sequences of a batch at once; the outcome is the same.

Differs from BERT: a special token inside a word ([UNK] from a Chinese word segmenter) parts the word; [UNK] is never masked.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from jaxbert.config import MaskingConfig
from jaxbert.data import hashing

# An order key, int64: 31 random bits, 16 for the length of the unit (filled in later), 16 for the position in the row.
_RANDOM_BITS = np.uint64(0x7FFFFFFF00000000)
_FIELD, _FIELD_BITS = np.int64(0xFFFF), np.int64(16)
_LAST = np.int64(np.iinfo(np.int64).max)
"""Sorts behind every order key."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of a batch of rows."""

    starts_BxS: tf.Tensor
    ends_BxS: tf.Tensor
    slots_BxL: tf.Tensor
    """int8: the slot of each position, 0 .. S-1; S behind the last sequence."""
    maskable_BxL: tf.Tensor
    hashes_BxL: tf.Tensor
    """uint64, a random number for each position."""


def choose(
    rows: Sequences, word_starts: tf.Tensor, keys_B: tf.Tensor, masking: MaskingConfig, max_predictions: int
) -> tf.Tensor:
    """bool [B, L]: the tokens to predict; at most max_predictions in a row.

    word_starts: uint8 [B, ceil(L / 8)], bits from the lowest, set where a token starts a word.
    """
    length = rows.maskable_BxL.shape[1]
    budgets_BxS = budgets(rows.ends_BxS - rows.starts_BxS, length, masking.share, max_predictions)
    random_BxL = tf.bitwise.bitwise_and(tf.bitwise.right_shift(rows.hashes_BxL, np.uint64(1)), _RANDOM_BITS)
    order_BxL = tf.bitcast(tf.bitwise.bitwise_or(random_BxL, np.arange(length, dtype=np.uint64)), tf.int64)
    if masking.unit == "token":
        if rows.starts_BxS.shape[1] == 1:
            return _smallest(tf.where(rows.maskable_BxL, order_BxL, _LAST), budgets_BxS, max_predictions)
        begins_BxL = rows.maskable_BxL
    else:
        fresh_BxL = rows.maskable_BxL & ~tf.pad(rows.maskable_BxL, [[0, 0], [1, 0]])[:, :-1]
        begins_BxL = fresh_BxL | (rows.maskable_BxL & unpack_bits(word_starts, length))
        if masking.unit == "span":
            begins_BxL = fresh_BxL | _span_begins(begins_BxL, keys_B, masking.max_span_words)
    single = masking.unit == "token"
    slack = 12.0 if masking.unit == "span" else 5.0
    shares_BxS = _candidate_shares(budgets_BxS, rows.ends_BxS - rows.starts_BxS, slack)
    chosen_BxL, short = _greedy(rows, begins_BxL, order_BxL, budgets_BxS, shares_BxS, single)
    # Rarely a sequence's candidates do not fill its budget: then all units of the batch are candidates.
    return tf.cond(
        short,
        lambda: _greedy(rows, begins_BxL, order_BxL, budgets_BxS, tf.ones_like(shares_BxS), single)[0],
        lambda: chosen_BxL,
    )


def budgets(totals_BxS: tf.Tensor, length: int, share: float, max_predictions: int) -> tf.Tensor:
    """int32 [B, S]: how many tokens to predict of a sequence of n real tokens: min(P, max(1, round(n * share))).

    Python's own rounding, from a table, as in BERT. Differs from BERT: where the sequences of a packed row want more than
    P together, the last ones get less.
    """
    table = [0] + [min(max_predictions, max(1, round(n * share))) for n in range(1, length + 1)]
    wanted_BxS = tf.gather(np.array(table, np.int32), totals_BxS)
    if totals_BxS.shape[1] == 1:
        return wanted_BxS
    before_BxS = tf.cumsum(wanted_BxS, axis=1, exclusive=True)
    return tf.clip_by_value(wanted_BxS, 0, tf.maximum(max_predictions - before_BxS, 0))


def unpack_bits(bits: tf.Tensor, length: int) -> tf.Tensor:
    """bool [B, length] of uint8 [B, ceil(length / 8)], lowest bit first."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64)[:, 0]
    bytes_Bx8n = tf.bitcast(tf.gather(table, tf.cast(bits, tf.int32)), tf.uint8)
    return tf.cast(tf.reshape(bytes_Bx8n, [-1, 8 * bits.shape[1]])[:, :length], tf.bool)


def spread(values_BxS1: tf.Tensor, slots_BxL: tf.Tensor) -> tf.Tensor:
    """[B, L]: to each position the value of its slot; the last column is for the positions behind all sequences."""
    rows, columns = tf.shape(values_BxS1)[0], values_BxS1.shape[1]
    places_BxL = tf.cast(slots_BxL, tf.int32) + (tf.range(rows) * columns)[:, None]
    return tf.gather(tf.reshape(values_BxS1, [-1]), places_BxL)


def padded(values: tf.Tensor, splits: tf.Tensor, default: int | np.integer, width: int = -1) -> tf.Tensor:
    """[len(splits) - 1, width] of a flat list that `splits` cuts into rows; width -1: that of the longest row."""
    default_value = tf.constant(default, values.dtype)
    # The bare op: RaggedTensor.to_tensor spends more time in Python on small batches.
    return tf.raw_ops.RaggedTensorToTensor(
        shape=[-1, width],
        values=values,
        default_value=default_value,
        row_partition_tensors=[splits],
        row_partition_types=["ROW_SPLITS"],
    )


def _smallest(order_BxL: tf.Tensor, budgets_Bx1: tf.Tensor, max_predictions: int) -> tf.Tensor:
    """bool [B, L]: the budgets_Bx1 smallest order keys of each row, without sorting."""
    # NthElement takes one n for all rows: P - k keys below every other make the k-th key of each row its P-th.
    lowest_BxP = tf.where(tf.range(max_predictions) < max_predictions - budgets_Bx1, np.int64(-1), _LAST)
    keys = tf.concat([order_BxL, lowest_BxP], axis=1)
    threshold_B = tf.raw_ops.NthElement(input=keys, n=max_predictions - 1)
    return order_BxL <= tf.minimum(threshold_B, _LAST - 1)[:, None]


def _candidate_shares(budgets_BxS: tf.Tensor, totals_BxS: tf.Tensor, slack: float) -> tf.Tensor:
    """float64 [B, S]: the share of the random order in which a budget is nearly always filled; 1 is all of it."""
    budget_BxS = tf.cast(budgets_BxS, tf.float64)
    enough_BxS = budget_BxS + slack * tf.sqrt(budget_BxS) + 8.0
    return tf.minimum(enough_BxS / tf.cast(tf.maximum(totals_BxS, 1), tf.float64), 1.0)


def _greedy(
    rows: Sequences,
    begins_BxL: tf.Tensor,
    order_BxL: tf.Tensor,
    budgets_BxS: tf.Tensor,
    shares_BxS: tf.Tensor,
    single: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """(bool [B, L], short): the tokens of the units that fit, of those in the first share of each sequence's random order.

    single: every unit is one token. short: some sequence has neither filled its budget nor seen all of its units.
    """
    size = tf.size(begins_BxL)
    limits_BxS = tf.where(shares_BxS < 1, tf.cast(shares_BxS * 2.0**63, tf.int64), _LAST)
    if limits_BxS.shape[1] > 1:
        limits_BxS1 = tf.pad(limits_BxS, [[0, 0], [0, 1]])
        limits = spread(limits_BxS1, rows.slots_BxL)
    else:
        limits = limits_BxS
    candidates_BxL = begins_BxL & (order_BxL < limits)
    order = tf.reshape(order_BxL, [-1])
    if single:
        firsts_N = tf.where(tf.reshape(candidates_BxL, [-1]))[:, 0]
        lengths_N = tf.ones_like(firsts_N)
    else:
        # A unit ends where the next one begins or where a token is not maskable.
        edges = tf.where(tf.reshape(begins_BxL | ~rows.maskable_BxL, [-1]))[:, 0]
        lengths = tf.concat([edges[1:], tf.cast(size, tf.int64)[None]], 0) - edges
        taken = tf.where(tf.gather(tf.reshape(candidates_BxL, [-1]), edges))[:, 0]
        firsts_N, lengths_N = tf.gather(edges, taken), tf.gather(lengths, taken)
    order_N = tf.gather(order, firsts_N) + tf.bitwise.left_shift(lengths_N, _FIELD_BITS)

    # One line per real sequence, R of them; candidates stand in the order of the sequences already.
    real_R = tf.where(tf.reshape(rows.ends_BxS > rows.starts_BxS, [-1]))[:, 0]
    length = begins_BxL.shape[1]
    row_R = real_R // rows.starts_BxS.shape[1]
    ends_R = tf.gather(tf.reshape(rows.ends_BxS, [-1]), real_R)
    budget_R = tf.gather(tf.reshape(budgets_BxS, [-1]), real_R)
    stops_R = tf.searchsorted(firsts_N, row_R * length + tf.cast(ends_R, tf.int64))
    order_RxC = tf.sort(padded(order_N, tf.pad(stops_R, [[1, 0]]), _LAST), axis=1)
    units_RxC = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(order_RxC, _FIELD_BITS), _FIELD), tf.int32)
    units_RxC = tf.where(order_RxC < _LAST, units_RxC, length + 1)
    taken_RxC, left_R = _fill(units_RxC, budget_R, single)
    shares_R = tf.gather(tf.reshape(shares_BxS, [-1]), real_R)
    short = tf.reduce_any((left_R > 0) & (shares_R < 1))

    places = tf.bitwise.bitwise_and(order_RxC, _FIELD) + (row_R * length)[:, None]
    places_M = tf.boolean_mask(places, taken_RxC)
    if not single:
        lengths_M = tf.boolean_mask(units_RxC, taken_RxC)
        offsets = tf.range(tf.reduce_max(tf.concat([lengths_M, [1]], 0)))
        places_M = tf.boolean_mask(places_M[:, None] + tf.cast(offsets, tf.int64), offsets < lengths_M[:, None])
    chosen = tf.tensor_scatter_nd_update(tf.zeros([size], tf.bool), places_M[:, None], tf.ones_like(places_M, tf.bool))
    return tf.reshape(chosen, tf.shape(begins_BxL)), short


def _fill(units_RxC: tf.Tensor, budget_R: tf.Tensor, single: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """(taken bool [R, C], budget left [R]): walk each line from the left and take every unit that still fits."""
    if single:
        taken_RxC = (tf.range(tf.shape(units_RxC)[1]) < budget_R[:, None]) & (units_RxC == 1)
        return taken_RxC, budget_R - tf.reduce_sum(tf.cast(taken_RxC, tf.int32), axis=1)

    def fits(taken_RxC, left_R):
        return (units_RxC <= left_R[:, None]) & ~taken_RxC

    def more(taken_RxC, left_R):
        return tf.reduce_any(fits(taken_RxC, left_R))

    def take(taken_RxC, left_R):
        # What fits now, up to the first unit that is too long behind those before it. What was left out before stays
        # too long, because the budget only shrinks: the next pass goes on behind it, as the walk does.
        fitting_RxC = tf.where(fits(taken_RxC, left_R), units_RxC, 0)
        new_RxC = (fitting_RxC > 0) & (tf.cumsum(fitting_RxC, axis=1) <= left_R[:, None])
        left_R -= tf.reduce_sum(tf.where(new_RxC, units_RxC, 0), axis=1)
        return taken_RxC | new_RxC, left_R

    return tf.while_loop(more, take, [tf.zeros_like(units_RxC, tf.bool), budget_R])


def _span_begins(begins_BxL: tf.Tensor, keys_B: tf.Tensor, max_words: int) -> tf.Tensor:
    """bool [B, L]: the words that begin a span, when a row's words are cut into spans of 1 .. max_words words.

    A span of n words has probability proportional to 1/n (Lan et al. 2020, section 4.1). Spans are cut over the whole row; a
    special token, and so the end of a segment, ends a span early.
    """
    length = begins_BxL.shape[1]
    bits_BxL = hashing.mix_tensor(keys_B[:, None] + hashing.counters(length, stream=2))
    uniform_BxL = tf.cast(tf.bitwise.right_shift(bits_BxL, np.uint64(40)), tf.int32)
    weights = 1 / np.arange(1, max_words + 1)
    borders = np.round(np.cumsum(weights / weights.sum())[:-1] * 2**24).astype(np.int32)
    words_BxL = tf.add_n([tf.ones_like(uniform_BxL)] + [tf.cast(uniform_BxL >= border, tf.int32) for border in borders])
    # Word number w of the row begins a span where w is one of the partial sums.
    sums_BxL = tf.cumsum(words_BxL, axis=1, exclusive=True)
    numbers_BxL = tf.cumsum(tf.cast(begins_BxL, tf.int32), axis=1, exclusive=True)
    rows = (tf.range(tf.shape(begins_BxL)[0]) * length)[:, None]
    inside = tf.boolean_mask(sums_BxL + rows, sums_BxL < length)
    is_sum = tf.tensor_scatter_nd_update(
        tf.zeros([tf.size(begins_BxL)], tf.bool), inside[:, None], tf.ones_like(inside, tf.bool)
    )
    return begins_BxL & tf.gather(is_sum, numbers_BxL + rows)
