"""The positions of what is set, by element-wise operations of static shape."""

import numpy as np
import tensorflow as tf

_WORD_BITS = 16


def set_positions(marks_BxL: tf.Tensor, length: int, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(int32, bool) [B, count]: the positions of the first `count` marks, ascending, and which of them there are.

    The marks are packed into words of 16 bits; the n-th mark is found by its word, then by halving the word. Where
    there is no n-th mark its position is 0.
    """
    num_words = -(-length // _WORD_BITS)
    padded_BxWx16 = tf.reshape(pad_columns(marks_BxL, length, num_words * _WORD_BITS), [-1, num_words, _WORD_BITS])
    bits_BxWx16 = tf.bitwise.left_shift(tf.cast(padded_BxWx16, tf.int32), np.arange(_WORD_BITS, dtype=np.int32))
    words_BxW = tf.reduce_sum(bits_BxWx16, axis=2)
    counts_BxW = _population(words_BxW)
    earlier_WxW = np.triu(np.ones((num_words, num_words), np.int32), 1)
    before_BxW = tf.reduce_sum(counts_BxW[:, :, None] * earlier_WxW, axis=1)
    wanted_P = tf.range(count)
    there_BxP = wanted_P < tf.reduce_sum(counts_BxW, axis=1, keepdims=True)

    word_of_BxP = tf.reduce_sum(tf.cast(before_BxW[:, None, :] <= wanted_P[:, None], tf.int32), axis=2) - 1
    # Both in one number: one look-up instead of two.
    found_BxP = tf.gather(before_BxW * (1 << _WORD_BITS) + words_BxW, word_of_BxP, batch_dims=1)
    rank_BxP = wanted_P - tf.bitwise.right_shift(found_BxP, _WORD_BITS)
    word_BxP = tf.bitwise.bitwise_and(found_BxP, (1 << _WORD_BITS) - 1)
    offset_BxP = tf.zeros_like(rank_BxP)
    for half in (8, 4, 2, 1):
        low_BxP = tf.bitwise.bitwise_and(tf.bitwise.right_shift(word_BxP, offset_BxP), (1 << half) - 1)
        passed_BxP = _population(low_BxP)
        above_BxP = rank_BxP >= passed_BxP
        rank_BxP = tf.where(above_BxP, rank_BxP - passed_BxP, rank_BxP)
        offset_BxP = tf.where(above_BxP, offset_BxP + half, offset_BxP)
    return tf.where(there_BxP, word_of_BxP * _WORD_BITS + offset_BxP, 0), there_BxP


def pad_columns(values_BxL: tf.Tensor, length: int, padded_length: int, value: int | bool = 0) -> tf.Tensor:
    """[B, padded_length]: the values, with `value` behind them."""
    if padded_length == length:
        return values_BxL
    return tf.pad(values_BxL, [[0, 0], [0, padded_length - length]], constant_values=value)


def _population(words: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int32)
