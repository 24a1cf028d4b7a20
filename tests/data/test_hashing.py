"""The hash is SplitMix64's, the same in numpy and TensorFlow; keys of different things differ."""

import numpy as np
import tensorflow as tf

from jaxbert.data import hashing
from jaxbert.data.hashing import Use


def test_published_sequence():
    # The first outputs of SplitMix64 from seed 0 (Vigna's splitmix64.c): key 0 and the counters are its states.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert hashing.mix(hashing.counters(4, stream=0)).tolist() == expected


def test_tensorflow_draws_the_same():
    values = np.random.default_rng(0).integers(0, 1 << 64, 10_000, np.uint64, endpoint=False)
    values[:3] = 0, (1 << 64) - 1, 1 << 63
    assert np.array_equal(hashing.mix_tensor(tf.constant(values)).numpy(), hashing.mix(values))


def test_every_bit_is_a_fair_coin_and_none_follows_another():
    trials = 1 << 16
    bits = np.unpackbits(hashing.mix(hashing.counters(trials, stream=0) + np.uint64(7)).view(np.uint8)).reshape(-1, 64)
    signs = bits.astype(np.float32) * 2 - 1
    # 2,080 sums of fair coins: one beyond 6 standard deviations has a probability of 4e-6 (and the draw is fixed).
    bound = 6 * trials**0.5
    assert np.abs(signs.sum(axis=0)).max() < bound
    products = signs.T @ signs
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() < bound


def test_streams_never_meet():
    first, second = (set(hashing.counters(1000, stream).tolist()) for stream in (0, 1))
    assert len(first) == len(second) == 1000
    assert not first & second


def test_keys_differ_in_every_part():
    epochs, rows = np.arange(20)[:, None], np.arange(50)
    keys = [hashing.keys(seed, use, epochs, rows) for seed in (-1, 0, 1, 2**40) for use in Use]
    assert all(key.shape == (20, 50) and key.dtype == np.uint64 for key in keys)
    assert len(np.unique(keys)) == 4 * 2 * 20 * 50


def test_a_key_is_that_of_its_own_tuple():
    keys = hashing.keys(3, Use.MASKS, np.array([1, 2, 2]), np.array([5, 5, 6]))
    assert keys[1:2].tolist() == hashing.keys(3, Use.MASKS, np.array([2]), np.array([5])).tolist()
    # Masks and order follow from these numbers: they change with a new version of the batches alone.
    assert [hex(key) for key in keys] == ["0x191fcc99cc2083fd", "0x566edfd29566a947", "0xb1c7c9c5cc37a6b"]
