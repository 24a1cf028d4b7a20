"""Files of raw text: finding them, taking the compression off, and reading their records in blocks.

Nothing here holds a whole file: text comes in blocks of 1 MiB, records one by one.
"""

import bz2
import dataclasses
import glob
import gzip
import json
import pathlib
import re
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import fsspec
import fsspec.core
import zstandard

from jaxbert.config import UserError

BLOCK_BYTES = 1 << 20
# A record of .jsonl is parsed as a whole, so its size has to have a bound; text files have none.
MAX_RECORD_BYTES = 64 << 20
_FORMATS = (".txt", ".jsonl", ".parquet")
_COMPRESSIONS = (".gz", ".zst", ".bz2")
_KNOWN = ", ".join(_FORMATS) + ", each also with " + ", ".join(_COMPRESSIONS)
# What differs when a file's content does, from the best evidence to the weakest; file systems each have their own name.
_MODIFIED = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "last_modified", "created")
_FOLDERS_BEFORE_MAGIC = re.compile(r"(?:[^*?\[/]*/)*")
_READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)


class CorpusError(UserError):
    """Text that can't be read; the message is one line that names the source and the way out."""


@dataclasses.dataclass(frozen=True)
class Bad:
    """A record that can't be used: why, and some of its text."""

    reason: str
    sample: str


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of text on any file system."""

    name: str
    format: str
    """One of .txt, .jsonl, .parquet."""
    compression: str
    """One of .gz, .zst, .bz2, or empty."""
    size: int
    """Bytes on disk."""
    modified: str
    """Modification time or etag, as the file system tells it."""
    filesystem: Any = dataclasses.field(repr=False, compare=False)
    path: str = dataclasses.field(repr=False)


def find_files(source: str) -> list[TextFile]:
    """The files that a path, a directory, a glob or an fsspec URL names, sorted by path.

    A directory gives the files below it whose extensions are known; names that begin with a dot are passed over.
    Raises `CorpusError` when there is none, or one that a path or glob names has an unknown extension.
    """
    if not source:
        raise CorpusError("data.text has an empty path: name a file, a directory, a glob or builtin")
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        protocol = source.partition("://")[0]
        if isinstance(error, ImportError) and protocol in ("gs", "gcs"):
            raise CorpusError(f"{source}: {protocol}:// needs gcsfs: pip install 'jaxbert[gcs]'") from error
        raise CorpusError(f"{source}: {one_line(error)}") from error
    try:
        if filesystem.isdir(path):
            return _directory(source, filesystem, path)
        if filesystem.exists(path):
            return [_text_file(filesystem, path, filesystem.info(path))]
        if not glob.has_magic(path):
            raise CorpusError(f"{source}: no such file or directory: check the path (relative ones start at {_here()})")
        return _glob(source, filesystem, path)
    except _errors_of(filesystem) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{source}: can't be looked up: {one_line(error)}") from error


def _glob(source: str, filesystem: Any, path: str) -> list[TextFile]:
    matches = sorted(filesystem.glob(path, detail=True).items())
    # As in a shell: a star stands for a name that begins with a dot only where the pattern has the dot.
    folders = _FOLDERS_BEFORE_MAGIC.match(path)
    fixed = max(0, folders.end() - 1 if folders else 0)
    wanted = [
        (name, info)
        for name, info in matches
        if info["type"] != "directory" and ("/." in path[fixed:] or "/." not in name[fixed:])
    ]
    if not wanted:
        brackets = "; [[] stands for a [ in a name" if "[" in source else ""
        raise CorpusError(f"{source}: no file matches this pattern (relative ones start at {_here()}{brackets})")
    return [_text_file(filesystem, name, info) for name, info in wanted]


def _is_local(filesystem: Any) -> bool:
    return "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))


def _errors_of(filesystem: Any) -> tuple[type[Exception], ...]:
    """What reading can raise: away from the local disk (credentials, HTTP) each client library has classes of its own."""
    return _READ_ERRORS if _is_local(filesystem) else (Exception,)


def _here() -> str:
    return str(pathlib.Path.cwd())


def _directory(source: str, filesystem: Any, path: str) -> list[TextFile]:
    found = sorted(filesystem.find(path, detail=True).items())
    below = [(name, info) for name, info in found if "/." not in name[len(path) :]]
    files = [_text_file(filesystem, name, info) for name, info in below if _split_extension(name)[0]]
    if not files:
        raise CorpusError(f"{source}: no text below this directory: known extensions are {_KNOWN}")
    return files


def _split_extension(path: str) -> tuple[str, str]:
    """Format and compression by a file's name; the format is "" when it is unknown."""
    suffixes = [suffix.lower() for suffix in pathlib.PurePosixPath(path).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    return (suffixes[-1] if suffixes and suffixes[-1] in _FORMATS else ""), compression


def _text_file(filesystem: Any, path: str, info: dict[str, Any]) -> TextFile:
    name = path if _is_local(filesystem) else filesystem.unstrip_protocol(path)
    extension, compression = _split_extension(path)
    if not extension:
        raise CorpusError(f"{name}: unknown extension: known are {_KNOWN}")
    modified = next((str(info[key]) for key in _MODIFIED if info.get(key)), "")
    return TextFile(name, extension, compression, int(info.get("size") or 0), modified, filesystem, path)


def blocks(file: TextFile) -> Iterator[bytes]:
    """A file's content without compression and byte order mark, line ends as \\n, in blocks of about 1 MiB."""
    first, carried = True, b""
    for block in _raw_blocks(file):
        if first:
            block, first = block.removeprefix(b"\xef\xbb\xbf"), False
        block = carried + block
        # A \r at the end waits for its \n.
        carried = b"\r" if block.endswith(b"\r") else b""
        block = block[: len(block) - len(carried)]
        yield _lines_as_ours(block)
    if carried:
        yield b"\n"


def _lines_as_ours(text: bytes) -> bytes:
    """Windows' line ends, and the Macintosh's of old, as \\n."""
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def _raw_blocks(file: TextFile) -> Iterator[bytes]:
    try:
        with file.filesystem.open(file.path, "rb") as stream:
            if file.compression == ".zst":
                yield from _zstd_blocks(stream)
                return
            opened: Any = stream
            if file.compression:
                opened = gzip.GzipFile(fileobj=stream) if file.compression == ".gz" else bz2.BZ2File(stream)
            while block := opened.read(BLOCK_BYTES):
                yield block
    except _errors_of(file.filesystem) as error:
        damaged = f"damaged or cut off {file.compression} file" if file.compression else "can't be read"
        raise CorpusError(f"{file.name}: {damaged}: {one_line(error)}") from error


def _decoder() -> Any:
    # Large dumps are packed with windows of up to 2 GiB (zstd --long=31), which the library refuses unless told.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _zstd_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The frames of a zstd stream. Raises EOFError when the last one is cut off, which zstandard's own reader is silent on."""
    decoder = _decoder()
    inside, held, size = False, [], 0
    while block := stream.read(BLOCK_BYTES):
        # Small slices: one byte of input can stand for 32 KiB of output.
        for start in range(0, len(block), 4096):
            data = block[start : start + 4096]
            while data:
                output = decoder.decompress(data)
                held.append(output)
                size += len(output)
                inside, data = not decoder.eof, b""
                if decoder.eof:
                    data = decoder.unused_data
                    decoder = _decoder()
            if size >= BLOCK_BYTES:
                yield b"".join(held)
                held, size = [], 0
    if inside:
        raise EOFError("the last frame is cut off")
    yield b"".join(held)


def jsonl_records(file: TextFile, field: str) -> Iterator[bytes | Bad]:
    """The field of each line of a .jsonl file as UTF-8; lines that are blank are passed over."""
    held: list[bytes] = []
    size = 0
    for block in blocks(file):
        head, *rest = block.split(b"\n")
        held.append(head)
        size += len(head)
        if rest:
            yield from _json_lines([_joined(held, size), *rest[:-1]], field)
            held, size = [rest[-1]], len(rest[-1])
        elif size > MAX_RECORD_BYTES:
            held = held[:1]
    yield from _json_lines([_joined(held, size)], field)


def _joined(parts: list[bytes], size: int) -> bytes | Bad:
    if size > MAX_RECORD_BYTES:
        return Bad(f"line above {MAX_RECORD_BYTES >> 20} MiB", parts[0][:200].decode(errors="replace"))
    return b"".join(parts)


def _json_lines(lines: list[bytes | Bad], field: str) -> Iterator[bytes | Bad]:
    for line in lines:
        if isinstance(line, Bad):
            yield line
        elif line and not line.isspace():
            yield _json_text(line, field)


def _json_text(line: bytes, field: str) -> bytes | Bad:
    sample = line[:800].decode(errors="replace")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return Bad("not UTF-8", sample)
    except (ValueError, RecursionError):
        return Bad(f"the line is no JSON object with a field '{field}'", sample)
    if not isinstance(record, dict) or field not in record:
        names = ", ".join(list(record)[:10]) if isinstance(record, dict) else ""
        return Bad(f"no field '{field}'" + (f" (data.text_field), but {names}" if names else ""), sample)
    return encoded(record[field], field)


def encoded(value: object, field: str) -> bytes | Bad:
    if isinstance(value, bytes):
        return _lines_as_ours(value)
    if value is None:
        return Bad(f"field '{field}' is null", "")
    if not isinstance(value, str):
        return Bad(f"field '{field}' is no text but {type(value).__name__}", str(value)[:200])
    try:
        return _lines_as_ours(value.encode())
    except UnicodeEncodeError:
        return Bad("lone surrogate", value[:200].encode(errors="replace").decode())


def parquet_records(file: TextFile, field: str) -> Iterator[bytes | Bad]:
    """The values of a column of a .parquet file, as UTF-8, by record batches of about 4 MiB."""
    import pyarrow
    import pyarrow.parquet

    try:
        with _seekable(file) as stream, pyarrow.parquet.ParquetFile(stream, buffer_size=BLOCK_BYTES) as table:
            schema = table.schema_arrow
            if field not in schema.names:
                raise CorpusError(
                    f"{file.name}: no column '{field}': set data.text_field to one of {', '.join(schema.names)}"
                )
            kind = schema.field(field).type
            value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if str(value).removeprefix("large_") not in ("string", "binary", "string_view", "binary_view"):
                raise CorpusError(
                    f"{file.name}: column '{field}' holds {kind}: set data.text_field to a column of text"
                )
            groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
            row_bytes = sum(group.total_byte_size for group in groups) // max(1, table.metadata.num_rows)
            rows = min(4096, max(1, 4 * BLOCK_BYTES // max(1, row_bytes)))
            for batch in table.iter_batches(batch_size=rows, columns=[field]):
                # As bytes: text that is no UTF-8 is then one bad document, and no error of the file.
                yield from (
                    encoded(text, field)
                    for text in batch.column(0).cast(value).cast(pyarrow.large_binary()).to_pylist()
                )
    except (*_errors_of(file.filesystem), pyarrow.ArrowException) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{file.name}: can't be read as parquet: {one_line(error)}") from error


def _seekable(file: TextFile) -> IO[bytes]:
    """The file's bytes with random access; a compressed one goes through a temporary file."""
    if not file.compression:
        return file.filesystem.open(file.path, "rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        for block in _raw_blocks(file):
            unpacked.write(block)
    except CorpusError:
        unpacked.close()
        raise
    unpacked.seek(0)
    return unpacked


def one_line(error: BaseException) -> str:
    """An error's text in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
