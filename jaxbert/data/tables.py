"""Tables as records: TSV, CSV, JSONL, parquet, tensorflow-datasets."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec

from jaxbert.data.records import ExamplesError, OnBad, Record, lines, text_fault
from jaxbert.finetune.config import ExamplesConfig

_TFDS = re.compile(r"tfds:(?P<name>[^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(?P<split>.+))?")
# csv's own limit of 131,072 characters is less than some texts are long.
_LONGEST_FIELD = 2**30
_LONE_RETURN = re.compile(r"(?<=\r)(?=[^\n])")


def read_tsv(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Lines of cells with tabs between them, of which no quotation mark is more than that."""
    # No quoting: a quotation mark in a TSV file is one.
    rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in _parts(path))
    return _named(rows, path, config, on_bad)


def _parts(path: str) -> Iterator[tuple[int, str]]:
    """Lines, of a file whose lines end with \r alone too, as old spreadsheets wrote them."""
    for number, line in lines(path):
        if number == 1 and _LONE_RETURN.search(line):
            yield from enumerate(_LONE_RETURN.split(line), 1)
        else:
            yield number, line


def read_csv(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Rows as RFC 4180 has them: a quoted cell may go over several lines."""
    csv.field_size_limit(_LONGEST_FIELD)

    def rows() -> Iterator[tuple[int, list[str]]]:
        # Old spreadsheets end lines with \r alone, which csv refuses within one that is handed to it.
        ended = (part for _, line in lines(path) for part in _LONE_RETURN.split(line))
        reader = csv.reader(ended, strict=True)
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


def _named(rows: Iterable[tuple[int, list[str]]], path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Rows of cells as records, with the names of the columns from the configuration or the first row."""
    names = list(config.columns)
    header = [name.lower() for name in names]
    for number, cells in rows:
        if not cells or cells == [""]:
            continue
        if not names:
            names = [name.strip() for name in cells]
            if len(set(names)) != len(names):
                raise ExamplesError(f"{path}: its first line names a column twice: name them with data.columns")
            continue
        fault = next((fault for cell in cells if (fault := text_fault(cell))), None)
        if header and [cell.strip().lower() for cell in cells] == header:
            fault = "has the names of data.columns: leave that out, which is for files without such a line"
        header = []
        if len(cells) != len(names):
            fault = f"has {len(cells)} columns where there should be {len(names)} ({', '.join(names)})"
        if fault:
            on_bad(f"{path}:{number}", fault)
            continue
        yield Record(dict(zip(names, cells, strict=True)), f"{path}:{number}")


def read_jsonl(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """A JSON object on each line."""
    first = True
    for number, line in lines(path):
        if not line.strip():
            continue
        fault, values = text_fault(line), None
        if fault is None:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                fault = f"is not JSON ({str(error).splitlines()[0]})"
        if fault is None:
            fault = _values_fault(values) if isinstance(values, dict) else "is no JSON object: write one on each line"
        if fault is None:
            yield Record(values or {}, f"{path}:{number}", own_columns=True, first=first)
            first = False
        else:
            on_bad(f"{path}:{number}", fault)


def _values_fault(value: Any) -> str | None:
    """Why a text within a JSON value is none: escapes may stand for what no text has."""
    if isinstance(value, str):
        return text_fault(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for one in inner if (fault := _values_fault(one))), None)


def read_parquet(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """The rows of a parquet file."""
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


def read_tfds(source: str) -> Iterator[Record]:
    """The examples of a split of tensorflow-datasets, with the names of classes for their numbers."""
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
