"""Finding files, taking compression off, records of .jsonl and .parquet; what can't be read says so in one line."""

import bz2
import gzip
import json
import pathlib
import struct
import tracemalloc
from collections.abc import Callable

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxbert.config import DataConfig, UserError
from jaxbert.text import readers
from jaxbert.text.corpus import Rejects, documents, listing
from jaxbert.text.readers import CorpusError, blocks, find_files, jsonl_records, parquet_records

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}
TEXTS = ["One.", "Two 好。", "Three\n\nand a half."]


def texts_of(*sources: str, **settings) -> list[str]:
    return [document.text for document in documents(sources, DataConfig(**settings), Rejects())]


def names_of(source: pathlib.Path | str) -> list[str]:
    return [pathlib.PurePosixPath(file.name).name for file in find_files(str(source))]


def error_of(*sources: pathlib.Path | str, **settings) -> str:
    """The one line of the error that reading these sources ends with."""
    with pytest.raises(CorpusError) as caught:
        texts_of(*map(str, sources), **settings)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet_bytes(table: pyarrow.Table, **settings) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, **settings)
    return sink.getvalue().to_pybytes()


def content_of(format: str) -> bytes:
    if format == ".txt":
        return "\n\n".join(text.replace("\n\n", "\n") for text in TEXTS).encode()
    if format == ".jsonl":
        return "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in TEXTS).encode()
    return parquet_bytes(pyarrow.table({"id": [1, 2, 3], "body": TEXTS}), row_group_size=2)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("format", [".txt", ".jsonl", ".parquet"])
def test_every_format_in_every_compression(tmp_path: pathlib.Path, format: str, compression: str):
    file = tmp_path / f"corpus.v1{format}{compression}"
    file.write_bytes(COMPRESS[compression](content_of(format)))
    expected = [text.replace("\n\n", "\n") if format == ".txt" else text for text in TEXTS]
    assert texts_of(str(file), text_field="body") == expected


@pytest.mark.parametrize("compression", COMPRESS)
def test_other_file_systems(compression: str):
    memory = fsspec.filesystem("memory")
    for format in (".txt", ".jsonl", ".parquet"):
        with memory.open(f"/readers/{format[1:]}/a{format}{compression}", "wb") as file:
            file.write(COMPRESS[compression](content_of(format)))
    try:
        assert texts_of("memory://readers/*/*.parquet*", text_field="body") == TEXTS
        assert texts_of("memory://readers", text_field="body")[:3] == TEXTS
        listed = listing(["memory://readers"], DataConfig())
        assert [entry["name"] for entry in listed] == [
            f"memory:///readers/{name}{compression}" for name in ("jsonl/a.jsonl", "parquet/a.parquet", "txt/a.txt")
        ]
        assert all(entry["size"] and entry["modified"] for entry in listed)
    finally:
        memory.rm("/readers", recursive=True)


