"""Sequences of examples -> batches: short ones share rows, so that a batch costs about as many tokens as it has.

As in pretraining, the position in the data is the step number: the order of an epoch is a stateless permutation of (seed, epoch),
and the batch of any step can be made at once. A batch of n sequences holds the same n whatever rows they come to share.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxbert.data.features import Feature, examples_of, kind_of, lengths_of
from jaxbert.data.order import row_indices
from jaxbert.text.packing import pack

Arrays = dict[str, np.ndarray]
SHORTEST_ROW = 64
"""Tokens; shorter sequences share rows of this length."""
_TOKENS_PER_SLOT = 8
# A batch has one of so many numbers of rows: each is a program to compile.
_SIZES = 8
_EVALUATION_TOKENS = 4096


class Layout(NamedTuple):
    """The static sizes of batches."""

    row_length: int
    """Tokens in a row."""
    rows_multiple: int
    """The rows of a batch are a multiple of it: devices that share the batch x microbatches."""

    @property
    def slots(self) -> int:
        """Sequences that a row has room for, S."""
        return max(self.row_length // _TOKENS_PER_SLOT, 1)


class Placed(NamedTuple):
    """A batch, and where in it each feature is."""

    arrays: Arrays
    features: Int[np.ndarray, " n"]
    """Numbers of the features."""
    rows: Int[np.ndarray, " n"]
    slots: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n"]
    """Place of the first token in the row."""

    def outputs_of(
        self, features: Sequence[Feature], outputs: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The number of each feature, and what of the outputs is its own. `outputs`: of sequences [R, S, ...], and of tokens [R, L, ...]."""
        sequences, tokens = outputs
        columns = (self.features, self.rows, self.slots, self.starts)
        for feature, row, slot, start in zip(*(column.tolist() for column in columns), strict=True):
            stop = start + len(features[feature].input_ids)
            of_tokens = {name: values[row, start:stop] for name, values in tokens.items()}
            yield feature, {name: values[row, slot] for name, values in sequences.items()} | of_tokens


