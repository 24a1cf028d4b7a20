"""Records of labelled data: what one is, what is wrong with one, and the lines of a file."""

import codecs
import contextlib
import dataclasses
import io
import lzma
import os
import pathlib
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec

from jaxbert.config import UserError
from jaxbert.finetune.config import ExamplesConfig

STANDARD_INPUT = "-"
# Either byte order's mark, as bytes that are no UTF-8 are read.
_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")


class ExamplesError(UserError):
    """Labelled data that cannot be used; its text is one line that names the file and the way out."""


class BadRecordError(ValueError):
    """What is wrong with one record; whoever knows its place says it."""


class MissingColumnError(ExamplesError):
    """A column that the file has not, as far as its header or its first record tell."""

    def __init__(self, message: str, column: str):
        super().__init__(message)
        self.column: str = column


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of a table, a sentence of CoNLL, or a question of SQuAD."""

    values: Mapping[str, Any]
    place: str
    """ "train.tsv:17"."""
    own_columns: bool = False
    """Others of its file may well have a column that it has not: the file has no header."""
    first: bool = False
    """It is the first of such a file: what it has not, no other has, as long as none is seen that has."""


OnBad = Callable[[str, str], None]
"""(place, reason): raises, or counts."""


class Counting:
    """What to do with bad records, as `data.bad_rows` says: raise ExamplesError, or count them and keep the first reasons."""

    def __init__(self, config: ExamplesConfig):
        self.stops: bool = config.bad_rows == "stop"
        """Whether the first one raises."""
        self.count: int = 0
        """Records that were left out."""
        self.first: list[str] = []
        """Place and reason of the first few."""

    def __call__(self, place: str, reason: str) -> None:
        if self.stops:
            raise ExamplesError(f"{place}: {reason} (--data.bad-rows skip leaves such rows out and counts them)")
        self.count += 1
        if len(self.first) < 3:
            self.first.append(f"{place}: {reason}")


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Number from 1 and text, with its line end. Bytes that are no UTF-8 stay in it as surrogates."""
    try:
        with opened(path) as binary:
            # Lines end at \n alone: what else Unicode calls a line end may stand in a text.
            text = io.TextIOWrapper(binary, encoding="utf8", errors="surrogateescape", newline="\n")  # pyright: ignore[reportArgumentType]
            for number, line in enumerate(text, 1):
                if number == 1 and line.startswith(_UTF_16):
                    raise ExamplesError(f"{path}: is UTF-16: save it as UTF-8")
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except ExamplesError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise ExamplesError(
            f"{path}: cannot be read ({(str(error) or 'it ends early').splitlines()[0]}): get the file again"
        ) from None


def read_once(path: str) -> bool:
    """Whether what it gives is gone once it was read: standard input, or a pipe."""
    try:
        return path == STANDARD_INPUT or stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def opened(path: str) -> Any:
    """A context with the bytes of a file, of a pipe, or of standard input; compressed ones unpacked."""
    if path == STANDARD_INPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    if read_once(path):
        return pathlib.Path(path).open("rb")
    return fsspec.open(path, "rb", compression="infer")


def text_fault(text: str) -> str | None:
    """Why a text is none."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        codecs.encode(text, "utf8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None
