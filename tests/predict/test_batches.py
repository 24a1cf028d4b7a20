"""Batches of static shapes: every item once, whole, in few shapes, with little padding."""

import numpy as np
import pytest

from jaxbert.predict.batches import Batch, Item, make_batches, row_counts, row_lengths


def items_of(lengths) -> list[Item]:
    """Items whose tokens tell them apart."""
    return [
        Item(list(range(100 * i + 1, 100 * i + 1 + n)), [i % 2] * n, n // 2) for i, n in enumerate(np.asarray(lengths))
    ]


def seen(batches: list[Batch]) -> dict[int, tuple]:
    """What of each item stands in its slot: tokens, types, positions, and the token asked about."""
    found = {}
    for batch in batches:
        for item, row, slot in zip(batch.items.tolist(), batch.rows.tolist(), batch.slots.tolist(), strict=True):
            assert item not in found
            inside = np.flatnonzero(batch.arrays["sequence_ids"][row] == slot + 1)
            # One run, so that the first token is the first.
            assert (np.diff(inside) == 1).all()
            columns = [
                batch.arrays[name][row, inside].tolist() for name in ("input_ids", "token_type_ids", "position_ids")
            ]
            asked = batch.arrays["input_ids"][row, batch.arrays["positions"][row, slot]]
            found[item] = (*columns, int(asked))
    return found


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("lengths", [[5], [512], [3] * 500, list(range(1, 513, 3)), [300, 2, 2, 290, 64, 63, 65]])
def test_every_item_is_there_once_and_whole(lengths: list[int], devices: int):
    items = items_of(lengths)
    found = seen(list(make_batches(items, 512, 2048, devices)))
    assert sorted(found) == list(range(len(items)))
    for index, item in enumerate(items):
        expected = (item.input_ids, item.token_type_ids, list(range(len(item.input_ids))))
        assert found[index] == (*expected, item.input_ids[item.position])


def test_shapes_are_few_whatever_comes():
    rng = np.random.default_rng(0)
    shapes = set()
    for count in [*range(1, 60), 500, 2000]:
        lengths = rng.integers(2, rng.integers(3, 513), count)
        for batch in make_batches(items_of(lengths), 512, 2048, 1):
            rows, length = batch.arrays["input_ids"].shape
            assert length in row_lengths(512)
            assert rows in row_counts(length, 2048, 1)
            assert batch.arrays["positions"].shape == (rows, length // 4)
            shapes.add((rows, length))
    assert len(shapes) <= 11


def test_rows_are_full():
    rng = np.random.default_rng(0)
    for lengths in (rng.integers(5, 40, 3000), rng.integers(60, 128, 3000), rng.integers(5, 400, 3000)):
        shapes = [batch.arrays["input_ids"].size for batch in make_batches(items_of(lengths), 512, 2048, 1)]
        assert lengths.sum() / sum(shapes) > 0.88


def test_one_text_does_not_pay_for_a_batch():
    (batch,) = make_batches(items_of([20]), 512, 2048, 1)
    assert batch.arrays["input_ids"].shape == (1, 64)
    sizes = [batch.arrays["input_ids"].shape for batch in make_batches(items_of([60] * 9), 512, 2048, 1)]
    assert sum(rows * length for rows, length in sizes) <= 2 * 9 * 64


def test_a_model_of_few_positions():
    assert row_lengths(24) == (24,)
    assert row_lengths(64) == (64,)
    assert row_lengths(1000) == (64, 128, 256, 512, 1000)
    assert sorted(seen(list(make_batches(items_of([24, 3, 1]), 24, 2048, 1)))) == [0, 1, 2]


def test_nothing_makes_no_batch():
    assert list(make_batches([], 512, 2048, 1)) == []
