"""Which tokens are masked: single tokens, whole words, or spans of words, each sequence to its own budget.

BERT shuffles the units (tokens, or words) of a sequence, walks through them, and takes each unit that still fits into
the budget (`create_masked_lm_predictions` in google-research/bert, create_pretraining_data.py). Here a unit's place
in the random order is the hash of its first token, and nothing is sorted: a search finds a point of the order before
which all units fit, and from there the walk goes unit by unit, in all sequences of the batch at once. The outcome is
the same.

Differs from BERT: [UNK] is never masked, and parts a word that it is inside of (from a Chinese word segmenter).
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from jaxbert.config import MaskingConfig
from jaxbert.data import hashing

ORDER_BITS = 22
"""Bits of a token's hash, from the highest, that its place in the order may use; the others are free."""
_NEVER = np.int32(np.iinfo(np.int32).max)
"""Behind every place in the order."""
_SEARCH_STEPS = 12
"""Halvings of the order by the search: rows of a few hundred units have less than one between two of its points."""
# Sums over 32 columns of partial sums: a loop that XLA vectorises, unlike a plain sum along a row.
_LANES = 32

# With more slots XLA computes a chain of selections anew wherever it is used, and looking the values up is faster.
_MANY_SLOTS = 8

Reduce = Callable[..., tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of a batch of rows of `length` tokens, each row with `slots` places for a sequence."""

    length: int
    slots: int
    totals_BxS: tf.Tensor
    """int32: real tokens in each sequence; 0 for a slot without one."""
    slots_BxL: tf.Tensor
    """int32: the slot of each real token, 0 .. slots - 1."""
    first_BxL: tf.Tensor
    """bool: the first token of a sequence."""
    maskable_BxL: tf.Tensor
    """bool: neither padding nor special."""
    hashes_BxL: tf.Tensor
    """uint64, a random number for each token."""

    def at_tokens(self, values_BxS: tf.Tensor) -> tf.Tensor:
        """[B, L], or [B, 1] where there is one slot: to each token the value of its sequence."""
        if self.slots > _MANY_SLOTS:
            return tf.gather(values_BxS, tf.maximum(self.slots_BxL, 0), batch_dims=1)
        values_BxL = values_BxS[:, :1]
        for slot in range(1, self.slots):
            values_BxL = tf.where(self.slots_BxL == slot, values_BxS[:, slot, None], values_BxL)
        return values_BxL


@dataclasses.dataclass(frozen=True)
class Units:
    """What is masked as a whole, said of each of its tokens."""

    places_BxL: tf.Tensor
    """int32: the unit's place in the order (`_places`); _NEVER for a token that is not maskable."""
    last_BxL: tf.Tensor
    """bool: the last token of a unit."""
    sizes_BxL: tf.Tensor
    """int32: at a unit's last token the number of its tokens."""


def choose(
    rows: Sequences, word_starts: tf.Tensor, keys_B: tf.Tensor, masking: MaskingConfig, max_predictions: int
) -> tf.Tensor:
    """bool [B, L]: the tokens to predict; at most max_predictions in a row.

    word_starts: uint8 [B, ceil(L / 8)], bits from the lowest, set where a token starts a word.
    """
    budgets_BxS = budgets(rows.totals_BxS, rows.length, rows.slots, masking.share, max_predictions)
    if masking.unit == "token":
        units = _tokens(rows)
    else:
        words_BxL = tf.cast(word_begins(rows, word_starts), tf.int16)
        if masking.unit == "span":
            words_BxL *= span_lengths(keys_B, rows.length, masking.max_span_words)
        units = _units(rows, unit_heads(rows, words_BxL), keys_B)
    return _greedy(rows, units, budgets_BxS)


def budgets(totals_BxS: tf.Tensor, length: int, slots: int, share: float, max_predictions: int) -> tf.Tensor:
    """int32 [B, S]: how many tokens to predict of a sequence of n real tokens: min(P, max(1, round(n * share))).

    Python's own rounding, from a table, as in BERT. Differs from BERT: where the sequences of a packed row want more
    than P together, the last ones get less.
    """
    table = [0] + [min(max_predictions, max(1, round(n * share))) for n in range(1, length + 1)]
    wanted_BxS = tf.gather(np.array(table, np.int32), totals_BxS)
    if slots == 1:
        return wanted_BxS
    before_BxS = tf.cumsum(wanted_BxS, axis=1, exclusive=True)
    return tf.clip_by_value(wanted_BxS, 0, tf.maximum(max_predictions - before_BxS, 0))


def word_begins(rows: Sequences, word_starts: tf.Tensor) -> tf.Tensor:
    """bool [B, L]: the maskable tokens that begin a word, or follow one that is not maskable, or begin a sequence."""
    unmaskable_BxL = tf.logical_not(rows.maskable_BxL)
    after_unmaskable_BxL = tf.pad(unmaskable_BxL[:, :-1], [[0, 0], [1, 0]], constant_values=True)
    starts_BxL = unpack_bits(word_starts, rows.length)
    return rows.maskable_BxL & (starts_BxL | after_unmaskable_BxL | rows.first_BxL)


def unpack_bits(bits: tf.Tensor, length: int) -> tf.Tensor:
    """bool [B, length] of uint8 [B, ceil(length / 8)], lowest bit first."""
    # Eight copies of a byte in a word of eight, of which copy i keeps bit i.
    copies = tf.cast(bits, tf.uint64) * np.uint64(0x0101010101010101)
    kept_Bx8n = tf.bitcast(tf.bitwise.bitwise_and(copies, np.uint64(0x8040201008040201)), tf.uint8)
    return tf.reshape(kept_Bx8n, [-1, 8 * -(-length // 8)])[:, :length] > 0


def span_lengths(keys_B: tf.Tensor, length: int, max_words: int) -> tf.Tensor:
    """int16 [B, L]: the words of a span that begins at each position: n with probability proportional to 1/n.

    Lan et al. 2020, section 4.1.
    """
    bits_BxL = hashing.mix_tensor(keys_B[:, None] + hashing.counters(length, stream=1))
    uniform_BxL = tf.cast(tf.bitwise.right_shift(bits_BxL, np.uint64(40)), tf.int32)
    weights = 1 / np.arange(1, max_words + 1)
    borders = np.round(np.cumsum(weights / weights.sum())[:-1] * 2**24).astype(np.int32)
    lengths_BxL = tf.ones_like(uniform_BxL, tf.int16)
    for border in borders:
        lengths_BxL += tf.cast(uniform_BxL >= border, tf.int16)
    return lengths_BxL


def unit_heads(rows: Sequences, words_BxL: tf.Tensor) -> tf.Tensor:
    """int32 [B, L]: the position of the first token of each maskable token's unit.

    words: int16, the words of a unit that begins at a word's first token, 0 elsewhere. A token that is not maskable,
    and so the end of a segment, ends a unit early.
    """
    # One walk along all rows at once; both in one number, because each thing that is read costs as much as the rest.
    cut_BxL = rows.first_BxL | tf.logical_not(rows.maskable_BxL)
    coded_LxB = tf.transpose(words_BxL * np.int16(2) + tf.cast(cut_BxL, tf.int16))
    none_B = tf.zeros_like(coded_LxB[0])

    def go_on(position: tf.Tensor, *_: object) -> tf.Tensor:
        return position < rows.length

    def step(position: tf.Tensor, words_left_B: tf.Tensor, head_B: tf.Tensor, heads: tf.TensorArray) -> tuple:
        coded_B = coded_LxB[position]
        words_B = tf.bitwise.right_shift(coded_B, np.int16(1))
        words_left_B = tf.where(tf.bitwise.bitwise_and(coded_B, np.int16(1)) == 1, none_B, words_left_B)
        head_B = tf.where((words_B > 0) & (words_left_B == 0), tf.cast(position, head_B.dtype), head_B)
        words_left_B = tf.where(words_left_B == 0, words_B, words_left_B) - tf.cast(words_B > 0, words_B.dtype)
        return position + 1, words_left_B, head_B, heads.write(position, head_B)

    heads = tf.TensorArray(tf.uint16, rows.length, element_shape=none_B.shape)
    start = (tf.constant(0), none_B, tf.cast(none_B, tf.uint16), heads)
    return tf.cast(tf.transpose(tf.while_loop(go_on, step, start)[3].stack()), tf.int32)


def _tokens(rows: Sequences) -> Units:
    places_BxL = _places(rows, rows.hashes_BxL, np.arange(rows.length, dtype=np.int32))
    return Units(places_BxL, rows.maskable_BxL, tf.ones_like(places_BxL))


def _units(rows: Sequences, heads_BxL: tf.Tensor, keys_B: tf.Tensor) -> Units:
    # The hash of the first token, which is cheaper to make again than to fetch from there.
    counters_BxL = tf.cast(heads_BxL + 1, tf.uint64) * np.uint64(hashing.GOLDEN)
    places_BxL = _places(rows, hashing.mix_tensor(keys_B[:, None] + counters_BxL), heads_BxL)
    next_place_BxL = tf.pad(places_BxL[:, 1:], [[0, 0], [0, 1]], constant_values=_NEVER)
    last_BxL = rows.maskable_BxL & (places_BxL != next_place_BxL)
    return Units(places_BxL, last_BxL, tf.range(1, rows.length + 1) - heads_BxL)


def _place_bits(rows: Sequences) -> tuple[int, int, int]:
    """Bits of a place for the slot, the random order and the position, from the highest; 31 at most."""
    slot_bits, position_bits = (rows.slots - 1).bit_length(), rows.length.bit_length()
    return slot_bits, min(ORDER_BITS, 31 - slot_bits - position_bits), position_bits


def _places(rows: Sequences, hashes_BxL: tf.Tensor, positions: tf.Tensor | np.ndarray) -> tf.Tensor:
    """int32 [B, L]: the place in the order of the unit that begins at this position with this hash.

    By slot first, so that one comparison tells sequences and places apart. The position settles ties: no two units of a
    row have the same place, and there is room for more positions than there are, so that none has _NEVER.
    """
    _, random_bits, position_bits = _place_bits(rows)
    random_BxL = tf.cast(tf.bitwise.right_shift(hashes_BxL, np.uint64(64 - random_bits)), tf.int32)
    places_BxL = (rows.slots_BxL * (1 << random_bits) + random_BxL) * (1 << position_bits) + positions
    return tf.where(rows.maskable_BxL, places_BxL, _NEVER)


def _greedy(rows: Sequences, units: Units, budgets_BxS: tf.Tensor) -> tf.Tensor:
    """bool [B, L]: the tokens of the units that BERT's walk takes, each sequence for itself."""
    points_BxS, left_BxS = _search(rows, units.places_BxL, budgets_BxS)
    ends_S = np.arange(1, rows.slots + 1) << sum(_place_bits(rows)[1:])
    last_places_S = np.minimum(ends_S, _NEVER).astype(np.int32) - 1

    def next_fitting(behind_BxS: tf.Tensor, left_BxS: tf.Tensor) -> tf.Tensor:
        """The first place behind these whose unit fits into what is left, _NEVER where there is none."""
        fits_BxL = units.last_BxL & (units.sizes_BxL <= rows.at_tokens(left_BxS))
        fitting_Bx1xL = tf.where(fits_BxL, units.places_BxL, _NEVER)[:, None, :]
        next_BxS = _reduce(rows, tf.reduce_min, tf.where(fitting_Bx1xL > behind_BxS[:, :, None], fitting_Bx1xL, _NEVER))
        # A place of a later slot: this one is done. It would choose nothing, and yet walk on to the end of the row.
        return tf.where(next_BxS <= last_places_S, next_BxS, _NEVER)

    def some(next_BxS: tf.Tensor, *_: object) -> tf.Tensor:
        return tf.reduce_any(next_BxS < _NEVER)

    def take(next_BxS: tf.Tensor, left_BxS: tf.Tensor, chosen_BxL: tf.Tensor) -> tuple[tf.Tensor, ...]:
        next_BxL = rows.at_tokens(next_BxS)
        chosen_BxL |= rows.maskable_BxL & (units.places_BxL == next_BxL)
        tokens_BxS = _count(rows, units.places_BxL[:, None, :] == next_BxS[:, :, None])
        # What was too long stays too long, since what is left only shrinks: the walk never looks back.
        left_BxS -= tf.where(next_BxS < _NEVER, tokens_BxS, 0)
        return next_fitting(next_BxS, left_BxS), left_BxS, chosen_BxL

    chosen_BxL = units.places_BxL < rows.at_tokens(points_BxS)
    return tf.while_loop(some, take, (next_fitting(points_BxS - 1, left_BxS), left_BxS, chosen_BxL))[2]


def _search(rows: Sequences, places_BxL: tf.Tensor, budgets_BxS: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(places, budgets left) [B, S]: a place before which all units of a sequence fit, and nearly no more do.

    How near it comes decides how long the walk behind it takes, and nothing else.
    """
    slot_bits, random_bits, position_bits = _place_bits(rows)
    # Places cut to 15 bits: twice as many fit into a vector register.
    steps = min(_SEARCH_STEPS, 15 - slot_bits)
    shift = random_bits + position_bits - steps
    coarse_Bx1xL = tf.cast(tf.minimum(tf.bitwise.right_shift(places_BxL, shift), 32767), tf.int16)[:, None, :]

    def tokens_before(points_BxS: tf.Tensor) -> tf.Tensor:
        return _count(rows, coarse_Bx1xL < tf.cast(points_BxS, tf.int16)[:, :, None])

    def halve(step: tf.Tensor, points_BxS: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle_BxS = points_BxS + tf.bitwise.right_shift(1 << (steps - 1), step)
        return step + 1, tf.where(tokens_before(middle_BxS) <= allowed_BxS, middle_BxS, points_BxS)

    starts_BxS = tf.broadcast_to(np.arange(rows.slots, dtype=np.int32) << steps, tf.shape(budgets_BxS))
    # The sequences before count too, in the budget and in what is held against it.
    allowed_BxS = budgets_BxS + tokens_before(starts_BxS)
    points_BxS = tf.while_loop(lambda step, _: step < steps, halve, (tf.constant(0), starts_BxS))[1]
    return tf.bitwise.left_shift(points_BxS, shift), allowed_BxS - tokens_before(points_BxS)


def _count(rows: Sequences, marks_BxSxL: tf.Tensor) -> tf.Tensor:
    """int32 [B, S]: how many marks there are."""
    kind = tf.int16 if rows.length < 1 << 15 else tf.int32
    return tf.cast(_reduce(rows, tf.reduce_sum, tf.cast(marks_BxSxL, kind), 0), tf.int32)


def _reduce(rows: Sequences, reduce: Reduce, values_BxSxL: tf.Tensor, neutral: int | np.integer = _NEVER) -> tf.Tensor:
    """[B, S]: the values along the rows, reduced."""
    columns = -(-rows.length // _LANES)
    missing = columns * _LANES - rows.length
    if missing:
        values_BxSxL = tf.pad(values_BxSxL, [[0, 0], [0, 0], [0, missing]], constant_values=neutral)
    values_BxSxCx32 = tf.reshape(values_BxSxL, [-1, rows.slots, columns, _LANES])
    return reduce(reduce(values_BxSxCx32, axis=2), axis=2)
