"""The row store: fixed-size records in shard files, a manifest that vouches for them, random access.

A store is a folder of `rows-NNNNN.bin` (records end to end, little-endian), `token_counts.npy` and `manifest.json`,
which is written last: a folder without it is not a store. A row holds up to S sequences, one behind the other.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from jaxbert.config import UserError
from jaxbert.text.instances import Sequences
from jaxbert.text.tokens import Tokens, gather_ranges

FORMAT_VERSION = 2
"""Of the files; also raised when the same text and settings become other rows, which are then prepared anew."""
MANIFEST, TOKEN_COUNTS = "manifest.json", "token_counts.npy"
SHARD_BYTES = 64 << 20
_WAY_OUT = "prepare the rows again"

PAIRS = ("next", "random", "none", "without_donor")


class RowsError(UserError):
    """A row store that is missing, damaged, or cannot be made."""


@dataclass(frozen=True)
class RowLayout:
    """The shape of a row: L positions, up to S sequences, ids of two bytes where the vocabulary allows it."""

    max_length: int
    max_sequences: int
    vocab_size: int

    @property
    def dtype(self) -> np.dtype:
        """One record. Aligned, so that every field of every record can be read in place.

        The bytes that this takes at the end are a field: numpy leaves those of no field as they happen to be.
        """
        length, sequences = self.max_length, self.max_sequences
        fields = [
            ("input_ids", "<u2" if self.vocab_size <= 1 << 16 else "<u4", (length,)),
            ("lengths", "<u2", (sequences, 2)),
            ("nsp_labels", "u1", (sequences,)),
            ("word_starts", "u1", (-(-length // 8),)),
        ]
        record = np.dtype(fields)
        rest = -record.itemsize % record["input_ids"].base.itemsize
        return np.dtype([*fields, ("unused", "u1", (rest,))] if rest else fields, align=True)


def fill_rows(
    tokens: Tokens,
    sequences: Sequences,
    row_of: Int[np.ndarray, " n"],
    layout: RowLayout,
    *,
    pad_id: int,
    cls_id: int,
    sep_id: int,
) -> Shaped[np.ndarray, " rows"]:
    """Lay sequences into rows: records of layout.dtype. Within a row they lie in the order in which they come.

    [CLS], [SEP] and the first token of a segment count as word starts, padding does not.
    """
    order = np.argsort(row_of, kind="stable")
    row = row_of[order]
    lengths_a, lengths_b = sequences.lengths_a()[order], sequences.lengths_b()[order]
    lengths = lengths_a + lengths_b
    num_rows = int(row[-1]) + 1 if len(row) else 0
    first_in_row = np.searchsorted(row, row)
    before = np.cumsum(lengths) - lengths
    starts = row * layout.max_length + before - before[first_in_row]
    slots = np.arange(len(row)) - first_in_row

    ids = np.full(num_rows * layout.max_length, pad_id, layout.dtype["input_ids"].base)
    word_starts = np.zeros(len(ids), bool)
    segments = (
        (starts + 1, sequences.a_start[order], sequences.a_end[order]),
        (starts + lengths_a, sequences.b_start[order], sequences.b_end[order]),
    )
    for place, begin, end in segments:
        target, source = gather_ranges(place, end - begin), gather_ranges(begin, end - begin)
        ids[target] = tokens.ids[source]
        word_starts[target] = tokens.word_starts[source]
        word_starts[place[end > begin]] = True
    for places, special in (
        (starts, cls_id),
        (starts + lengths_a - 1, sep_id),
        ((starts + lengths - 1)[lengths_b > 0], sep_id),
    ):
        ids[places] = special
        word_starts[places] = True

    rows = np.zeros(num_rows, layout.dtype)
    rows["input_ids"] = ids.reshape(num_rows, layout.max_length)
    rows["word_starts"] = np.packbits(word_starts.reshape(num_rows, layout.max_length), axis=1, bitorder="little")
    rows["nsp_labels"] = 2
    rows["nsp_labels"][row, slots] = sequences.labels[order]
    rows["lengths"][row, slots, 0] = lengths_a
    rows["lengths"][row, slots, 1] = lengths_b
    return rows


@contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete and on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode())


@dataclass
class RowWriter:
    """Writes records into shards of about shard_bytes; what it writes depends on the records and their order alone."""

    directory: pathlib.Path
    layout: RowLayout
    pad_id: int
    shard_bytes: int = SHARD_BYTES
    _held: list[np.ndarray] = field(default_factory=list)
    _shards: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MANIFEST).unlink(missing_ok=True)
        self._records_per_shard = max(1, self.shard_bytes // self.layout.dtype.itemsize)
        self._counts = np.zeros(self.layout.vocab_size, np.int64)
        self._sequences = self._tokens = 0

    def write(self, rows: Shaped[np.ndarray, " rows"]) -> None:
        """Append records of layout.dtype."""
        tokens = int(rows["lengths"].sum(dtype=np.int64))
        self._counts += np.bincount(rows["input_ids"].ravel(), minlength=len(self._counts))
        self._counts[self.pad_id] -= rows["input_ids"].size - tokens
        self._tokens += tokens
        self._sequences += int((rows["lengths"][:, :, 0] > 0).sum())
        while len(rows):
            room = self._records_per_shard - sum(map(len, self._held))
            self._held.append(rows[:room])
            rows = rows[room:]
            if sum(map(len, self._held)) == self._records_per_shard:
                self._close_shard()

    def _close_shard(self) -> None:
        name, digest, num_bytes = f"rows-{len(self._shards):05d}.bin", hashlib.sha256(), 0
        with atomic_file(self.directory / name) as file:
            for rows in self._held:
                data = np.ascontiguousarray(rows).view(np.uint8).data
                digest.update(data)
                num_bytes += file.write(data)
        rows_in_shard = sum(map(len, self._held))
        self._shards.append({"file": name, "rows": rows_in_shard, "bytes": num_bytes, "sha256": digest.hexdigest()})
        self._held = []

    def finish(self, **described: Any) -> dict[str, Any]:
        """Write what is left, the token counts and, last, the manifest, to which `described` is added; returns it."""
        if self._held:
            self._close_shard()
        with atomic_file(self.directory / TOKEN_COUNTS) as file:
            np.save(file, self._counts)
        num_rows = sum(shard["rows"] for shard in self._shards)
        positions = num_rows * self.layout.max_length
        manifest = {
            "format_version": FORMAT_VERSION,
            "max_length": self.layout.max_length,
            "max_sequences": self.layout.max_sequences,
            "num_rows": num_rows,
            "num_sequences": self._sequences,
            "num_tokens": self._tokens,
            "fill": self._tokens / positions if positions else 0.0,
            **described,
            "token_counts": _vouch(self.directory / TOKEN_COUNTS),
            "shards": self._shards,
        }
        write_json(self.directory / MANIFEST, manifest)
        return manifest


def _vouch(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


class Rows:
    """Random access over a finished store. Opens files, reads none of the rows until asked (verify="hash" reads all)."""

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any]):
        self.directory: pathlib.Path = directory
        self.manifest: dict[str, Any] = manifest
        self.max_length: int = manifest["max_length"]
        self.max_sequences: int = manifest["max_sequences"]
        self.layout: RowLayout = RowLayout(self.max_length, self.max_sequences, manifest["vocabulary"]["size"])
        self.token_counts: Int[np.ndarray, " vocab"] = np.load(directory / manifest["token_counts"]["file"])
        """How often each token stands in the rows, padding not counted."""
        self._shards = [
            np.memmap(directory / shard["file"], np.uint8, "r", shape=(shard["rows"], self.layout.dtype.itemsize))
            for shard in manifest["shards"]
        ]
        self._ends = np.cumsum([shard["rows"] for shard in manifest["shards"]], dtype=np.int64)

    @classmethod
    def open(cls, directory: str | os.PathLike[str], verify: Literal["size", "hash"] = "size") -> "Rows":
        """Open a store. RowsError where it is none, or a file is missing, has another size or (verify="hash") another sha256."""
        folder = pathlib.Path(directory)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
        except OSError as error:
            raise RowsError(
                f"{folder}: no finished rows here ({MANIFEST} is missing): run `jaxbert prepare`"
            ) from error
        except ValueError as error:
            raise RowsError(f"{folder / MANIFEST}: damaged: {_WAY_OUT}") from error
        try:
            _check_manifest(folder, manifest)
            files = [*manifest["shards"], manifest["token_counts"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise RowsError(f"{folder / MANIFEST}: damaged: {_WAY_OUT}") from error
        for described in files:
            _check_file(folder, described, verify)
        return cls(folder, manifest)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Int[np.ndarray, " n"]) -> dict[str, Shaped[np.ndarray, "n ..."]]:
        """The rows of these numbers, in this order. IndexError beyond the store.

        "input_ids" uint16 or uint32 [n, L]; "word_starts" uint8 [n, ceil(L / 8)], bit i % 8 of byte i // 8 = token i starts
        a word; "lengths" uint16 [n, S, 2], tokens of the first and second segment, 0, 0 where there is no sequence;
        "nsp_labels" uint8 [n, S]: 0, 1, or 2 = no label.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a store of {len(self)}")
        records: UInt8[np.ndarray, "n bytes"] = np.empty((len(indices), self.layout.dtype.itemsize), np.uint8)
        shard_of = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shard_of):
            wanted = np.flatnonzero(shard_of == shard)
            first = self._ends[shard] - len(self._shards[shard])
            records[wanted] = self._shards[shard][indices[wanted] - first]
        rows = records.view(self.layout.dtype)[:, 0]
        return {
            name: np.ascontiguousarray(rows[name]) for name in ("input_ids", "word_starts", "lengths", "nsp_labels")
        }


def _check_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise RowsError(f"{folder}: rows of format {version}, this is {FORMAT_VERSION}: {_WAY_OUT}")
    layout = RowLayout(manifest["max_length"], manifest["max_sequences"], manifest["vocabulary"]["size"])
    if any(shard["rows"] * layout.dtype.itemsize != shard["bytes"] for shard in manifest["shards"]):
        raise RowsError(f"{folder / MANIFEST}: rows and bytes contradict each other: {_WAY_OUT}")


def _check_file(folder: pathlib.Path, described: dict[str, Any], verify: str) -> None:
    path = folder / described["file"]
    if not path.is_file():
        raise RowsError(f"{path}: missing: {_WAY_OUT}")
    if path.stat().st_size != described["bytes"]:
        raise RowsError(f"{path}: {path.stat().st_size} bytes, the manifest says {described['bytes']}: {_WAY_OUT}")
    if verify == "hash" and _vouch(path)["sha256"] != described["sha256"]:
        raise RowsError(f"{path}: its content does not match the manifest's sha256: {_WAY_OUT}")
