"""Masked-LM masking as TensorFlow operations on whole batches of rows.

What is drawn for a row is a function of its key alone (the hash of seed, epoch and row), so masks depend neither on
the batch around the row nor on the number of processes. Which tokens are chosen stands in selection.py; here stand
what becomes of them, and the rest of the batch that follows from the lengths of the sequences.

Everything is integers of static shape: XLA compiles a batch into a few loops, and every machine makes the same masks.
Shapes: B rows, L tokens in a row, S sequences in a row, P predictions in a row.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from jaxbert.config import MaskingConfig
from jaxbert.data import hashing, scans, selection

# A token's hash below the bits that order the tokens: what becomes of the token, and which random token it would be.
_DECISION_BITS, _DRAW_BITS = 16, 26
NO_LABEL = 2
"""The NSP label of a sequence that is no pair."""
assert _DECISION_BITS + _DRAW_BITS + selection.ORDER_BITS == 64


@dataclasses.dataclass(frozen=True)
class Specials:
    """The ids of a vocabulary that are neither chosen nor drawn."""

    size: int
    """Ids in the vocabulary, from 0."""
    mask_id: int
    runs: tuple[tuple[int, int], ...]
    """First and last id of each run of special ids, ascending. BERT's vocabularies have few runs."""

    @classmethod
    def of(cls, vocabulary: Mapping[str, Any]) -> "Specials":
        """From a manifest's vocabulary (size, mask_id, special_ids)."""
        ids = np.unique(np.asarray(vocabulary["special_ids"], np.int64))
        runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) else []
        return cls(vocabulary["size"], vocabulary["mask_id"], tuple((int(run[0]), int(run[-1])) for run in runs))

    @property
    def num_drawable(self) -> int:
        """Ids that are not special."""
        return self.size - sum(last - first + 1 for first, last in self.runs)

    def are(self, ids: tf.Tensor) -> tf.Tensor:
        """bool: the special ids; two comparisons for a run, and no table is read."""
        special = tf.zeros_like(ids, tf.bool)
        for first, last in self.runs:
            special |= (ids >= first) & (ids <= last)
        return special

    def drawable(self, numbers: tf.Tensor) -> tf.Tensor:
        """The ids that are not special, by their number from 0 .. num_drawable - 1."""
        for first, last in self.runs:
            numbers = tf.where(numbers >= first, numbers + (last - first + 1), numbers)
        return numbers


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The static shape of a batch, and of the rows that it is made of."""

    rows: int
    length: int
    sequences: int
    predictions: int


@functools.lru_cache(maxsize=64)
def compiled(shape: BatchShape, masking: MaskingConfig, specials: Specials) -> Callable[..., dict[str, tf.Tensor]]:
    """`mask_batch` for these settings, compiled once in a process however many data sets use it."""
    _let_tensorflow_read_its_flags()

    @tf.function(jit_compile=True, autograph=False)
    def run(raw: Mapping[str, tf.Tensor], keys_B: tf.Tensor) -> dict[str, tf.Tensor]:
        return mask_batch(raw, keys_B, shape, masking, specials)

    return run


@functools.cache
def _let_tensorflow_read_its_flags() -> None:
    """XLA_FLAGS are JAX's here. TensorFlow's own XLA would end the process at one that it does not know.

    It reads them when it first compiles something, so it does that while there are none.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    if flags is None:
        return
    try:
        with tf.device("CPU:0"):
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0))
    finally:
        os.environ["XLA_FLAGS"] = flags


