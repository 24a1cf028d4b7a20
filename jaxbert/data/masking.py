"""Masked-LM masking as TensorFlow operations on whole batches of rows.

What is drawn for a row is a function of its key alone (the hash of seed, epoch and row), so masks depend neither on the
batch around the row nor on the number of processes. Which tokens are chosen stands in selection.py; here stand what becomes of
them, and the rest of the batch that follows from the lengths of the sequences.

Shapes: B rows, L tokens in a row, S sequences in a row, P predictions in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from jaxbert.config import MaskingConfig
from jaxbert.data import hashing, selection

_DECISION_BITS = 24
_LOW_WORD = np.uint64(0xFFFFFFFF)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the sequences of each row lie, from their lengths."""

    starts_BxS: tf.Tensor
    ends_BxS: tf.Tensor
    """First position behind each sequence; a slot without a sequence ends where it starts."""
    passed_BxL: tf.Tensor
    """int8: how many slots end at or before each position. For a real token the number of its slot, 0 .. S-1."""
    real_BxL: tf.Tensor
    """bool: not padding."""


def layout(lengths_BxSx2: tf.Tensor, length: int) -> Layout:
    """Where the sequences lie in rows of `length` tokens; lengths are int32 (with [CLS] and first [SEP], with last [SEP])."""
    totals_BxS = tf.reduce_sum(lengths_BxSx2, axis=2)
    ends_BxS = tf.cumsum(totals_BxS, axis=1)
    real_BxL = tf.range(length) < ends_BxS[:, -1:]
    return Layout(ends_BxS - totals_BxS, ends_BxS, _passed(ends_BxS, length), real_BxL)


def sequence_features(lengths_BxSx2: tf.Tensor, nsp_labels_BxS: tf.Tensor, where: Layout) -> dict[str, tf.Tensor]:
    """What of a batch follows from lengths and labels: ids of sequence, segment and position, and what is [B, S]."""
    length, slots = where.passed_BxL.shape[1], lengths_BxSx2.shape[1]
    middles_BxS = where.starts_BxS + lengths_BxSx2[:, :, 0]
    positions_BxL = tf.broadcast_to(tf.range(length), tf.shape(where.passed_BxL))
    if slots > 1:
        starts_BxS1 = tf.pad(where.starts_BxS, [[0, 0], [0, 1]])
        positions_BxL -= selection.spread(starts_BxS1, where.passed_BxL)
    real_BxL = tf.cast(where.real_BxL, tf.int32)
    labelled_BxS = (where.ends_BxS > where.starts_BxS) & (nsp_labels_BxS < 2)
    return {
        "sequence_ids": (tf.cast(where.passed_BxL, tf.int32) + 1) * real_BxL,
        # A token of the second segment has passed the middle of its own sequence and not yet its end.
        "token_type_ids": tf.cast(_passed(middles_BxS, length) - where.passed_BxL, tf.int32),
        "position_ids": positions_BxL * real_BxL,
        "cls_positions": tf.where(where.ends_BxS > where.starts_BxS, where.starts_BxS, 0),
        "nsp_labels": tf.where(labelled_BxS, nsp_labels_BxS, 0),
        "nsp_weights": tf.cast(labelled_BxS, tf.float32),
    }


