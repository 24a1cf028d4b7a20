"""Counter-based randomness: the same 64-bit hash in numpy and in TensorFlow.

A random number is a pure function of its key and its counter, so it depends neither on the batch that it is drawn in
nor on the number of processes. The mixer is the output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators", figure 16, with the constants of Stafford's variant 13).
"""

import enum
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt64

if TYPE_CHECKING:
    import tensorflow as tf

GOLDEN = 0x9E3779B97F4A7C15
"""Weyl increment of SplitMix64: successive counters are this far apart."""
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_WORD = (1 << 64) - 1


class Use(enum.IntEnum):
    """What keys are for: those of different uses do not meet. The numbers decide every batch."""

    ORDER = 1
    MASKS = 2


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters every input bit over all output bits."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])


def mix_tensor(x: "tf.Tensor") -> "tf.Tensor":
    """`mix` for uint64 tensors."""
    # Fine-tuning shares this file, and needs no TensorFlow.
    import tensorflow as tf

    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    x = xor(x, shift(x, _SHIFTS[0])) * _FACTORS[0]
    x = xor(x, shift(x, _SHIFTS[1])) * _FACTORS[1]
    return xor(x, shift(x, _SHIFTS[2]))


def counters(count: int, stream: int) -> np.ndarray:
    """uint64 [count]: what to add to a key to draw `count` numbers of a stream; streams are 2**32 numbers apart."""
    steps = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    return steps * np.uint64(GOLDEN)


def keys(seed: int, use: Use, *parts: Int64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """One key for each tuple (seed, use, parts[0][i], parts[1][i], ...); the parts broadcast against each other."""
    state = mix(np.array([(seed * GOLDEN) & _WORD], np.uint64))
    for part in (use, *parts):
        state = mix((state + np.uint64(GOLDEN)) ^ (np.asarray(part).astype(np.uint64) * _FACTORS[0]))
    return state
