"""Sequences of any length -> batches of a few static shapes, so that few programs are compiled.

Short sequences share a row, as in packed pretraining: a row is full whatever the lengths are, and rows come in few lengths (64, 128, 256, 512).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from jaxbert.text.packing import pack

SHORTEST_ROW = 64
"""Tokens; the other lengths of rows are this doubled, and doubled again."""
TOKENS_PER_SLOT = 4
"""A row has a slot for a sequence for every so many of its tokens."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A sequence that the model reads, and the token in it that is asked about."""

    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    position: int = 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one length, and where in them the items are."""

    arrays: dict[str, np.ndarray]
    """int32: input_ids, token_type_ids, sequence_ids, position_ids [R, L]; positions [R, S], of each slot's token in the row."""
    items: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    slots: Int[np.ndarray, " n"]


def row_lengths(max_length: int) -> tuple[int, ...]:
    """The lengths that rows may have for a model that reads `max_length` tokens, ascending."""
    shorter = itertools.takewhile(lambda length: length < max_length, (SHORTEST_ROW << n for n in itertools.count()))
    return (*shorter, max_length)


def row_counts(length: int, tokens: int, devices: int) -> tuple[int, ...]:
    """How many rows of a length a batch may have, descending: about `tokens` in all, an eighth of it, and one for each device."""
    most = max(tokens // length, 1)
    return tuple(sorted({-(-count // devices) * devices for count in (most, -(-most // 8), 1)}, reverse=True))


def make_batches(items: Sequence[Item], max_length: int, tokens: int, devices: int) -> Iterator[Batch]:
    """Every item in one batch, those of like length together. No item is longer than `max_length`.

    `tokens`: of the largest batches; `devices`: the rows of a batch are a multiple of it.
    """
    lengths = np.array([len(item.input_ids) for item in items], np.int64)
    row_of = _rows(lengths, row_lengths(max_length))
    order = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of))
    members = np.split(order, ends[:-1]) if len(ends) else []
    fitting = _fitting_lengths(members, lengths, row_lengths(max_length))
    for length in np.unique(fitting)[::-1].tolist():
        chosen = np.flatnonzero(fitting == length).tolist()
        for part, count in _parts(len(chosen), row_counts(length, tokens, devices)):
            yield _fill(items, [members[row] for row in chosen[part]], count, length)


def _rows(lengths: Int[np.ndarray, " n"], ladder: tuple[int, ...]) -> Int[np.ndarray, " n"]:
    """The row of each item, by best fit among items of like length."""
    # Rows of twice the length of what goes into them leave little room unused.
    bracket = np.searchsorted(ladder, np.minimum(2 * lengths, ladder[-1]))
    row_of, count = np.full(len(lengths), -1, np.int64), 0
    for index, length in enumerate(ladder):
        inside = np.flatnonzero(bracket == index)
        rows = pack(lengths[inside], length, _slots(length))
        row_of[inside] = rows + count
        count += int(rows.max(initial=-1)) + 1
    return row_of


def _fitting_lengths(
    members: Sequence[Int[np.ndarray, " m"]], lengths: Int[np.ndarray, " n"], ladder: tuple[int, ...]
) -> Int[np.ndarray, " r"]:
    """The length of each row: the shortest with room for its tokens and its sequences, as the last rows are not full."""
    tokens = np.array([lengths[inside].sum() for inside in members], np.int64)
    sequences = np.array([len(inside) for inside in members], np.int64)
    slots = [_slots(length) for length in ladder]
    return np.array(ladder)[np.maximum(np.searchsorted(ladder, tokens), np.searchsorted(slots, sequences))]


def _slots(length: int) -> int:
    return max(length // TOKENS_PER_SLOT, 1)


def _parts(rows: int, counts: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Rows in batches: the largest while they are at least half full, then the next smaller ones."""
    start = 0
    for count in counts:
        while rows - start > count // 2 or (count == counts[-1] and start < rows):
            yield slice(start, min(start + count, rows)), count
            start = min(start + count, rows)


def _fill(items: Sequence[Item], members: Sequence[Int[np.ndarray, " m"]], count: int, length: int) -> Batch:
    """A batch of `count` rows; `members` are the items of the first of them, the rest is padding."""
    names = ("input_ids", "token_type_ids", "sequence_ids", "position_ids")
    arrays = {name: np.zeros((count, length), np.int32) for name in names}
    arrays["positions"] = np.zeros((count, _slots(length)), np.int32)
    counting = np.arange(length, dtype=np.int32)
    for row, inside in enumerate(members):
        start = 0
        for slot, index in enumerate(inside.tolist()):
            item = items[index]
            size = len(item.input_ids)
            span = slice(start, start + size)
            arrays["input_ids"][row, span] = item.input_ids
            arrays["token_type_ids"][row, span] = item.token_type_ids
            arrays["sequence_ids"][row, span] = slot + 1
            arrays["position_ids"][row, span] = counting[:size]
            arrays["positions"][row, slot] = start + item.position
            start += size
    sizes = [len(inside) for inside in members]
    return Batch(
        arrays,
        items=np.concatenate(members),
        rows=np.repeat(np.arange(len(members)), sizes),
        slots=np.concatenate([np.arange(size) for size in sizes]),
    )