def test_directories_and_globs(tmp_path: pathlib.Path):
    for name in ("b.txt", "a.jsonl", "sub/c.parquet", "sub/deep/d.txt.gz", "notes.md", "._b.txt", ".git/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names_of(tmp_path) == ["a.jsonl", "b.txt", "c.parquet", "d.txt.gz"]
    assert names_of(f"{tmp_path}/*.txt") == ["b.txt"]
    assert names_of(f"{tmp_path}/**/*.txt*") == ["b.txt", "d.txt.gz"]
    assert names_of(f"{tmp_path}/[ab].*") == ["a.jsonl", "b.txt"]
    assert names_of(f"{tmp_path}/.git/*.txt") == ["e.txt"]
    assert names_of(f"{tmp_path}/.*.txt") == ["._b.txt"]
    assert names_of(f"file://{tmp_path}/b.txt") == ["b.txt"]


@pytest.mark.parametrize(
    "name", ["with space.txt", "br[a]cket.txt", "st*r?.txt", "UPPER.TXT", "quo'te\".txt", "é好.txt"]
)
def test_odd_names(tmp_path: pathlib.Path, name: str):
    folder = tmp_path / "fol der [1]"
    folder.mkdir()
    (folder / name).write_text("One.")
    (folder / "other.jsonl").write_text("")
    assert names_of(folder / name) == [name]
    assert name in names_of(folder)


def test_line_ends_and_byte_order_mark(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfOne.\r\nStill one.\r\n\r\nTwo.\r\n\r")
    # Every place where a block can end, above all between \r and \n.
    for size in range(3, 40):
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        assert b"".join(blocks(find_files(str(file))[0])) == b"One.\nStill one.\n\nTwo.\n\n"
        assert texts_of(str(file)) == ["One.\nStill one.", "Two."]


def test_jsonl_lines_across_blocks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"t": "One."}\r\n\n   \r\n{"t": "Tw\xc3\xb6."}\n{"t": ""}\n{"u": 1, "t": "a\\r\\nb"}'
    )
    for size in (3, 7, 13, 1 << 20):
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        assert list(jsonl_records(find_files(str(file))[0], "t")) == [b"One.", "Twö.".encode(), b"", b"a\nb"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": "x", "id": 1}', "no field 'text' (data.text_field), but body, id"),
        (b"{}", "no field 'text'"),
        (b'["x"]', "no field 'text'"),
        (b'{"text": null}', "field 'text' is null"),
        (b'{"text": ["x"]}', "field 'text' is no text but list"),
        (b'{"text": 5}', "field 'text' is no text but int"),
        (b'{"text": "x"', "no JSON object with a field 'text'"),
        (b"[" * 100_000, "no JSON object with a field 'text'"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "a\\ud800"}', "lone surrogate"),
        (b'{"text": "a\\u0000b"}', "NUL"),
    ],
)
def test_a_bad_line_is_one_rejected_document(tmp_path: pathlib.Path, line: bytes, reason: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "One."}\n' + line + b'\n{"text": "Two."}\n')
    rejects = Rejects()
    found = list(documents([str(tmp_path)], DataConfig(max_rejected_share=0.5), rejects))
    assert [(d.text, d.identity[-2:]) for d in found] == [("One.", "#0"), ("Two.", "#2")]
    assert (rejects.rejected, rejects.documents) == (1, 3)
    assert rejects.samples[0]["source"] == f"{tmp_path}/a.jsonl#1"
    assert reason in rejects.samples[0]["reason"]
    assert len(rejects.samples[0]["text"]) <= 200


def test_a_jsonl_line_has_a_bound(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 1 << 14)
    (tmp_path / "a.jsonl").write_text(
        '{"text": "One."}\n{"text": "' + "x" * (1 << 17) + '"}\n{"text": "' + "y" * (1 << 13) + '"}\n'
    )
    first, long, last = jsonl_records(find_files(str(tmp_path))[0], "text")
    assert first == b"One."
    assert isinstance(long, readers.Bad)
    # Nor is the long one held.
    (tmp_path / "b.jsonl").write_text('{"text": "' + "x" * (8 << 20) + '"}\n')
    tracemalloc.start()
    list(jsonl_records(find_files(str(tmp_path / "b.jsonl"))[0], "text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert long.reason.startswith("line above")
    assert last == b"y" * (1 << 13)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pyarrow.array(["a", None, "", "b\r\n\r\nc"]), [b"a", "field 't' is null", b"", b"b\n\nc"]),
        (pyarrow.array(["a", "b", "a"]).dictionary_encode(), [b"a", b"b", b"a"]),
        (pyarrow.array(["a"], pyarrow.large_string()), [b"a"]),
        (pyarrow.array([b"a", b"\xff"], pyarrow.binary()), [b"a", b"\xff"]),
        (pyarrow.array([], pyarrow.string()), []),
    ],
    ids=["null", "dictionary", "large", "binary", "empty"],
)
def test_parquet_columns(tmp_path: pathlib.Path, values: pyarrow.Array, expected: list[bytes | str]):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(pyarrow.table({"t": values}), row_group_size=2))
    records = parquet_records(find_files(str(tmp_path))[0], "t")
    assert [record.reason if isinstance(record, readers.Bad) else record for record in records] == expected


