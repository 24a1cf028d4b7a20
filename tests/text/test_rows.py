"""The row store: layout of a row, shards and manifest, random access, damage that is seen, files that are whole or not there."""

import hashlib
import json
import pathlib
from typing import Literal

import numpy as np
import pytest

from jaxbert.config import UserError
from jaxbert.text.instances import Sequences
from jaxbert.text.rows import MANIFEST, TOKEN_COUNTS, RowLayout, Rows, RowsError, RowWriter, atomic_file, fill_rows
from jaxbert.text.tokens import Tokens

PAD, CLS, SEP = 0, 101, 102
VOCABULARY = {"size": 200, "pad_id": PAD}


def tokens_of(ids: list[int], word_starts: list[int]) -> Tokens:
    end = np.array([0, len(ids)])
    return Tokens(np.array(ids, np.uint32), np.array(word_starts, bool), end, np.array([0, 1]), np.array([0]))


def sequences_of(*ranges: tuple[int, int, int, int, int]) -> Sequences:
    """(a_start, a_end, b_start, b_end, label) each."""
    columns = np.array(ranges, np.int64).reshape(-1, 5).T
    return Sequences(*columns[:4], labels=columns[4].astype(np.uint8))


def filled(layout: RowLayout, tokens: Tokens, sequences: Sequences, row_of: list[int]) -> np.ndarray:
    return fill_rows(tokens, sequences, np.array(row_of, np.int64), layout, pad_id=PAD, cls_id=CLS, sep_id=SEP)


def unpacked_bits(word_starts: np.ndarray, length: int) -> list[list[int]]:
    return np.unpackbits(word_starts, axis=1, bitorder="little")[:, :length].tolist()


def test_a_pair_a_single_and_a_packed_row():
    tokens = tokens_of([11, 12, 13, 14, 15, 16], [1, 0, 1, 0, 0, 1])
    # A pair whose B starts inside a word, a sequence without B, and one that shares the first one's row.
    sequences = sequences_of((0, 2, 3, 5, 1), (2, 4, 0, 0, 2), (5, 6, 0, 1, 0))
    rows = filled(RowLayout(13, 3, 200), tokens, sequences, [0, 1, 0])
    assert rows["input_ids"].tolist() == [
        [CLS, 11, 12, SEP, 14, 15, SEP, CLS, 16, SEP, 11, SEP, PAD],
        [CLS, 13, 14, SEP] + [PAD] * 9,
    ]
    assert rows["lengths"].tolist() == [[[4, 3], [3, 2], [0, 0]], [[4, 0], [0, 0], [0, 0]]]
    assert rows["nsp_labels"].tolist() == [[1, 0, 2], [2, 2, 2]]
    # Special tokens and the first token of a segment start a word, padding does not.
    assert unpacked_bits(rows["word_starts"], 13) == [
        [1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 0, 1] + [0] * 9,
    ]


def test_no_sequences_no_rows():
    assert len(filled(RowLayout(8, 1, 200), tokens_of([1], [1]), sequences_of(), [])) == 0