def mask_batch(
    raw: Mapping[str, tf.Tensor], keys_B: tf.Tensor, shape: BatchShape, masking: MaskingConfig, specials: Specials
) -> dict[str, tf.Tensor]:
    """A whole batch from raw rows.

    raw: what `Rows.read` returns. keys_B: uint64, one for each row (`hashing.keys` of seed, epochs, rows). In a row the
    predictions stand in ascending position; unused slots are 0 with weight 0.
    """
    ids_BxL = tf.cast(raw["input_ids"], tf.int32)
    lengths_BxSx2 = tf.cast(raw["lengths"], tf.int32)
    features = sequence_features(lengths_BxSx2, tf.cast(raw["nsp_labels"], tf.int32), shape)
    real_BxL = features["sequence_ids"] > 0
    hashes_BxL = hashing.mix_tensor(keys_B[:, None] + hashing.counters(shape.length, stream=0))
    rows = selection.Sequences(
        length=shape.length,
        slots=shape.sequences,
        totals_BxS=tf.reduce_sum(lengths_BxSx2, axis=2),
        slots_BxL=features["sequence_ids"] - 1,
        first_BxL=real_BxL & (features["position_ids"] == 0),
        maskable_BxL=real_BxL & tf.logical_not(specials.are(ids_BxL)),
        hashes_BxL=hashes_BxL,
    )
    chosen_BxL = selection.choose(rows, raw["word_starts"], keys_B, masking, shape.predictions)
    positions_BxP, there_BxP = scans.set_positions(chosen_BxL, shape.length, shape.predictions)
    return {
        "input_ids": tf.where(chosen_BxL, replacements(ids_BxL, hashes_BxL, masking, specials), ids_BxL),
        **features,
        "mlm_positions": positions_BxP,
        "mlm_labels": tf.where(there_BxP, tf.gather(ids_BxL, positions_BxP, batch_dims=1), 0),
        "mlm_weights": tf.cast(there_BxP, tf.float32),
    }


def sequence_features(lengths_BxSx2: tf.Tensor, nsp_labels_BxS: tf.Tensor, shape: BatchShape) -> dict[str, tf.Tensor]:
    """What of a batch follows from lengths and labels: ids of sequence, segment and position, and what is [B, S].

    lengths: int32, tokens with [CLS] and the first [SEP], and those behind them; 0, 0 for a slot without a sequence,
    which stand behind all others.
    """
    ends_BxS = tf.cumsum(tf.reduce_sum(lengths_BxSx2, axis=2), axis=1)
    starts_BxS = tf.pad(ends_BxS[:, :-1], [[0, 0], [1, 0]])
    middles_BxS = starts_BxS + lengths_BxSx2[:, :, 0]
    positions_L = np.arange(shape.length, dtype=np.int32)
    started_BxL = passed_BxL = second_BxL = tf.zeros([shape.rows, shape.length], tf.int32)
    for slot in range(shape.sequences):
        start_Bx1, middle_Bx1, end_Bx1 = (x[:, slot, None] for x in (starts_BxS, middles_BxS, ends_BxS))
        started_BxL = tf.where(positions_L >= start_Bx1, start_Bx1, started_BxL)
        passed_BxL += tf.cast(positions_L >= end_Bx1, tf.int32)
        second_BxL += tf.cast((positions_L >= middle_Bx1) & (positions_L < end_Bx1), tf.int32)
    real_BxL = positions_L < ends_BxS[:, -1:]
    there_BxS = ends_BxS > starts_BxS
    labelled_BxS = there_BxS & (nsp_labels_BxS < NO_LABEL)
    return {
        "sequence_ids": tf.where(real_BxL, passed_BxL + 1, 0),
        "token_type_ids": second_BxL,
        "position_ids": tf.where(real_BxL, positions_L - started_BxL, 0),
        "cls_positions": tf.where(there_BxS, starts_BxS, 0),
        "nsp_labels": tf.where(labelled_BxS, nsp_labels_BxS, 0),
        "nsp_weights": tf.cast(labelled_BxS, tf.float32),
    }


def replacements(ids_BxL: tf.Tensor, hashes_BxL: tf.Tensor, masking: MaskingConfig, specials: Specials) -> tf.Tensor:
    """What the model sees in place of each token if it is chosen: [MASK], a random token, or the token itself."""
    decision_BxL = _bits(hashes_BxL, _DRAW_BITS, _DECISION_BITS)
    mask_below = round(masking.mask_share * 2**_DECISION_BITS)
    random_below = round((masking.mask_share + masking.random_share) * 2**_DECISION_BITS)
    draw_BxL = _bits(hashes_BxL, 0, _DRAW_BITS) * np.uint64(specials.num_drawable)
    number_BxL = tf.cast(tf.bitwise.right_shift(draw_BxL, np.uint64(_DRAW_BITS)), tf.int32)
    changed_BxL = tf.where(decision_BxL < np.uint64(mask_below), specials.mask_id, specials.drawable(number_BxL))
    return tf.where(decision_BxL < np.uint64(random_below), changed_BxL, ids_BxL)


def _bits(hashes: tf.Tensor, first: int, count: int) -> tf.Tensor:
    """uint64: `count` bits of each hash, from bit `first` on."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(hashes, np.uint64(first)), np.uint64((1 << count) - 1))
