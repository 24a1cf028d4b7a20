"""Labelled files -> records: tables (TSV, CSV, JSONL, parquet, tfds), CoNLL's columns, SQuAD's JSON.

Every record knows where it stands, so that whatever is wrong with it can be said with file, line and reason.
"""

import codecs
import contextlib
import csv
import dataclasses
import glob
import io
import json
import lzma
import pathlib
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import fsspec

from jaxbert.config import UserError
from jaxbert.finetune.config import ExamplesConfig

_FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".json": "squad",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".bioes": "conll",
    ".txt": "conll",
    ".annotated": "conll",
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
_TFDS = re.compile(r"tfds:(?P<name>[^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(?P<split>.+))?")
# csv's own limit of 131,072 characters is less than some texts are long.
_LONGEST_FIELD = 2**30
_STANDARD_INPUT = "-"


class ExamplesError(UserError):
    """Labelled data that cannot be used; its text is one line that names the file and the way out."""


class BadRecordError(ValueError):
    """What is wrong with one record; whoever knows its place says it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of a table, a sentence of CoNLL, or a question of SQuAD."""

    values: Mapping[str, Any]
    place: str
    """ "train.tsv:17"."""
    own_columns: bool = False
    """Others of its file may well have a column that it has not: the file has no header, and it is not its first record."""


OnBad = Callable[[str, str], None]
"""(place, reason): raises, or counts."""


class Counting:
    """What to do with bad records, as `data.bad_rows` says: raise ExamplesError, or count them and keep the first reasons."""

    def __init__(self, config: ExamplesConfig):
        self._stop = config.bad_rows == "stop"
        self.count: int = 0
        """Records that were left out."""
        self.first: list[str] = []
        """Place and reason of the first few."""

    def __call__(self, place: str, reason: str) -> None:
        if self._stop:
            raise ExamplesError(f"{place}: {reason} (--data.bad-rows skip leaves such rows out and counts them)")
        self.count += 1
        if len(self.first) < 3:
            self.first.append(f"{place}: {reason}")


def read_records(source: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """The records of a source, in order.

    Of a table: column -> str (JSONL and parquet: whatever stands there). Of CoNLL: "columns", a list of the lines' columns.
    Of SQuAD: "id", "question", "context", "answers" [(text, start)], "impossible". Raises ExamplesError for a source that is not
    there, is empty or cannot be read.
    """
    if source.startswith("tfds:"):
        yield from _counted(_tfds(source), source)
        return
    for path in _files(source):
        readers = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "conll": _conll, "squad": _squad, "parquet": _parquet}
        yield from _counted(readers[_format(path, config)](path, config, on_bad), path)


def _counted(records: Iterable[Record], source: str) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise ExamplesError(f"{source}: has no examples: name another file")


def _files(source: str) -> list[str]:
    if not source:
        raise ExamplesError("a path of data.train, data.dev or data.test is empty: name a file")
    try:
        if source == _STANDARD_INPUT or pathlib.Path(source).is_fifo():
            return [source]
        filesystem, path = fsspec.core.url_to_fs(source)
        if filesystem.isfile(path):
            return [source]
        if filesystem.isdir(path):
            raise ExamplesError(f"{source}: is a folder: name its files, or a glob")
        local = "file" in filesystem.protocol
        found = sorted(filesystem.glob(path)) if glob.has_magic(path) else []
    except ExamplesError:
        raise
    except (ImportError, ValueError, OSError) as error:
        raise ExamplesError(f"{source}: cannot be looked up ({str(error).splitlines()[0]}): check the path") from None
    if not found:
        raise ExamplesError(f"{source}: no such file (relative paths start at {pathlib.Path.cwd()}): check the path")
    return [one if local else filesystem.unstrip_protocol(one) for one in found]