def layout_of(features: Sequence[Feature], rows_multiple: int) -> Layout:
    """Rows with room for the longest sequence: a multiple of 8 tokens, 64 at least."""
    longest = int(lengths_of(features).max())
    return Layout(max(-(-longest // 8) * 8, SHORTEST_ROW), rows_multiple)


class TrainingBatches:
    """Batches of `batch_size` features in a new order each epoch; the last batch of an epoch has what is left.

    `together`: of `batch_size` examples, of which each has all its features in one batch.
    """

    def __init__(self, features: Sequence[Feature], batch_size: int, layout: Layout, seed: int, together: bool = False):
        self._features, self._batch_size, self._layout, self._seed = features, batch_size, layout, seed
        self._together, self._lengths = together, lengths_of(features)
        # What the order is one of: features, or the first and last + 1 of each example's.
        starts = np.arange(len(features))
        if together:
            starts = starts[np.diff(examples_of(features), prepend=-1) != 0]
        self._starts = np.append(starts, len(features))
        self._count = len(starts)
        self.num_batches: int = -(-self._count // batch_size)
        """Batches in an epoch."""
        largest = np.sort(np.diff(self._starts))[::-1][:batch_size].sum()
        most = -(-int(largest) // layout.rows_multiple)
        self._row_counts = sorted({-(-most * k // _SIZES) * layout.rows_multiple for k in range(1, _SIZES + 1)})

    def indices(self, step: int) -> Int[np.ndarray, " n"]:
        """The features in the batch of a step."""
        epoch, batch = divmod(step, self.num_batches)
        first = batch * self._batch_size
        count = min(self._batch_size, self._count - first)
        chosen = row_indices(epoch * self._count + first, count, self._count, self._seed)[1]
        return np.concatenate([np.arange(*self._starts[one : one + 2].tolist()) for one in chosen.tolist()])

    def batches(self, first_step: int, last_step: int, index: int = 0, count: int = 1) -> Iterator[Arrays]:
        """Part `index` of the `count` equal parts of each step's rows.

        As `fill` makes them; where features are kept together, also int32 "groups" [R, S], the same number for the features of an
        example.
        """
        for step in range(first_step, last_step):
            chosen = self.indices(step)
            row_of = pack(self._lengths[chosen], self._layout.row_length, self._layout.slots)
            rows = next(n for n in self._row_counts if n > row_of.max())
            placed = fill(self._features, chosen, row_of, rows, self._layout)
            if self._together:
                examples = np.array([self._features[i].example for i in placed.features.tolist()])
                groups = np.zeros_like(placed.arrays["cls_positions"])
                groups[placed.rows, placed.slots] = np.unique(examples, return_inverse=True)[1]
                placed.arrays["groups"] = groups
            yield part(placed.arrays, index, count)


def evaluation_batches(features: Sequence[Feature], layout: Layout) -> Iterator[Placed]:
    """Every feature once, in batches of one shape."""
    row_of = pack(lengths_of(features), layout.row_length, layout.slots)
    rows = -(-max(_EVALUATION_TOKENS // layout.row_length, 1) // layout.rows_multiple) * layout.rows_multiple
    order = np.argsort(row_of, kind="stable")
    ends = np.searchsorted(row_of[order], np.arange(0, row_of.max() + 1 + rows, rows))
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        if last > first:
            chosen = order[first:last]
            yield fill(features, chosen, row_of[chosen] - row_of[chosen].min() // rows * rows, rows, layout)


def part(arrays: Arrays, index: int, count: int) -> Arrays:
    """Part `index` of the `count` equal parts of a batch's rows."""
    return {name: np.split(values, count)[index] for name, values in arrays.items()}


def fill(
    features: Sequence[Feature],
    chosen: Int[np.ndarray, " n"],
    row_of: Int[np.ndarray, " n"],
    rows: int,
    layout: Layout,
) -> Placed:
    """A batch of `rows` rows with these features in the rows `row_of`.

    Its arrays: input_ids, token_type_ids, sequence_ids, position_ids int32 [R, L]; cls_positions int32 and real float32 [R, S]; and
    those of the features by their names, int32 or float32.
    """
    length, slots = layout.row_length, layout.slots
    names = ("input_ids", "token_type_ids", "sequence_ids", "position_ids")
    arrays: Arrays = {name: np.zeros((rows, length), np.int32) for name in names}
    arrays["cls_positions"] = np.zeros((rows, slots), np.int32)
    arrays["real"] = np.zeros((rows, slots), np.float32)
    model = features[0]
    for name, numbers in model.tokens.items():
        arrays[name] = np.zeros((rows, length), kind_of(numbers))
    for name, numbers in (*model.values.items(), *model.positions.items()):
        arrays[name] = np.zeros((rows, slots, *np.shape(numbers)), kind_of(numbers))
    # Features lie in a row in the order of their numbers, so that a batch does not depend on how it was packed.
    order = np.lexsort((chosen, row_of))
    counting = np.arange(length, dtype=np.int32)
    ends, taken = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    places = np.zeros((3, len(order)), np.int64)
    for n, (number, row) in enumerate(zip(chosen[order].tolist(), row_of[order].tolist(), strict=True)):
        feature = features[number]
        start, slot, size = int(ends[row]), int(taken[row]), len(feature.input_ids)
        span = slice(start, start + size)
        arrays["input_ids"][row, span] = feature.input_ids
        arrays["token_type_ids"][row, span] = feature.token_type_ids
        arrays["sequence_ids"][row, span] = slot + 1
        arrays["position_ids"][row, span] = counting[:size]
        arrays["cls_positions"][row, slot] = start
        arrays["real"][row, slot] = 1
        for name, numbers in feature.tokens.items():
            arrays[name][row, span] = numbers
        for name, numbers in feature.values.items():
            arrays[name][row, slot] = numbers
        for name, numbers in feature.positions.items():
            arrays[name][row, slot] = np.asarray(numbers) + start
        ends[row] += size
        taken[row] += 1
        places[:, n] = row, slot, start
    return Placed(arrays, chosen[order], *places)
