"""Documents: where they end, long ones in pieces, bounded memory, what is rejected, who is held out."""

import bz2
import gzip
import hashlib
import json
import pathlib
import tracemalloc

import pytest

from jaxbert.config import DataConfig
from jaxbert.text import corpus, readers
from jaxbert.text.corpus import CorpusError, Document, Rejects, documents, is_heldout, listing

BLOCK_SIZES = (1, 2, 3, 5, 8, 13, 64, 1 << 20)


@pytest.fixture
def read(tmp_path: pathlib.Path):
    """Reads bytes as a file of the corpus."""

    def read(content: bytes, name: str = "a.txt", rejects: Rejects | None = None, **settings) -> list[Document]:
        (tmp_path / name).write_bytes(content)
        return list(documents([str(tmp_path / name)], DataConfig(**settings), rejects or Rejects()))

    return read


def texts(found: list[Document]) -> list[str]:
    return [document.text for document in found]


TEXT = "\n\n \t\nA first line.\nA second. \n \u3000\u00a0\t\n  Indented two.\n\n\n\n\u3000\nThree\x0c here.\nEnd.\n\n"
SPLITS = {
    "blank_line": ["A first line.\nA second.", "Indented two.", "Three\x0c here.\nEnd."],
    "line": ["A first line.", "A second.", "Indented two.", "Three\x0c here.", "End."],
    "file": [TEXT.strip()],
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("split", SPLITS)
def test_where_documents_end(read, monkeypatch: pytest.MonkeyPatch, split: str, line_end: str):
    content = b"\xef\xbb\xbf" + TEXT.replace("\n", line_end).encode()
    for size in BLOCK_SIZES[2:]:
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        found = read(content, document_split=split)
        assert texts(found) == SPLITS[split], size
        assert len({document.identity for document in found}) == len(found)


def test_order_and_identity(tmp_path: pathlib.Path):
    for name, content in (("b.txt", "B one.\n\nB two."), ("a.txt", "A."), ("c/d.jsonl", '{"text": "C\\n\\nD"}')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = list(documents([str(tmp_path / "c"), str(tmp_path / "*.txt")], DataConfig(), Rejects()))
    expected = [("c/d.jsonl#0", "C\n\nD"), ("a.txt#0", "A."), ("b.txt#0", "B one."), ("b.txt#1", "B two.")]
    assert [(document.identity, document.text) for document in found] == [
        (f"{tmp_path}/{name}", text) for name, text in expected
    ]


def sentences(count: int) -> str:
    return " ".join(f"Sentence {i} {'of many words ' * (i % 4)}ends here." for i in range(count))


@pytest.mark.parametrize("size", BLOCK_SIZES[4:])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_long_document_comes_in_pieces_that_end_with_sentences(
    read, monkeypatch: pytest.MonkeyPatch, name: str, size: int
):
    monkeypatch.setattr(readers, "BLOCK_BYTES", size)
    monkeypatch.setattr(corpus, "_DIGEST_WINDOW", 100)
    text = sentences(300)
    content = text if name == "a.txt" else json.dumps({"text": text}) + "\n" + json.dumps({"text": "Next one."})
    found = read(content.encode() + b"\n\nNext one." * (name == "a.txt"), name=name, max_document_bytes=200)
    *pieces, after = found
    assert " ".join(texts(pieces)) == text
    assert len(pieces) > len(text) // 200
    assert max(len(piece.text.encode()) for piece in pieces) <= 200
    assert all(piece.text.endswith("here.") for piece in pieces)
    # Pieces of one document are one document: one identity, one side.
    assert {(piece.identity[-2:], piece.first_bytes_digest) for piece in pieces} == {
        ("#0", hashlib.blake2b(text.encode()[:100].rstrip(), digest_size=8).digest())
    }
    assert (after.identity[-2:], after.text) == ("#1", "Next one.")


@pytest.mark.parametrize("unit", ["x", "好", "😀", "no stop at all ", "好。", "One. \t  \n  Two! "])
def test_pieces_lose_nothing_but_space(read, monkeypatch: pytest.MonkeyPatch, unit: str):
    monkeypatch.setattr(corpus, "_DIGEST_WINDOW", 64)
    text = unit * 500
    for size in (7, 100, 1 << 20):
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        rejects = Rejects()
        found = texts(read(text.encode(), rejects=rejects, document_split="file", max_document_bytes=101))
        assert "".join("".join(found).split()) == "".join(text.split())
        assert max(len(piece.encode()) for piece in found) <= 101
        assert rejects.rejected == 0


@pytest.mark.parametrize("before", [0, 30_000, 65_536, 200_000])
def test_white_space_without_end(read, before: int):
    found = read(b" " * before + b"One." + b" " * 300_000 + b"\n" * 300_000 + b"Two.", max_document_bytes=1000)
    assert texts(found) == ["One.", "Two."]


def peak_of(path: pathlib.Path, expected_bytes: int, **settings) -> int:
    """The most memory that reading a file takes, in bytes; its documents have `expected_bytes` beside white space."""
    tracemalloc.start()
    try:
        found = documents([str(path)], DataConfig(**settings), Rejects())
        read = sum(len(d.text) - d.text.count(" ") - d.text.count("\n") for d in found)
        assert read == expected_bytes
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("split", "unit"),
    [("blank_line", b"x"), ("line", b"Words and words. "), ("file", b"Words and words.\n\n")],
)
def test_a_document_of_100_megabytes_takes_little_memory(tmp_path: pathlib.Path, split: str, unit: bytes):
    # The unit without stops is the slow one to cut; a third of it shows the same.
    blocks = 33 if unit == b"x" else 100
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(blocks):
            file.write(unit * (1_000_000 // len(unit)))
    expected = blocks * (1_000_000 // len(unit)) * len(b"".join(unit.split()))
    assert peak_of(tmp_path, expected, document_split=split) < 12_000_000


def test_100_megabytes_of_documents_take_little_memory(tmp_path: pathlib.Path):
    # bz2 packs a run so well that one read of the compressed file could give all of it.
    block = (b"y" * 99_998 + b"\n\n") * 10
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(block) * 100)
    assert peak_of(tmp_path, 99_998_000) < 12_000_000


BAD = {
    "not UTF-8": b"caf\xe9 au lait",
    "NUL": b"zero\0byte",
    "lone surrogate": b"half \xed\xa0\xbd a pair",
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("split", ["blank_line", "line"])
def test_a_bad_document_is_dropped_whole(read, tmp_path: pathlib.Path, split: str, reason: str):
    rejects = Rejects()
    content = b"\n\n".join([b"First one.", b"Good words, then " + BAD[reason] + b" and more.", b"Last one."])
    found = read(content, rejects=rejects, document_split=split, max_rejected_share=0.4)
    assert texts(found) == ["First one.", "Last one."]
    assert (rejects.rejected, rejects.documents) == (1, 3)
    rejects.write(tmp_path / "rejected.jsonl")
    (sample,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert sample["source"].startswith(f"{tmp_path}/a.txt#")
    assert sample["reason"] == reason
    assert sample["text"].startswith("Good words, then ")


def test_bytes_of_anything_are_not_called_surrogates(read, tmp_path: pathlib.Path):
    rejects = Rejects()
    content = b"First one.\n\nnoise \xff\xed\xa0\xbd\x80 noise\n\nLast one."
    assert len(texts(read(content, rejects=rejects, max_rejected_share=0.4))) == 2
    rejects.write(tmp_path / "rejected.jsonl")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["reason"] == "not UTF-8"


def test_other_encodings_are_no_text(read):
    with pytest.raises(CorpusError, match="not UTF-8"):
        read("Hello there.\n\nSecond.".encode("utf-16"))


def test_samples_are_few_and_short(read):
    rejects = Rejects()
    read(b"\n\n".join([b"Good."] + [b"\xff" * 5000] * 300), rejects=rejects, max_rejected_share=1.0)
    assert rejects.rejected == 300
    assert len(rejects.samples) == 100
    assert max(len(sample["text"]) for sample in rejects.samples) == 200


@pytest.mark.parametrize(("bad", "stops"), [(2, False), (3, True)])
def test_too_large_a_share_stops(read, tmp_path: pathlib.Path, bad: int, stops: bool):
    content = b"\n\n".join([b"Good."] * (100 - bad) + [b"b\xffd"] * bad)
    if not stops:
        assert len(read(content, max_rejected_share=0.02)) == 100 - bad
        return
    with pytest.raises(CorpusError) as caught:
        read(content, max_rejected_share=0.02)
    assert str(caught.value) == (
        "3 of 100 documents are rejected, above data.max_rejected_share 0.02; "
        f"the first: {tmp_path}/a.txt#97: not UTF-8"
    )


def test_a_hopeless_corpus_stops_early(read):
    rejects = Rejects()
    with pytest.raises(CorpusError, match="1000 of 1000 documents are rejected"):
        read(b"\n\n".join([b"b\xffd"] * 50_000), rejects=rejects)
    assert rejects.documents == 1000


def test_bad_documents_that_come_together_do_not_stop_early(read):
    content = b"\n\n".join([b"b\xffd"] * 11 + [b"Good."] * 1000 + [b"b\xffd"] + [b"Good."] * 1000)
    assert len(read(content, max_rejected_share=0.01)) == 2000


def test_a_long_document_is_judged_by_the_piece(read):
    rejects = Rejects()
    long = b"It is so. " * 20 + b"b\xffd. " + b"It is not. " * 40
    found = read(long, rejects=rejects, max_document_bytes=200, max_rejected_share=0.5)
    assert rejects.rejected == 1
    assert 1 < len(found) < rejects.documents
    assert "\ufffd" not in "".join(texts(found))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\t\r\n\n", " \u3000\n\u00a0\n".encode()])
def test_an_empty_corpus(read, tmp_path: pathlib.Path, content: bytes):
    with pytest.raises(CorpusError) as caught:
        read(content)
    assert str(caught.value) == f"{tmp_path}/a.txt: the corpus is empty: no document in it has any text"


def test_a_corpus_of_rejected_documents_says_so(read):
    with pytest.raises(CorpusError, match="no document in it has any text; 2 are rejected"):
        read(b"b\xffd\n\nb\xffd", max_rejected_share=1.0)


def test_sources_are_looked_up_before_anything_is_read(tmp_path: pathlib.Path):
    (tmp_path / "a.txt").write_text("One.")
    with pytest.raises(CorpusError, match="nope"):
        documents([str(tmp_path), str(tmp_path / "nope.txt")], DataConfig(), Rejects())


def test_listing_changes_with_the_files(tmp_path: pathlib.Path):
    file = tmp_path / "a.txt"
    file.write_text("One.")
    first = listing([str(tmp_path)], DataConfig())
    assert first == listing([str(tmp_path)], DataConfig())
    assert first[0] | {"modified": ""} == {"name": str(file), "size": 4, "modified": ""}
    file.write_text("Two.")
    assert listing([str(tmp_path)], DataConfig()) != first
    (tmp_path / "b.txt").write_text("One.")
    assert len(listing([str(tmp_path)], DataConfig())) == 2


def document(text: str) -> Document:
    return Document(text, "somewhere", hashlib.blake2b(text.encode(), digest_size=8).digest())


def test_heldout_is_a_share_by_content_and_seed():
    found = [document(f"Document {i}.") for i in range(20_000)]
    sides = [is_heldout(d, 0.02, seed=0) for d in found]
    # 400 expected, five standard deviations of 20.
    assert 300 < sum(sides) < 500
    assert sides != [is_heldout(d, 0.02, seed=1) for d in found]
    # A larger share holds out the same ones and more.
    assert all(is_heldout(d, 0.1, seed=0) for d, side in zip(found, sides, strict=True) if side)
    assert not any(is_heldout(d, 0.0, seed=0) for d in found)
    assert all(is_heldout(d, 1.0, seed=0) for d in found)


def test_equal_content_is_on_one_side_wherever_it_stands(tmp_path: pathlib.Path):
    texts = [f"Document {i}.\nWith a second line." for i in range(200)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.txt").write_bytes("\r\n \r\n\r\n".join(texts[::-1]).replace("\n", "\r\n").encode())
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f" {t}\n"}) + "\n" for t in texts))
    sides: dict[str, set[bool]] = {}
    for found in documents([str(tmp_path)], DataConfig(), Rejects()):
        sides.setdefault(found.text, set()).add(is_heldout(found, 0.3, seed=0))
    assert sides.keys() == set(texts)
    assert all(len(side) == 1 for side in sides.values())
    assert len(set.union(*sides.values())) == 2
