"""Sequences -> rows: which sequences share a row."""

import numpy as np
from jaxtyping import Int


def pack(lengths: Int[np.ndarray, " n"], max_length: int, max_sequences: int) -> Int[np.ndarray, " n"]:
    """The row of each sequence, by best-fit decreasing: the longest first, each into the fullest row that has room.

    Rows hold at most max_length tokens and max_sequences sequences. Rows with the same room left lie in one
    stack and the occupied stacks are bits of an integer, so that a look-up takes no search: O(n) for fixed max_length.
    Lengths above max_length raise ValueError.
    """
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"a sequence of {lengths.max()} tokens does not fit into {max_length}")
    rows_with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    occupied = 0
    sizes: list[int] = []
    row_of = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                occupied ^= 1 << room
            sizes[row] += 1
        else:
            room, row = max_length, len(sizes)
            sizes.append(1)
        left = room - length
        if left and sizes[row] < max_sequences:
            rows_with_room[left].append(row)
            occupied |= 1 << left
        row_of[index] = row
    return row_of
