"""Batches of examples: every feature once an epoch, in rows that it shares, and each number where it belongs."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxbert.data.examples import (
    SHORTEST_ROW,
    Arrays,
    Layout,
    TrainingBatches,
    evaluation_batches,
    fill,
    layout_of,
)
from jaxbert.data.features import Feature
from jaxbert.text.packing import pack


def make_features(count: int, longest: int = 40, seed: int = 0) -> list[Feature]:
    """Sequences of ragged lengths; every number in them tells which feature it is of."""
    draw = np.random.default_rng(seed)
    features = []
    for n in range(count):
        size = int(draw.integers(2, longest + 1))
        features.append(
            Feature(
                example=n,
                input_ids=[1000 * n + place + 1 for place in range(size)],
                token_type_ids=[int(place > size // 2) for place in range(size)],
                tokens={"tags": [10 * n + place for place in range(size)], "shares": [n + 0.5] * size},
                values={"label": n, "weight": 1.5, "targets": [float(n), 1.0], "ids": [n, n + 1, n + 2]},
                positions={"last": size - 1, "ends": [0, size - 1]},
            )
        )
    return features


FEATURES = make_features(37)
LAYOUT = layout_of(FEATURES, rows_multiple=2)


def labels(arrays: Arrays) -> list[int]:
    """The features in a batch, by the label that each carries."""
    return sorted(arrays["label"][arrays["real"] > 0].tolist())


def test_every_feature_of_an_epoch_comes_once():
    batches = TrainingBatches(FEATURES, 8, LAYOUT, seed=3)
    assert batches.num_batches == 5
    for epoch in range(3):
        steps = [labels(arrays) for arrays in batches.batches(5 * epoch, 5 * epoch + 5)]
        assert [len(step) for step in steps] == [8, 8, 8, 8, 5]
        assert sorted(itertools.chain(*steps)) == list(range(37))


def test_orders_differ_by_epoch_and_seed():
    orders = [
        [batches.indices(step).tolist() for step in range(5 * epoch, 5 * epoch + 5)]
        for seed in range(2)
        for epoch in range(3)
        for batches in [TrainingBatches(FEATURES, 8, LAYOUT, seed)]
    ]
    assert len({str(order) for order in orders}) == 6


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_the_processes_are_the_batch(processes: int):
    batches = TrainingBatches(FEATURES, 8, layout_of(FEATURES, rows_multiple=4), seed=0)
    parts = [list(batches.batches(0, 6, index, processes)) for index in range(processes)]
    for step, whole in enumerate(batches.batches(0, 6)):
        for name, values in whole.items():
            mine = [parts[index][step][name] for index in range(processes)]
            assert len({len(rows) for rows in mine}) == 1
            np.testing.assert_array_equal(np.concatenate(mine), values, err_msg=name)


@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_a_batch_does_not_depend_on_where_a_run_starts(start: int):
    whole = list(TrainingBatches(FEATURES, 8, LAYOUT, seed=7).batches(0, 12))
    later = list(TrainingBatches(FEATURES, 8, LAYOUT, seed=7).batches(start, 12))
    assert len(later) == 12 - start
    for ours, theirs in zip(later, whole[start:], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def assert_in_place(arrays: Arrays, features: list[Feature], layout: Layout) -> None:
    """Each sequence lies whole in a row, with its numbers; what is left over is 0."""
    rows, length = arrays["input_ids"].shape
    assert length == layout.row_length
    assert arrays["real"].shape == (rows, layout.slots)
    used = {name: np.zeros(values.shape[:2], bool) for name, values in arrays.items()}
    for row, slot in np.argwhere(arrays["real"] > 0).tolist():
        feature = features[int(arrays["label"][row, slot])]
        start, size = int(arrays["cls_positions"][row, slot]), len(feature.input_ids)
        span = slice(start, start + size)
        tokens = feature.tokens | {
            "input_ids": feature.input_ids,
            "token_type_ids": feature.token_type_ids,
            "sequence_ids": [slot + 1] * size,
            "position_ids": range(size),
        }
        places = {name: np.asarray(places) + start for name, places in feature.positions.items()}
        for name, numbers in tokens.items():
            assert not used[name][row, span].any()
            used[name][row, span] = True
            assert arrays[name][row, span].tolist() == list(numbers), name
        for name, numbers in {**feature.values, **places, "real": 1, "cls_positions": start}.items():
            used[name][row, slot] = True
            np.testing.assert_array_equal(arrays[name][row, slot], numbers, err_msg=name)
        assert arrays["input_ids"][row, arrays["last"][row, slot]] == feature.input_ids[-1]
    for name, values in arrays.items():
        assert not values[~used[name]].any(), name


def test_numbers_land_where_they_should():
    several = 0
    for arrays in TrainingBatches(FEATURES, 8, LAYOUT, seed=1).batches(0, 10):
        assert_in_place(arrays, FEATURES, LAYOUT)
        several += int((arrays["real"].sum(axis=1) > 1).sum())
    assert several > 10
    assert arrays["tags"].dtype == arrays["label"].dtype == arrays["ids"].dtype == arrays["ends"].dtype == np.int32
    assert arrays["shares"].dtype == arrays["weight"].dtype == arrays["targets"].dtype == np.float32
    assert arrays["targets"].shape[2:] == (2,)
    assert arrays["ids"].shape[2:] == (3,)


def test_where_a_feature_is_placed_is_told():
    features = make_features(20, longest=12)
    layout = layout_of(features, 1)
    row_of = pack(np.array([len(f.input_ids) for f in features]), layout.row_length, layout.slots)
    placed = fill(features, np.arange(20), row_of, int(row_of.max()) + 1, layout)
    assert sorted(placed.features.tolist()) == list(range(20))
    for number, row, slot, start in zip(placed.features, placed.rows, placed.slots, placed.starts, strict=True):
        ids = features[number].input_ids
        assert placed.arrays["input_ids"][row, start : start + len(ids)].tolist() == list(ids)
        assert placed.arrays["label"][row, slot] == number
    # In the order of their numbers, whatever order they were packed in.
    for row in range(int(row_of.max()) + 1):
        numbers = placed.features[placed.rows == row].tolist()
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("rows_multiple", [1, 6])
def test_batches_have_few_numbers_of_rows_and_few_rows_to_spare(rows_multiple: int):
    features = make_features(300, longest=64)
    counts = []
    for arrays in TrainingBatches(features, 64, layout_of(features, rows_multiple), seed=0).batches(0, 15):
        counts.append(len(arrays["real"]))
        used = int(arrays["real"].any(axis=1).sum())
        # An eighth of the most rows, 64, is between two numbers of rows; full rows have 64 tokens.
        assert used <= counts[-1] <= used + 8 + rows_multiple
        assert used <= 1.2 * (arrays["sequence_ids"] > 0).sum() / 64 + 1
    assert len(set(counts)) <= 8
    assert all(count % rows_multiple == 0 for count in counts)


@pytest.mark.parametrize(("count", "batch_size", "rows_multiple"), [(1, 1, 1), (1, 32, 8), (3, 8, 16), (9, 4, 3)])
def test_small_sets_and_batches_have_rows_for_all(count: int, batch_size: int, rows_multiple: int):
    # As long as the rows: no two share one.
    features = make_features(count, longest=2)
    layout = Layout(2, rows_multiple)
    for arrays in TrainingBatches(features, batch_size, layout, seed=0).batches(0, 6):
        assert len(arrays["real"]) % rows_multiple == 0
        assert_in_place(arrays, features, layout)


@pytest.mark.parametrize(("longest", "row_length"), [(2, SHORTEST_ROW), (64, 64), (65, 72), (128, 128), (510, 512)])
def test_rows_have_room_for_the_longest(longest: int, row_length: int):
    features = [Feature(n, [1] * size, [0] * size) for n, size in enumerate((1, longest, 1))]
    assert layout_of(features, 4) == Layout(row_length, 4)
    assert layout_of(features, 4).slots == row_length // 8


@pytest.mark.parametrize("rows_multiple", [1, 3, 8])
@pytest.mark.parametrize(("count", "longest"), [(1, 5), (37, 40), (300, 64)])
def test_evaluation_covers_everything_once_in_one_shape(count: int, longest: int, rows_multiple: int):
    features = make_features(count, longest)
    layout = layout_of(features, rows_multiple)
    found: list[int] = []
    shapes = set()
    for placed in evaluation_batches(features, layout):
        shapes.add(placed.arrays["input_ids"].shape)
        assert_in_place(placed.arrays, features, layout)
        assert labels(placed.arrays) == sorted(placed.features.tolist())
        found += placed.features.tolist()
    assert sorted(found) == list(range(count))
    ((rows, length),) = shapes
    assert length == layout.row_length
    assert rows % rows_multiple == 0
    assert rows >= 4096 // length


def test_a_sequence_that_is_longer_than_the_rows_is_refused():
    with pytest.raises(ValueError, match="does not fit into 8"):
        list(evaluation_batches(make_features(5, longest=40), Layout(8, 1)))


def test_what_belongs_together_is_in_one_batch():
    # Examples of one to four features.
    examples = [n for n in range(23) for _ in range(1 + n % 4)]
    features = [
        dataclasses.replace(one, example=example) for one, example in zip(make_features(56), examples, strict=True)
    ]
    batches = TrainingBatches(features, 5, layout_of(features, 2), seed=2, together=True)
    assert batches.num_batches == 5
    for epoch in range(2):
        seen: list[int] = []
        for step, arrays in enumerate(batches.batches(5 * epoch, 5 * epoch + 5)):
            assert_in_place({name: values for name, values in arrays.items() if name != "groups"}, features, LAYOUT)
            real = arrays["real"] > 0
            groups: dict[int, list[int]] = {}
            for group, feature in zip(arrays["groups"][real].tolist(), arrays["label"][real].tolist(), strict=True):
                groups.setdefault(group, []).append(feature)
            assert len(groups) == (5 if step < 4 else 3)
            for numbers in groups.values():
                example = features[numbers[0]].example
                assert sorted(numbers) == [n for n, one in enumerate(examples) if one == example]
                seen.append(example)
        assert sorted(seen) == list(range(23))
