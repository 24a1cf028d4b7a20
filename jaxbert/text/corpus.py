"""Raw text as a stream of documents, in an order that is always the same, and who of them is held out.

The stream holds one document at most, and of a long one only a piece: memory grows neither with the corpus nor with a
document. A document (of a long one, a piece) that can't be text (not UTF-8, NUL, lone surrogates) is dropped whole, counted, and
sampled.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxbert.config import DataConfig
from jaxbert.text import builtin, readers
from jaxbert.text.datasets import DataSet
from jaxbert.text.readers import Bad, CorpusError, TextFile

__all__ = ["CorpusError", "Document", "Rejects", "documents", "is_heldout", "listing"]

_DIGEST_WINDOW = 64 << 10
_MAX_SAMPLES = 100
# A corpus that is mostly rejected stops the run at once. A smaller share is judged at the end: bad documents often come together.
_EARLY_CHECK, _HOPELESS = 1000, 0.5

# Ideographic, NO-BREAK and ASCII spaces make a line blank; the next line's indentation goes with the separator.
_BLANK_LINES = re.compile(rb"\n(?:(?:[ \t\r\f\v]|\xe3\x80\x80|\xc2\xa0)*\n)+\s*")
_BLANK = b" \t\n\r\f\v\xe3\x80\xc2\xa0"
# . ! ? and the ellipsis with closing quotes and brackets before white space; 。 ！ ？ ． with closing brackets.
_SENTENCE_END = re.compile(
    rb"(?:[.!?]|\xe2\x80\xa6)(?:[\"')\]]|\xe2\x80[\x99\x9d])*\s"
    rb"|(?:\xe3\x80\x82|\xef\xbc[\x81\x9f\x8e])(?:\xe3\x80[\x8d\x8f]|\xe2\x80[\x99\x9d]|\xef\xbc\x89)*"
)
_SPACE = re.compile(rb"\s")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A document, or a piece of a long one."""

    text: str
    identity: str
    """Names the original document, such as "path#12"; its pieces share it."""
    first_bytes_digest: bytes
    """blake2b-8 of the first 64 KiB of the original's UTF-8, white space at both ends aside; its pieces share it."""


class Rejects:
    """Counts documents and the rejected ones among them, and keeps the first hundred of these as samples."""

    def __init__(self) -> None:
        self.documents = 0
        """Documents and pieces seen, rejected ones included."""
        self.rejected: int = 0
        self.samples: list[dict[str, str]] = []

    def reject(self, source: str, reason: str, text: str) -> None:
        """Note that a document which was counted in `documents` is left out."""
        self.rejected += 1
        if len(self.samples) < _MAX_SAMPLES:
            self.samples.append({"source": source, "reason": reason, "text": text[:200]})

    def write(self, path: str | Path) -> None:
        """Write the samples to a .jsonl file."""
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in self.samples)

    def check(self, allowed: float, also: float = 0.0) -> None:
        """Raise `CorpusError` when more than `allowed` of the documents are rejected, and more than `also`."""
        if self.rejected > max(allowed, also) * self.documents:
            first = self.samples[0]
            raise CorpusError(
                f"{self.rejected} of {self.documents} documents are rejected, above data.max_rejected_share {allowed}; "
                f"the first: {first['source']}: {first['reason']}"
            )


def documents(sources: Sequence[str], data: DataConfig, rejects: Rejects) -> Iterator[Document]:
    """The documents of all sources, in the order of the sources, and in each by path and position.

    Paths and data sets are looked up at once, text is read as the iterator goes. Raises `CorpusError` for a source that
    is missing, unreadable or empty, and when more than data.max_rejected_share of the documents is rejected.
    """
    return _documents(_resolve(sources, data), list(sources), data, rejects)


