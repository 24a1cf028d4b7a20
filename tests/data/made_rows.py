"""Rows made up for the tests of this room, and a row store in memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from jaxbert.config import MaskingConfig
from jaxbert.data import hashing, masking

PAD, UNK, CLS, SEP, MASK = 0, 1, 2, 3, 4
# Special ids in three runs: the usual ones, one amid the text, and the last one.
VOCABULARY: dict[str, Any] = {
    "size": 300,
    "pad_id": PAD,
    "mask_id": MASK,
    "special_ids": [PAD, UNK, CLS, SEP, MASK, 50, 299],
}
SPECIAL = frozenset(VOCABULARY["special_ids"])
SPECIALS = masking.Specials.of(VOCABULARY)
TEXT_IDS = np.array([index for index in range(VOCABULARY["size"]) if index not in SPECIAL])
NO_LABEL = 2


@dataclasses.dataclass
class MemoryRows:
    """What `jaxbert.text.rows.Rows` is to this room, without files."""

    fields: dict[str, np.ndarray]
    manifest: dict[str, Any] = dataclasses.field(default_factory=lambda: {"vocabulary": VOCABULARY})

    def __len__(self) -> int:
        return len(self.fields["input_ids"])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[indices] for name, values in self.fields.items()}


def raw(
    ids: Sequence[Sequence[int]],
    starts: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[tuple[int, int]]],
    length: int,
    labels: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Rows as the store gives them, from lists without padding; each row has as many (first, second) lengths."""
    padded = np.zeros((len(ids), length), np.uint16)
    bits = np.zeros((len(ids), length), bool)
    for row, (row_ids, row_starts) in enumerate(zip(ids, starts, strict=True)):
        padded[row, : len(row_ids)] = row_ids
        bits[row, : len(row_starts)] = np.array(row_starts, bool)
    lengths = np.array(lengths, np.uint16)
    return {
        "input_ids": padded,
        "word_starts": np.packbits(bits, axis=1, bitorder="little"),
        "lengths": lengths,
        "nsp_labels": np.full(lengths.shape[:2], NO_LABEL, np.uint8) if labels is None else np.array(labels, np.uint8),
    }


def text_rows(num_rows: int, length: int, slots: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows as prepared text has them: [CLS] a [SEP] b [SEP], a fifth of them without b; words of 1 to 4 tokens."""
    rng = np.random.default_rng(seed)

    def text(count: int) -> tuple[list[int], list[int]]:
        words = np.cumsum(rng.choice(4, count, p=(0.6, 0.2, 0.1, 0.1)) + 1)
        return rng.choice(TEXT_IDS, count).tolist(), [1, *np.isin(np.arange(1, count), words).tolist()]

    rows: list[tuple[list[int], list[int], list[tuple[int, int]], list[int]]] = []
    for _ in range(num_rows):
        ids, starts, lengths, labels = [], [], [], []
        for _ in range(slots):
            room = int(rng.uniform(0.8, 1) * length / slots)
            second = 0 if rng.random() < 0.2 else int(rng.integers(2, room - 4))
            for count, head in ((room - second, [CLS]), (second, [])):
                if count:
                    segment_ids, segment_starts = text(count - len(head) - 1)
                    ids += [*head, *segment_ids, SEP]
                    starts += [*[1] * len(head), *segment_starts, 1]
            lengths.append((room - second, second))
            labels.append(int(rng.integers(2)) if second else NO_LABEL)
        rows.append((ids, starts, lengths, labels))
    all_ids, all_starts, all_lengths, all_labels = zip(*rows, strict=True)
    return raw(all_ids, all_starts, all_lengths, length, all_labels)


def wild_rows(num_rows: int, length: int, slots: int, seed: int) -> dict[str, np.ndarray]:
    """Rows that no text gives: special ids anywhere, sequences without [CLS], words across borders.

    Of every eight rows one is all padding, one has special tokens alone, one is a single word, one has words of two
    tokens.
    """
    rng = np.random.default_rng(seed)
    fields: list[list[Any]] = [[], [], []]
    for row in range(num_rows):
        count = int(rng.integers(slots + 1)) if row % 8 else 0
        borders = np.sort(rng.choice(np.arange(1, length + 1), count, replace=False))
        totals = np.diff(borders, prepend=0).tolist()
        firsts = [int(rng.integers(1, total + 1)) for total in totals]
        special = rng.random(length) < rng.choice((0.0, 0.1, 0.5))
        ids = np.where(special, rng.choice(sorted(SPECIAL), length), rng.choice(TEXT_IDS, length))
        starts = rng.random(length) < rng.choice((0.1, 0.5, 0.8))
        if row % 8 == 1:
            ids = rng.choice(sorted(SPECIAL), length)
        elif row % 8 == 2:
            ids, starts = rng.choice(TEXT_IDS, length), np.zeros(length, bool)
        elif row % 8 == 3:
            starts = np.arange(length) % 2 == 0
        lengths = [(first, total - first) for first, total in zip(firsts, totals, strict=True)]
        real = int(borders[-1]) if count else 0
        for field, value in zip(fields, (ids[:real], starts[:real], lengths + [(0, 0)] * (slots - count)), strict=True):
            field.append(value)
    return raw(*fields, length)


def keys_of(num_rows: int, epoch: int = 0, seed: int = 1) -> np.ndarray:
    """The keys of the first rows of a store."""
    return hashing.keys(seed, hashing.Use.MASKS, np.array([epoch]), np.arange(num_rows))


def masked(
    rows: dict[str, np.ndarray], keys: np.ndarray, config: MaskingConfig, predictions: int
) -> dict[str, np.ndarray]:
    """The batch of these rows, not compiled."""
    num_rows, length = rows["input_ids"].shape
    shape = masking.BatchShape(num_rows, length, rows["lengths"].shape[1], predictions)
    tensors = {name: tf.constant(values) for name, values in rows.items()}
    batch = masking.mask_batch(tensors, tf.constant(keys), shape, config, SPECIALS)
    return {name: value.numpy() for name, value in batch.items()}