@pytest.mark.parametrize(("vocab_size", "kind"), [(30_522, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_take_two_bytes_where_they_fit(vocab_size: int, kind: str):
    layout = RowLayout(128, 1, vocab_size)
    assert layout.dtype["input_ids"].base == np.dtype(kind)
    rows = filled(layout, tokens_of([vocab_size - 1], [1]), sequences_of((0, 1, 0, 0, 2)), [0])
    assert rows["input_ids"][0, :3].tolist() == [CLS, vocab_size - 1, SEP]


@pytest.mark.parametrize("layout", [RowLayout(16, 2, 200), RowLayout(32, 1, 200), RowLayout(33, 3, 100_000)])
def test_every_byte_of_a_record_belongs_to_a_field(layout: RowLayout):
    # numpy copies fields; bytes between them would be left to chance, and no two runs would write the same.
    kind = layout.dtype
    assert sum(kind[name].itemsize for name in kind.names or ()) == kind.itemsize
    assert kind.itemsize % kind["input_ids"].base.itemsize == 0
    assert kind.isalignedstruct


LAYOUT = RowLayout(16, 2, 200)


def some_rows(count: int = 100) -> np.ndarray:
    """Rows of one sequence of 3 to 16 tokens each, all of them different."""
    rng = np.random.default_rng(0)
    tokens = tokens_of(rng.integers(103, 200, 14 * count).tolist(), rng.integers(0, 2, 14 * count).tolist())
    starts = np.arange(count) * 14
    ranges = [(s, s + 1 + int(n), 0, 0, 2) for s, n in zip(starts.tolist(), rng.integers(0, 14, count), strict=True)]
    return filled(LAYOUT, tokens, sequences_of(*ranges), list(range(count)))


def write_store(folder: pathlib.Path, rows: np.ndarray, parts: int = 1, rows_per_shard: int = 30) -> dict:
    writer = RowWriter(folder, LAYOUT, PAD, shard_bytes=rows_per_shard * LAYOUT.dtype.itemsize)
    for part in np.array_split(rows, parts):
        writer.write(part)
    return writer.finish(vocabulary=VOCABULARY, fingerprint="abc")


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    write_store(tmp_path / "train-16", some_rows())
    return tmp_path / "train-16"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_manifest_says_what_is_there(store: pathlib.Path):
    rows = some_rows()
    manifest = json.loads((store / MANIFEST).read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [30, 30, 30, 10]
    for described in [*manifest["shards"], manifest["token_counts"]]:
        content = (store / described["file"]).read_bytes()
        assert described["bytes"] == len(content)
        assert described["sha256"] == hashlib.sha256(content).hexdigest()
    tokens = int(rows["lengths"].sum())
    assert (manifest["num_rows"], manifest["num_sequences"], manifest["num_tokens"]) == (100, 100, tokens)
    assert manifest["fill"] == tokens / 1600
    assert manifest["fingerprint"] == "abc"
    assert set(contents(store)) == {MANIFEST, TOKEN_COUNTS, *(f"rows-0000{n}.bin" for n in range(4))}


def test_token_counts_leave_out_padding(tmp_path: pathlib.Path):
    # A token of the text that has the padding's id counts.
    rows = filled(LAYOUT, tokens_of([PAD, 150, 150], [1, 1, 1]), sequences_of((0, 3, 0, 0, 2)), [0])
    write_store(tmp_path, rows)
    counts = Rows.open(tmp_path).token_counts
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == {PAD: 1, CLS: 1, SEP: 1, 150: 2}


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_the_same_bytes_however_rows_come(tmp_path: pathlib.Path, store: pathlib.Path, parts: int):
    write_store(tmp_path / "other", some_rows(), parts)
    assert contents(tmp_path / "other") == contents(store)


@pytest.mark.parametrize("verify", ["size", "hash"])
def test_random_access(store: pathlib.Path, verify: Literal["size", "hash"]):
    expected = some_rows()
    rows = Rows.open(store, verify=verify)
    assert len(rows) == 100
    order = np.random.default_rng(1).permutation(100)
    # In any order, over the shards' borders, one twice, none at all.
    for indices in (order, np.array([29, 30, 59, 60, 89, 90, 99, 0]), np.array([5, 5]), np.array([], np.int64)):
        read = rows.read(indices)
        assert read.keys() == {"input_ids", "word_starts", "lengths", "nsp_labels"}
        for name, values in read.items():
            assert values.dtype == expected[name].dtype
            assert np.array_equal(values, expected[name][indices])


@pytest.mark.parametrize("indices", [[100], [-1], [0, 1000]])
def test_rows_beyond_the_store(store: pathlib.Path, indices: list[int]):
    with pytest.raises(IndexError, match="of a store of 100"):
        Rows.open(store).read(np.array(indices))


def test_a_store_without_rows(tmp_path: pathlib.Path):
    write_store(tmp_path, some_rows()[:0])
    rows = Rows.open(tmp_path, verify="hash")
    assert len(rows) == 0
    assert rows.read(np.array([], np.int64))["input_ids"].shape == (0, 16)
    assert rows.manifest["fill"] == 0


def error_of(store: pathlib.Path, verify: Literal["size", "hash"] = "size") -> str:
    with pytest.raises(RowsError) as caught:
        Rows.open(store, verify=verify)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows-00000.bin", "rows-00003.bin", TOKEN_COUNTS])
def test_flips_are_seen_by_the_hash(store: pathlib.Path, name: str):
    whole = (store / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (store / name).write_bytes(flipped)
        assert error_of(store, "hash") == (
            f"{store / name}: its content does not match the manifest's sha256: prepare the rows again"
        )
    (store / name).write_bytes(whole)
    assert len(Rows.open(store, verify="hash")) == 100


@pytest.mark.parametrize("name", ["rows-00000.bin", "rows-00003.bin", TOKEN_COUNTS])
@pytest.mark.parametrize("change", [-1, -LAYOUT.dtype.itemsize, 1])
def test_other_sizes_are_seen_at_once(store: pathlib.Path, name: str, change: int):
    # Also a file that lacks whole rows, and one that has grown.
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[:change] if change < 0 else content + b"x" * change)
    message = error_of(store)
    assert message.startswith(f"{store / name}: {len(content) + change} bytes, the manifest says {len(content)}: ")


def test_missing_files(store: pathlib.Path):
    (store / "rows-00001.bin").unlink()
    assert error_of(store).startswith(f"{store}/rows-00001.bin: missing: prepare the rows again")
    (store / MANIFEST).unlink()
    assert error_of(store) == f"{store}: no finished rows here ({MANIFEST} is missing): run `jaxbert prepare`"


def test_manifests_that_are_damaged_or_of_another_kind(store: pathlib.Path):
    text = (store / MANIFEST).read_text()
    (store / MANIFEST).write_text(text[: len(text) // 2])
    assert error_of(store).startswith(f"{store / MANIFEST}: damaged: ")
    manifest = json.loads(text)
    (store / MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))
    assert "rows of format 99" in error_of(store)
    for name in ("shards", "vocabulary", "max_length", "token_counts"):
        (store / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if k != name}))
        assert error_of(store).startswith(f"{store / MANIFEST}: damaged: "), name
    (store / MANIFEST).write_text("[]")
    assert error_of(store).startswith(f"{store / MANIFEST}: damaged: ")
    (store / MANIFEST).write_text(json.dumps(manifest | {"max_length": 17}))
    assert "rows and bytes contradict each other" in error_of(store)


def test_a_store_that_is_not_finished_is_none(tmp_path: pathlib.Path):
    write_store(tmp_path, some_rows())
    # A second writer takes the manifest away first, so that its half is never taken for a store.
    writer = RowWriter(tmp_path, LAYOUT, PAD, shard_bytes=10 * LAYOUT.dtype.itemsize)
    writer.write(some_rows()[:50])
    assert "no finished rows here" in error_of(tmp_path)
    writer.finish(vocabulary=VOCABULARY)
    assert len(Rows.open(tmp_path, verify="hash")) == 50


def test_a_file_is_whole_or_not_there(tmp_path: pathlib.Path):
    path = tmp_path / "file.bin"

    def write_half() -> None:
        existed = path.exists()
        with atomic_file(path) as file:
            file.write(b"half of the new")
            file.flush()
            assert path.exists() == existed
            raise KeyboardInterrupt

    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt):
            write_half()
        assert contents(tmp_path) == ({"file.bin": before} if before else {})
    with atomic_file(path) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"file.bin": b"new"}