def is_heldout(document: Document, share: float, seed: int) -> bool:
    """Whether a document belongs to the held-out side: a hash of seed and content, so that equal content never splits."""
    digest = hashlib.blake2b(document.first_bytes_digest, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def listing(sources: Sequence[str], data: DataConfig) -> list[dict[str, Any]]:
    """What the sources are made of: name, size in bytes and modification time or etag of each file, version of each package.

    Equal lists mean equal text.
    """
    listed: list[dict[str, Any]] = []
    for resolved in _resolve(sources, data):
        if isinstance(resolved, TextFile):
            listed.append({"name": resolved.name, "size": resolved.size, "modified": resolved.modified})
        elif isinstance(resolved, DataSet):
            listed.append(resolved.listing())
        else:
            listed += builtin.versions()
    return listed


def _resolve(sources: Sequence[str], data: DataConfig) -> list[TextFile | DataSet | Literal["builtin"]]:
    resolved: list[TextFile | DataSet | Literal["builtin"]] = []
    for source in sources:
        if source == "builtin":
            resolved.append("builtin")
        elif source.startswith("tfds:"):
            resolved.append(DataSet(source, data.text_field))
        else:
            resolved += readers.find_files(source)
    return resolved


def _documents(
    resolved: Iterable[TextFile | DataSet | Literal["builtin"]], names: list[str], data: DataConfig, rejects: Rejects
) -> Iterator[Document]:
    accepted = 0
    for source in resolved:
        name = "builtin" if source == "builtin" else source.source if isinstance(source, DataSet) else source.name
        for identity, digest, piece in _pieces(name, _originals(source, data), data.max_document_bytes):
            if not piece:
                continue
            rejects.documents += 1
            text = _decode(piece)
            if isinstance(text, Bad):
                rejects.reject(identity, text.reason, text.sample)
                if rejects.documents >= _EARLY_CHECK:
                    rejects.check(data.max_rejected_share, _HOPELESS)
            elif not text.isspace():
                accepted += 1
                yield Document(text, identity, digest)
    rejects.check(data.max_rejected_share)
    if not accepted:
        rejected = f"; {rejects.rejected} are rejected" if rejects.rejected else ""
        raise CorpusError(f"{', '.join(names)}: the corpus is empty: no document in it has any text{rejected}")


def _originals(
    source: TextFile | DataSet | Literal["builtin"], data: DataConfig
) -> Iterator[list[bytes] | Bad | tuple[str, str]]:
    """What a source holds: whole records, or runs of text in which each border between two parts ends a document."""
    if source == "builtin":
        yield from builtin.builtin_documents()
    elif isinstance(source, TextFile) and source.format == ".txt":
        yield from split_documents(readers.blocks(source), data.document_split)
    else:
        if isinstance(source, DataSet):
            records = source.records()
        else:
            read = readers.jsonl_records if source.format == ".jsonl" else readers.parquet_records
            records = read(source, data.text_field)
        for record in records:
            yield record if isinstance(record, Bad) else [record, b""]


def split_documents(blocks: Iterable[bytes], split: Literal["blank_line", "line", "file"]) -> Iterator[list[bytes]]:
    """Text blocks as lists in which each border between two items ends a document; a last item goes on in the next list."""
    if split == "file":
        yield from ([block] for block in blocks)
    elif split == "line":
        yield from (block.split(b"\n") for block in blocks)
    else:
        carried = b""
        for block in blocks:
            block = carried + block
            # White space at the end may be the first half of a blank line; a run without end is not waited for.
            text = block.rstrip(_BLANK)
            if len(block) - len(text) > _DIGEST_WINDOW:
                text = block
            carried = block[len(text) :]
            yield _BLANK_LINES.split(text)
        yield [carried]
    yield [b"", b""]


def _pieces(
    name: str, originals: Iterable[list[bytes] | Bad | tuple[str, str]], limit: int
) -> Iterator[tuple[str, bytes, bytes | Bad]]:
    """(Identity, digest, piece of at most `limit` bytes) of what `_originals` gives; a `Bad` passes through."""
    number, digest = 0, b""
    held: list[bytes] = []
    size, enough = 0, max(limit, _DIGEST_WINDOW)
    for parts in originals:
        if isinstance(parts, Bad):
            yield f"{name}#{number}", b"", parts
            number += 1
            continue
        if isinstance(parts, tuple):
            whole = parts[1].encode()
            yield from ((parts[0], _digest(whole), piece) for piece in _cut(whole, limit))
            continue
        for border, part in enumerate(parts):
            if border:
                whole = (b"".join(held) if len(held) > 1 else held[0]).strip()
                identity = f"{name}#{number}"
                if whole or digest:
                    digest = digest or _digest(whole)
                    if len(whole) <= limit:
                        yield identity, digest, whole
                    else:
                        yield from ((identity, digest, piece) for piece in _cut(whole, limit))
                    number += 1
                held, size, digest = [], 0, b""
            held.append(part)
            size += len(part)
            if size > enough:
                begun = b"".join(held)
                begun = begun if digest else begun.lstrip()
                if len(begun) > enough:
                    digest = digest or _digest(begun)
                    *ready, begun = _cut(begun, limit, ends=False)
                    yield from ((f"{name}#{number}", digest, piece) for piece in ready)
                held, size = [begun], len(begun)


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text[:_DIGEST_WINDOW].rstrip(), digest_size=8).digest()


def _cut(text: bytes, limit: int, ends: bool = True) -> Iterator[bytes]:
    """Pieces of at most `limit` bytes. The last one is what is left; unless the text ends here, with its white space."""
    start, end = 0, len(text.rstrip())
    while end - start > limit:
        stop = _last_end(text, start, start + limit)
        yield text[start:stop].strip()
        start = stop
        while start < end and text[start : start + 1].isspace():
            start += 1
    # White space that goes on and on must not be held; a window's worth of it ends every kind of document.
    yield text[start:end] if ends else text[start : end + _DIGEST_WINDOW]


def _last_end(text: bytes, start: int, stop: int) -> int:
    """Where to cut before `stop`: behind the last sentence, else the last white space, else the last whole character."""
    for pattern in (_SENTENCE_END, _SPACE):
        for tail in (4096, _DIGEST_WINDOW, stop - start):
            # One byte more is looked at: white space there shows that a sentence ends at `stop` itself.
            found = (match.end() for match in pattern.finditer(text, max(start, stop - tail), stop + 1))
            ends = [end for end in found if end <= stop or text[end - 1 : end].isspace()]
            if ends:
                return ends[-1]
    # A byte 10xxxxxx goes on a character of at most four bytes.
    whole = next((end for end in range(stop, max(start, stop - 4), -1) if text[end] & 0xC0 != 0x80), stop)
    return whole


def _fault(piece: bytes) -> str:
    # Surrogates that something encoded all the same, in what is UTF-8 otherwise, come from another mistake.
    try:
        piece.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return "not UTF-8"
    return "lone surrogate"


def _decode(piece: bytes | Bad) -> str | Bad:
    if isinstance(piece, Bad):
        return piece
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return Bad(_fault(piece), piece[:800].decode(errors="replace"))
    return Bad("NUL", text[:200]) if "\0" in text else text
