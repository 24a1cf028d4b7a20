"""The order of the rows: a stateless permutation of every epoch, so that any step's rows can be named at once.

Example e of a run is row `permutation(seed, e // num_rows)[e % num_rows]`. The permutation is a Feistel network over
the cells of a square that is just large enough for all rows, walked until it lands on a row again (Black and Rogaway
2002, "Ciphers with arbitrary finite domains", section 4): O(1) memory, about a microsecond a row.
"""

import math

import numpy as np
from jaxtyping import Int64

from jaxbert.data import hashing

# Luby and Rackoff need 4 rounds for a strong permutation; small squares have few round-function values, so more.
_ROUNDS = 8
_HALF, _GOLDEN = np.uint64(32), np.uint64(hashing.GOLDEN)


def row_indices(
    first_example: int, count: int, num_rows: int, seed: int
) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
    """(epochs, rows) of the examples first_example .. first_example + count - 1; they may straddle epochs.

    Raises ValueError when there are no rows.
    """
    if num_rows < 1:
        raise ValueError("there are no rows to draw from")
    epochs, places = np.divmod(np.arange(first_example, first_example + count, dtype=np.int64), num_rows)
    if num_rows == 1:
        return epochs, places
    first_epoch, last_epoch = first_example // num_rows, (first_example + count) // num_rows
    table = hashing.keys(seed, hashing.Use.ORDER, np.arange(first_epoch, last_epoch + 1), np.arange(_ROUNDS)[:, None])
    round_keys = table[:, epochs - first_epoch]
    side = np.uint64(math.isqrt(num_rows - 1) + 1)
    rows = _feistel(places.astype(np.uint64), round_keys, side)
    outside = np.flatnonzero(rows >= num_rows)
    while outside.size:
        rows[outside] = _feistel(rows[outside], round_keys[:, outside], side)
        outside = outside[rows[outside] >= num_rows]
    return epochs, rows.astype(np.int64)


def _feistel(cells: np.ndarray, round_keys: np.ndarray, side: np.uint64) -> np.ndarray:
    """A permutation of the cells 0 .. side**2 - 1 for each column of round_keys [rounds, n]."""
    left, right = np.divmod(cells, side)
    for key in round_keys:
        # The high word times side is spread evenly over 0 .. side - 1, without a division.
        shift = ((hashing.mix(key + right * _GOLDEN) >> _HALF) * side) >> _HALF
        total = left + shift
        # total modulo side: where total is below side, total - side wraps to a huge number.
        left, right = right, np.minimum(total, total - side)
    return left * side + right
