"""Labelled files -> records: tables (TSV, CSV, JSONL, parquet, tfds), CoNLL's columns, SQuAD's JSON.

Every record knows where it stands, so that whatever is wrong with it can be said with file, line and reason.
"""

import glob
import pathlib
from collections.abc import Iterable, Iterator

import fsspec

from jaxbert.data.conll import read_conll
from jaxbert.data.records import ExamplesError, OnBad, Record, read_once
from jaxbert.data.squad import read_squad
from jaxbert.data.tables import read_csv, read_jsonl, read_parquet, read_tfds, read_tsv
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


def read_records(source: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """The records of a source, in order.

    Of a table: column -> str (JSONL and parquet: whatever stands there). Of CoNLL: "columns", a list of the lines' columns.
    Of SQuAD: "id", "question", "context", "answers" [(text, start)], "impossible". Raises ExamplesError for a source that is not
    there, is empty or cannot be read.
    """
    if source.startswith("tfds:"):
        yield from _counted(read_tfds(source), source)
        return
    for path in _files(source):
        readers = {
            "tsv": read_tsv,
            "csv": read_csv,
            "jsonl": read_jsonl,
            "conll": read_conll,
            "squad": read_squad,
            "parquet": read_parquet,
        }
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
        if read_once(source):
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
