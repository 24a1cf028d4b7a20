"""Features on disk are those in memory, and give the same batches."""

import dataclasses
import pathlib

import numpy as np
import pytest
from test_example_batches import make_features

from jaxbert.data.examples import TrainingBatches, layout_of
from jaxbert.data.features import Feature, StoredFeatures, examples_of, lengths_of

# Examples of one to three features.
FEATURES = [dataclasses.replace(one, example=n // 2, host={"words": n}) for n, one in enumerate(make_features(31))]


def stored(folder: pathlib.Path, features=FEATURES, at_once: int = 8) -> StoredFeatures:
    return StoredFeatures((features[n : n + at_once] for n in range(0, len(features), at_once)), folder)


def plain(feature: Feature) -> dict:
    """Numbers as Python has them, without what is for decoding."""
    values = dataclasses.asdict(dataclasses.replace(feature, host={}))
    return {
        name: {key: np.asarray(numbers).tolist() for key, numbers in value.items()}
        if isinstance(value, dict)
        else np.asarray(value).tolist()
        for name, value in values.items()
    }


def test_every_number_comes_back(tmp_path: pathlib.Path):
    features = stored(tmp_path)
    assert len(features) == len(FEATURES)
    assert [plain(one) for one in features] == [plain(one) for one in FEATURES]
    assert plain(features[-1]) == plain(FEATURES[-1])
    assert [plain(one) for one in features[3:9:2]] == [plain(one) for one in FEATURES[3:9:2]]
    with pytest.raises(IndexError):
        features[31]
    np.testing.assert_array_equal(lengths_of(features), lengths_of(FEATURES))
    np.testing.assert_array_equal(examples_of(features), examples_of(FEATURES))


def test_nothing_is_left_in_the_folder(tmp_path: pathlib.Path):
    features = stored(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert plain(features[5]) == plain(FEATURES[5])


@pytest.mark.parametrize("together", [False, True])
def test_batches_are_the_same(tmp_path: pathlib.Path, together: bool):
    layout = layout_of(FEATURES, 2)
    features = stored(tmp_path)
    assert layout_of(features, 2) == layout
    ours, theirs = (TrainingBatches(some, 5, layout, 3, together) for some in (features, FEATURES))
    assert ours.num_batches == theirs.num_batches
    for one, other in zip(ours.batches(0, 15), theirs.batches(0, 15), strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], strict=True)


def test_nothing_at_all(tmp_path: pathlib.Path):
    features = StoredFeatures([], tmp_path)
    assert len(features) == 0
    assert list(features) == []