def _format(path: str, config: ExamplesConfig) -> str:
    if config.format != "auto":
        return config.format
    suffixes = [suffix.lower() for suffix in pathlib.PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in _FORMATS:
        raise ExamplesError(f"{path}: its form is not known by its suffix: say it with data.format")
    return _FORMATS[suffixes[-1]]


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Number from 1 and text, with its line end. Bytes that are no UTF-8 stay in it as surrogates."""
    try:
        with _opened(path) as binary:
            # Lines end at \n alone: what else Unicode calls a line end may stand in a text.
            text = io.TextIOWrapper(binary, encoding="utf8", errors="surrogateescape", newline="\n")  # pyright: ignore[reportArgumentType]
            for number, line in enumerate(text, 1):
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise ExamplesError(
            f"{path}: cannot be read ({(str(error) or 'it ends early').splitlines()[0]}): get the file again"
        ) from None


def _opened(path: str) -> Any:
    if path == _STANDARD_INPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    if pathlib.Path(path).is_fifo():
        return pathlib.Path(path).open("rb")
    return fsspec.open(path, "rb", compression="infer")


def _clean(text: str) -> str | None:
    """Why a text is none."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        codecs.encode(text, "utf8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def _named(rows: Iterable[tuple[int, list[str]]], path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Rows of cells as records, with the names of the columns from the configuration or the first row."""
    names = list(config.columns)
    for number, cells in rows:
        if not cells or cells == [""]:
            continue
        if not names:
            names = [name.strip() for name in cells]
            if len(set(names)) != len(names):
                raise ExamplesError(f"{path}: its first line names a column twice: name them with data.columns")
            continue
        fault = next((fault for cell in cells if (fault := _clean(cell))), None)
        if len(cells) != len(names):
            fault = f"has {len(cells)} columns where there should be {len(names)} ({', '.join(names)})"
        if fault:
            on_bad(f"{path}:{number}", fault)
            continue
        yield Record(dict(zip(names, cells, strict=True)), f"{path}:{number}")


def _tsv(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    # No quoting: a quotation mark in a TSV file is one.
    rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in _lines(path))
    return _named(rows, path, config, on_bad)


def _csv(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((line for _, line in _lines(path)), strict=True)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # Where quotes are wrong, nobody knows where the next row begins.
                raise ExamplesError(f"{path}:{first}: {error}: mend the quotes of this row") from None
            if cells is None:
                return
            yield first, cells

    return _named(rows(), path, config, on_bad)


def _jsonl(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    first = True
    for number, line in _lines(path):
        if not line.strip():
            continue
        fault, values = _clean(line), None
        if fault is None:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                fault = f"is not JSON ({str(error).splitlines()[0]})"
        if fault is None:
            fault = _values_fault(values) if isinstance(values, dict) else "is no JSON object"
        if fault is None:
            yield Record(values or {}, f"{path}:{number}", own_columns=not first)
            first = False
        else:
            on_bad(f"{path}:{number}", fault)


def _values_fault(value: Any) -> str | None:
    """Why a text within a JSON value is none: escapes may stand for what no text has."""
    if isinstance(value, str):
        return _clean(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for one in inner if (fault := _values_fault(one))), None)


def _parquet(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with fsspec.open(path, "rb") as file:
            number = 0
            for part in pyarrow.parquet.ParquetFile(file).iter_batches():
                for values in part.to_pylist():
                    number += 1
                    yield Record(values, f"{path}:{number}")
    except (OSError, pyarrow.ArrowException) as error:
        raise ExamplesError(f"{path}: cannot be read ({str(error).splitlines()[0]}): get the file again") from None


def _conll(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Sentences, which blank lines separate; columns are separated by tabs, or else by spaces."""
    sentence: list[list[str]] = []
    start, fault = 1, None

    def ended() -> Iterator[Record]:
        if fault:
            on_bad(*fault)
        elif sentence:
            yield Record({"columns": tuple(sentence)}, f"{path}:{start}")

    for number, line in _lines(path):
        line = line.rstrip("\r\n")
        if line.startswith("-DOCSTART-") or not line.strip(" \t"):
            yield from ended()
            sentence, fault = [], None
            continue
        if not sentence:
            start = number
        # Other spaces may stand in a word.
        columns = line.split("\t") if "\t" in line else line.split(" ")
        columns = [part for part in columns if part]
        problem = _clean(line)
        if problem is None and sentence and len(columns) != len(sentence[0]):
            problem = f"has {len(columns)} columns and the line before {len(sentence[-1])}"
        if problem and fault is None:
            fault = f"{path}:{number}", problem
        sentence.append(columns)
    yield from ended()


def _squad(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    try:
        articles = json.loads("".join(line for _, line in _lines(path)))["data"]
        # What is wrong with one question is no reason to doubt the file.
        questions = [
            (article.get("title", ""), number, paragraph.get("context"), question)
            for article in articles
            for number, (paragraph, question) in enumerate(
                ((paragraph, one) for paragraph in article["paragraphs"] for one in paragraph["qas"]), 1
            )
        ]
    except ExamplesError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExamplesError(
            f"{path}: is no SQuAD file ({type(error).__name__}: {str(error).splitlines()[0]}): other JSON is read as .jsonl"
        ) from None
    for title, number, context, question in questions:
        named = isinstance(question, Mapping) and question.get("id") is not None
        place = f"{path}:{question['id']}" if named else f"{path}:{title or 'an article'}, question {number}"
        if fault := _squad_fault(question, context):
            on_bad(place, fault)
            continue
        values = {
            "id": str(question["id"]),
            "question": question["question"],
            "context": context,
            "answers": [(answer["text"], answer["answer_start"]) for answer in question.get("answers") or ()],
            "impossible": bool(question.get("is_impossible", False)),
            "title": title,
        }
        yield Record(values, place)


def _squad_fault(question: Any, context: Any) -> str | None:
    if not isinstance(question, Mapping):
        return "is no question"
    if question.get("id") is None:
        return "has no id"
    if not isinstance(question.get("question"), str) or not isinstance(context, str):
        return "its question or context is no text"
    answers = question.get("answers")
    if answers is None and not question.get("is_impossible", False):
        return "has no answers, and is_impossible does not say that there are none"
    if answers is not None and not isinstance(answers, list):
        return "its answers are no list"
    for answer in answers or ():
        known = isinstance(answer, Mapping)
        if not known or not isinstance(answer.get("text"), str) or type(answer.get("answer_start")) is not int:
            return "an answer has no text or no answer_start"
    return _clean(question["question"]) or _clean(context)


def _tfds(source: str) -> Iterator[Record]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ExamplesError(f"{source}: needs tensorflow-datasets: pip install tensorflow-datasets") from None
    match = _TFDS.fullmatch(source)
    if not match:
        raise ExamplesError(
            f"{source}: is not of the form tfds:NAME/CONFIG or tfds:NAME/CONFIG:SPLIT, such as tfds:glue/sst2:train"
        )
    try:
        # Its types tell too little of a data set that is known by its name alone.
        builder: Any = tfds.builder(match["name"])
        if not builder.is_prepared():
            builder.download_and_prepare()
        data = tfds.as_numpy(builder.as_dataset(split=match["split"] or "train", shuffle_files=False))
        kinds = builder.info.features
        for number, example in enumerate(data):
            yield Record({key: _plain(value, kinds[key]) for key, value in example.items()}, f"{source}:{number}")
    except Exception as error:  # the network's, the disk's or the data set's own
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise ExamplesError(f"{source}: {text} (TFDS_DATA_DIR says where data sets lie)") from None


def _plain(value: Any, kind: Any) -> Any:
    """A feature as JSONL would have it: text, and the names of classes."""
    if hasattr(kind, "int2str") and getattr(value, "ndim", 1) == 0:
        return kind.int2str(int(value)) if value >= 0 else ""
    if isinstance(value, bytes):
        return value.decode("utf8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value