def test_parquet_column_that_is_missing_or_no_text(tmp_path: pathlib.Path):
    file = tmp_path / "a.parquet"
    file.write_bytes(parquet_bytes(pyarrow.table({"id": [1], "body": ["x"]})))
    assert error_of(file) == f"{file}: no column 'text': set data.text_field to one of id, body"
    assert error_of(file, text_field="id").startswith(f"{file}: column 'id' holds int64: set data.text_field")


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


@pytest.mark.parametrize(
    ("extension", "content"),
    [
        (".gz", gzip.compress(b"One.\n\n") + gzip.compress(b"Two.")),
        (".bz2", bz2.compress(b"One.\n\n") + bz2.compress(b"Two.")),
        (".zst", zstandard.compress(b"One.\n\n") + zstandard.compress(b"Two.")),
        (".zst", SKIPPABLE + zstandard.compress(b"One.\n\nTwo.") + SKIPPABLE),
    ],
    # Named here: gzip puts the time into its bytes, and names made of them differ between workers.
    ids=["gz", "bz2", "zst", "zst_skippable"],
)
def test_compressed_files_joined_end_to_end(tmp_path: pathlib.Path, extension: str, content: bytes):
    (tmp_path / f"a.txt{extension}").write_bytes(content)
    assert texts_of(str(tmp_path)) == ["One.", "Two."]


def test_zstd_with_a_large_window(tmp_path: pathlib.Path):
    """As public dumps are packed (zstd --long=31): sound, and refused by the library unless it is told."""
    large = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=large).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"One.\n\nTwo.") + packer.flush())
    assert b"".join(blocks(find_files(str(tmp_path / "a.txt.zst"))[0])) == b"One.\n\nTwo."


def test_line_ends_of_old(tmp_path: pathlib.Path):
    (tmp_path / "a.txt").write_bytes(b"One.\rStill one.\r\rTwo.\r")
    assert b"".join(blocks(find_files(str(tmp_path / "a.txt"))[0])) == b"One.\nStill one.\n\nTwo.\n"


@pytest.mark.parametrize("extension", [".gz", ".zst", ".bz2"])
def test_damaged_compressed_files(tmp_path: pathlib.Path, extension: str):
    # Noise does not compress, so a cut anywhere is one in the middle of the data.
    whole = COMPRESS[extension](b"".join(f"Sentence {i * i:x}.\n\n".encode() for i in range(3000)))
    file = tmp_path / f"a.txt{extension}"
    damages = {
        "cut": whole[: len(whole) // 2],
        "one byte short": whole[:-1],
        "header only": whole[:5],
        "no such format": b"plain text, not compressed",
    }
    for damage, content in damages.items():
        file.write_bytes(content)
        message = error_of(tmp_path, max_rejected_share=1.0)
        assert message.startswith(f"{file}: damaged or cut off {extension} file: "), damage


def test_damaged_parquet(tmp_path: pathlib.Path):
    file = tmp_path / "a.parquet"
    file.write_bytes(content_of(".parquet")[:-20])
    assert error_of(file, text_field="body").startswith(f"{file}: can't be read as parquet: ")
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress(content_of(".parquet"))[:-9])
    assert error_of(packed, text_field="body").startswith(f"{packed}: damaged or cut off .gz file: ")


def test_sources_that_are_not_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "a[1].txt").write_text("x")
    here = f"(relative ones start at {tmp_path}"
    assert error_of("nope.txt") == f"nope.txt: no such file or directory: check the path {here})"
    assert error_of("*.nope") == f"*.nope: no file matches this pattern {here})"
    assert "[[] stands for a [" in error_of("a[1].*")
    assert error_of("fold*") == f"fold*: no file matches this pattern {here})"
    assert error_of("folder").startswith("folder: no text below this directory: known extensions are .txt, ")
    assert error_of("notes.md").endswith(
        "notes.md: unknown extension: known are .txt, .jsonl, .parquet, each also with .gz, .zst, .bz2"
    )
    assert error_of("*.md").startswith(f"{tmp_path}/notes.md: unknown extension")
    assert error_of("") == "data.text has an empty path: name a file, a directory, a glob or builtin"
    assert error_of("nope://x/a.txt").startswith("nope://x/a.txt: Protocol not known")


