"""The positions of the set bits of each row."""

import numpy as np
import pytest
import tensorflow as tf

from jaxbert.data.scans import set_positions


@pytest.mark.parametrize(("length", "count"), [(1, 1), (15, 3), (16, 16), (17, 5), (96, 20), (100, 100), (512, 77)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_positions_of_marks(length: int, count: int, share: float):
    marks = np.random.default_rng(length).random((40, length)) < share
    positions, there = (tensor.numpy() for tensor in set_positions(tf.constant(marks), length, count))
    assert positions.shape == there.shape == (40, count)
    assert positions.dtype == np.int32
    for row in range(40):
        expected = np.flatnonzero(marks[row])[:count].tolist()
        assert positions[row].tolist() == expected + [0] * (count - len(expected))
        assert there[row].tolist() == [True] * len(expected) + [False] * (count - len(expected))