def mask_batch(
    raw: Mapping[str, tf.Tensor], keys_B: tf.Tensor, masking: MaskingConfig, max_predictions: int, vocabulary: Mapping
) -> dict[str, tf.Tensor]:
    """A whole batch from raw rows.

    raw: what `Rows.read` returns, as tensors of static shape but for B. keys_B: uint64, one per row (`hashing.keys` of
    seed, epochs, rows). vocabulary: the manifest's (size, mask_id, special_ids). Special tokens are neither chosen nor
    drawn as replacements. In a row the predictions stand in ascending position; unused slots are 0 with weight 0.
    """
    ids_BxL = tf.cast(raw["input_ids"], tf.int32)
    lengths_BxSx2 = tf.cast(raw["lengths"], tf.int32)
    where = layout(lengths_BxSx2, ids_BxL.shape[1])
    maskable_BxL = where.real_BxL & ~is_special(ids_BxL, vocabulary["special_ids"])
    hashes_BxL = hashing.mix_tensor(keys_B[:, None] + hashing.counters(ids_BxL.shape[1], stream=0))
    sequences = selection.Sequences(where.starts_BxS, where.ends_BxS, where.passed_BxL, maskable_BxL, hashes_BxL)
    chosen_BxL = selection.choose(sequences, raw["word_starts"], keys_B, masking, max_predictions)

    # From here on only the chosen tokens, N of them in the whole batch.
    places_N = tf.where(tf.reshape(chosen_BxL, [-1]))[:, 0]
    flat_ids = tf.reshape(ids_BxL, [-1])
    labels_N = tf.gather(flat_ids, places_N)
    inputs_N = replacements(labels_N, tf.gather(tf.reshape(hashes_BxL, [-1]), places_N), masking, vocabulary)
    counts_B = tf.reduce_sum(tf.cast(chosen_BxL, tf.int32), axis=1)
    splits = tf.cumsum(tf.pad(counts_B, [[1, 0]]))
    positions_N = tf.cast(places_N % ids_BxL.shape[1], tf.int32)
    return {
        "input_ids": tf.reshape(tf.tensor_scatter_nd_update(flat_ids, places_N[:, None], inputs_N), tf.shape(ids_BxL)),
        **sequence_features(lengths_BxSx2, tf.cast(raw["nsp_labels"], tf.int32), where),
        "mlm_positions": selection.padded(positions_N, splits, 0, max_predictions),
        "mlm_labels": selection.padded(labels_N, splits, 0, max_predictions),
        "mlm_weights": tf.cast(tf.range(max_predictions) < counts_B[:, None], tf.float32),
    }


def replacements(labels_N: tf.Tensor, hashes_N: tf.Tensor, masking: MaskingConfig, vocabulary: Mapping) -> tf.Tensor:
    """What the model sees in place of each chosen token: [MASK], a random token, or the token itself."""
    special = set(vocabulary["special_ids"])
    drawable = np.array([token for token in range(vocabulary["size"]) if token not in special], np.int32)
    # A second hash: the first one decided that the token was chosen.
    bits_N = hashing.mix_tensor(hashes_N + hashing.counters(1, stream=1))
    share_N = tf.cast(tf.bitwise.right_shift(bits_N, np.uint64(64 - _DECISION_BITS)), tf.int32)
    mask_below = round(masking.mask_share * 2**_DECISION_BITS)
    random_below = round((masking.mask_share + masking.random_share) * 2**_DECISION_BITS)
    low_N = tf.bitwise.bitwise_and(bits_N, _LOW_WORD)
    drawn_N = tf.bitwise.right_shift(low_N * np.uint64(len(drawable)), np.uint64(32))
    random_N = tf.gather(drawable, tf.cast(drawn_N, tf.int32))
    return tf.where(share_N < mask_below, vocabulary["mask_id"], tf.where(share_N < random_below, random_N, labels_N))


def is_special(ids_BxL: tf.Tensor, special_ids: Sequence[int]) -> tf.Tensor:
    """bool [B, L]. Special ids lie in a few runs (BERT: one), so a run costs two comparisons and no table is read."""
    ids = np.unique(np.asarray(special_ids, np.int32))
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    special_BxL = tf.zeros_like(ids_BxL, tf.bool)
    for run in runs:
        inside = ids_BxL <= run[-1]
        special_BxL |= inside if run[0] <= 0 else inside & (ids_BxL >= run[0])
    return special_BxL


def _passed(borders_BxS: tf.Tensor, length: int) -> tf.Tensor:
    """int8 [B, L]: how many of the row's borders lie at or before each position."""
    positions = tf.range(length)
    columns = tf.unstack(borders_BxS, axis=1)
    return tf.add_n([tf.cast(positions >= border_B[:, None], tf.int8) for border_B in columns])
