"""The order of the rows: a permutation for every epoch, of which any part can be made at once."""

import numpy as np
import pytest
from scipy import stats

from jaxbert.data.order import row_indices


@pytest.mark.parametrize("num_rows", [*range(1, 27), 97, 100, 101, 5000])
def test_every_epoch_is_a_permutation(num_rows: int):
    epochs, rows = row_indices(0, 3 * num_rows, num_rows, seed=5)
    assert np.array_equal(epochs, np.repeat(np.arange(3), num_rows))
    assert np.array_equal(np.sort(rows.reshape(3, num_rows), axis=1), np.tile(np.arange(num_rows), (3, 1)))


def test_a_late_epoch_of_many_rows_is_a_permutation():
    num_rows = 200_003
    _, rows = row_indices(10**6 * num_rows, num_rows, num_rows, seed=1)
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


def test_any_part_is_that_of_the_whole():
    whole = np.stack(row_indices(0, 500, 77, seed=9))
    for first, count in [(0, 1), (76, 2), (70, 200), (499, 1), (154, 77), (153, 0), (13, 400)]:
        part = np.stack(row_indices(first, count, 77, seed=9))
        assert np.array_equal(part, whole[:, first : first + count]), (first, count)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [row_indices(epoch * 50, 50, 50, seed)[1] for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16
    # Two random orders agree in 1 place on average; in 12 or more with a probability of 2e-9 a pair.
    agreeing = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreeing) < 12


def test_order_is_fair():
    # Each ordered pair of the 6 rows comes first equally often, over 30,000 epochs.
    num_rows, num_epochs = 6, 30_000
    rows = row_indices(0, num_rows * num_epochs, num_rows, seed=2)[1].reshape(num_epochs, num_rows)
    counts = np.bincount(rows[:, 0] * num_rows + rows[:, 1], minlength=num_rows**2).reshape(num_rows, num_rows)
    assert np.diag(counts).sum() == 0
    pairs = counts[~np.eye(num_rows, dtype=bool)]
    # A fair shuffle is beyond this with a probability of 1e-6; the draw is fixed.
    expected = num_epochs / len(pairs)
    assert ((pairs - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-6, len(pairs) - 1)


def test_golden_order():
    # Changes with a new version of the batches alone: a run that is resumed must go on in the order that it began.
    assert row_indices(0, 12, 12, seed=0)[1].tolist() == [10, 4, 8, 5, 6, 3, 9, 0, 2, 11, 1, 7]


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        row_indices(0, 1, 0, seed=0)
