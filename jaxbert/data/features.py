"""Sequences that a model reads, with what it should say of them: in memory, or on disk where there are more than fit."""

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
from jaxtyping import Bool, Int

Numbers = int | float | Sequence[int] | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Feature:
    """A sequence that the model reads, and what it should say of it. All features of a task have the same names."""

    example: int
    """Number of the example that it is made of; an example may have several (windows)."""
    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    tokens: Mapping[str, Sequence[int] | Sequence[float]] = dataclasses.field(default_factory=dict)
    """Name -> a number for each token: [R, L] in a batch of R rows."""
    values: Mapping[str, Numbers] = dataclasses.field(default_factory=dict)
    """Name -> a number or a vector for the sequence: [R, S] or [R, S, n]."""
    positions: Mapping[str, Numbers] = dataclasses.field(default_factory=dict)
    """Name -> one or several places in the sequence, from 0; in a batch they are places in the row."""
    cut: bool = False
    """Whether tokens of the example were left out, so that it fits."""
    host: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What decoding needs beside the outputs; it goes into no batch."""


def kind_of(numbers: Numbers) -> type[np.int32] | type[np.float32]:
    """The type that numbers have in a batch."""
    return np.int32 if np.asarray(numbers).dtype.kind in "iub" else np.float32


class StoredFeatures(Sequence[Feature]):
    """Features on disk, for training: `host` is left out, and the file has no name, so that nothing is left behind.

    chunks: the features in their order, some at a time. folder: where there is room for them, 4 bytes for each number; None: where
    temporary files are.
    In memory there are 13 bytes for each feature.
    """

    def __init__(self, chunks: Iterable[Sequence[Feature]], folder: Path | None):
        columns: dict[tuple[str, str], _Column] = {}
        lengths: list[np.ndarray] = []
        examples: list[np.ndarray] = []
        cut: list[np.ndarray] = []
        for chunk in chunks:
            lengths.append(lengths_of(chunk).astype(np.int32))
            examples.append(examples_of(chunk))
            cut.append(np.array([feature.cut for feature in chunk], bool))
            for feature in chunk:
                for place, numbers in _parts(feature):
                    if place not in columns:
                        shape = np.shape(numbers)[1:] if _by_token(place) else np.shape(numbers)
                        columns[place] = _Column(kind_of(numbers), shape, folder)
                    columns[place].append(numbers)
        self.lengths: Int[np.ndarray, " n"] = np.concatenate([np.zeros(0, np.int32), *lengths])
        """Tokens of each."""
        self.examples: Int[np.ndarray, " n"] = np.concatenate([np.zeros(0, np.int64), *examples])
        """Number of the example of each."""
        self.cut: Bool[np.ndarray, " n"] = np.concatenate([np.zeros(0, bool), *cut])
        """Whether tokens were left out of each."""
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._arrays = {place: column.mapped() for place, column in columns.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> Feature: ...
    @overload
    def __getitem__(self, number: slice) -> list[Feature]: ...
    def __getitem__(self, number: int | slice) -> Feature | list[Feature]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        span = slice(self._starts[number], self._starts[number + 1])
        found: dict[str, dict[str, Any]] = {"": {}, "tokens": {}, "values": {}, "positions": {}}
        for (part, name), array in self._arrays.items():
            found[part][name] = array[span] if _by_token((part, name)) else array[number]
        own = found.pop("")
        cut = bool(self.cut[number])
        return Feature(int(self.examples[number]), own["input_ids"], own["token_type_ids"], **found, cut=cut)


def lengths_of(features: Sequence[Feature]) -> Int[np.ndarray, " n"]:
    """Tokens of each feature."""
    if isinstance(features, StoredFeatures):
        return features.lengths
    return np.array([len(feature.input_ids) for feature in features], np.int64)


def examples_of(features: Sequence[Feature]) -> Int[np.ndarray, " n"]:
    """The number of each feature's example."""
    if isinstance(features, StoredFeatures):
        return features.examples
    return np.array([feature.example for feature in features], np.int64)


def cut_of(features: Sequence[Feature]) -> Bool[np.ndarray, " n"]:
    """Whether tokens were left out of each feature."""
    if isinstance(features, StoredFeatures):
        return features.cut
    return np.array([feature.cut for feature in features], bool)


def _parts(feature: Feature) -> Iterable[tuple[tuple[str, str], Any]]:
    yield ("", "input_ids"), feature.input_ids
    yield ("", "token_type_ids"), feature.token_type_ids
    for part in ("tokens", "values", "positions"):
        for name, numbers in getattr(feature, part).items():
            yield (part, name), numbers


def _by_token(place: tuple[str, str]) -> bool:
    return place[0] in ("", "tokens")


class _Column:
    """Numbers of one name, one after another in a file without a name."""

    def __init__(self, dtype: type[np.generic], shape: tuple[int, ...], folder: Path | None):
        self._dtype, self._shape, self._count = np.dtype(dtype), shape, 0
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115

    def append(self, numbers: Any) -> None:
        array = np.asarray(numbers, self._dtype)
        self._count += array.size // math.prod(self._shape)
        self._file.write(array.tobytes())

    def mapped(self) -> np.ndarray:
        """All of them, [n, ...]; pages are read when they are looked at, and the system may drop them again."""
        with self._file:
            if self._count == 0:
                return np.zeros((0, *self._shape), self._dtype)
            self._file.flush()
            # A plain array over the mapped file: slices of np.memmap cost several times as much.
            return np.asarray(np.memmap(self._file, self._dtype, "r", shape=(self._count, *self._shape)))