def test_a_file_that_can_not_be_read(tmp_path: pathlib.Path):
    link = tmp_path / "a.txt"
    link.symlink_to("gone.txt")
    assert error_of(tmp_path).startswith(f"{link}: can't be read: ")
    assert error_of(link).startswith(f"{link}: no such file or directory")


def test_errors_of_a_remote_file_system_are_one_line(monkeypatch: pytest.MonkeyPatch):
    class HttpError(Exception):
        """What client libraries raise: nothing of OSError's."""

    def fail(*arguments, **settings):
        raise HttpError("403\nAnonymous caller does not have storage.objects.get access")

    memory = fsspec.filesystem("memory")
    memory.pipe("/remote/a.txt", b"One.")
    try:
        for call, said in (("_open", "can't be read"), ("isdir", "can't be looked up")):
            with monkeypatch.context() as patch:
                patch.setattr(type(memory), call, fail)
                message = error_of("memory://remote/a.txt")
                assert said in message
                assert "remote/a.txt" in message
                assert "403 Anonymous caller" in message
    finally:
        memory.rm("/remote", recursive=True)


@pytest.fixture(scope="module")
def tiny_data_set(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small tensorflow-datasets data set on disk, known by its files alone; returns its folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    folder = tmp_path_factory.mktemp("tfds")
    with registered.skip_registration():

        class JaxbertTiny(tfds.core.GeneratorBasedBuilder):
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain", version="1.0.0")]  # noqa: RUF012

            def _info(self):
                features = {"body": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

            def _generate_examples(self, count):
                yield from ((i, {"body": f"Document {i} 好。", "label": i}) for i in range(count))

        JaxbertTiny(config="plain", data_dir=folder).download_and_prepare()
    tfds.core.add_data_dir(folder)
    return folder


def test_tfds(tiny_data_set: pathlib.Path):
    expected = [f"Document {i} 好。" for i in range(5)]
    read = texts_of("tfds:jaxbert_tiny/plain:train", text_field="body")
    assert sorted(read) == expected
    assert texts_of("tfds:jaxbert_tiny/plain:train[:2]", text_field="body") == read[:2]
    assert len(texts_of("tfds:jaxbert_tiny/plain:1.0.0:test", text_field="body")) == 2
    listed = listing(["tfds:jaxbert_tiny/plain:train"], DataConfig(text_field="body"))
    assert listed[0]["modified"] == "jaxbert_tiny/plain/1.0.0 5"


@pytest.mark.parametrize(
    ("source", "field", "message"),
    [
        ("tfds:jaxbert_tiny", "body", "not of the form tfds:NAME/CONFIG:SPLIT"),
        ("tfds:jaxbert_tiny/plain:nope", "body", "Unknown split 'nope'"),
        ("tfds:jaxbert_nope:train", "body", "not found"),
        ("tfds:jaxbert_tiny/plain:train", "text", "set data.text_field to one of body, label"),
        ("tfds:jaxbert_tiny/plain:train", "label", "is no text but int64"),
    ],
)
def test_tfds_errors(tiny_data_set: pathlib.Path, source: str, field: str, message: str):
    error = error_of(source, text_field=field)
    assert source in error
    assert message in error


def test_tfds_files_that_lack_records(tiny_data_set: pathlib.Path):
    (file,) = tiny_data_set.glob("*/plain/1.0.0/*-test.tfrecord*")
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    try:
        file.write_bytes(whole[: 8 + 4 + length + 4])
        assert "damaged: Input dataset was expected to contain 2 elements but contained only 1" in error_of(
            "tfds:jaxbert_tiny/plain:test", text_field="body"
        )
        file.write_bytes(whole[:-3])
        assert "damaged" in error_of("tfds:jaxbert_tiny/plain:test", text_field="body")
    finally:
        file.write_bytes(whole)
