"""Labelled files -> the examples of a run: train, dev and test, and what is odd about them."""

import array
import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.features import Feature, StoredFeatures
from jaxbert.data.labelled import read_records
from jaxbert.data.records import BadRecordError, Counting, ExamplesError, MissingColumnError, Record
from jaxbert.finetune.builtin import builtin_records
from jaxbert.finetune.config import ExamplesConfig
from jaxbert.tasks.task import BoundTask, Task, unknown_label

BUILTIN, MEMORY = "builtin", "memory"
Tables = Mapping[str, Iterable[Mapping[str, Any]]]
"""Rows of a program's own, by the split that they are: "train", "dev", "test"."""
_NAMED = 5
# Examples of a stream that are in memory together.
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a run learns from and is measured on."""

    train: Collection[Any]
    """In memory, or `Streamed`."""
    dev: Sequence[Any]
    test: Sequence[Any]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]
    """One line each."""
    fingerprint: str
    """sha256 of the examples of train and dev, in their order."""


class Streamed(Collection[Any]):
    """Examples that are read again whenever they are gone through, so that they need no memory.

    Raises ExamplesError where there are other than the first time.
    """

    def __init__(self, read: Callable[[], Iterable[Any]], count: int):
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for count, example in enumerate(self._read(), 1):  # noqa: B007
            yield example
        if count != self._count:
            raise ExamplesError(
                f"data.train had {self._count:,} examples, and {count:,} when it was read again: do not change files in use"
            )

    def __contains__(self, example: object) -> bool:
        return any(one == example for one in self)


def over_tables(config: ExamplesConfig, tables: Tables) -> ExamplesConfig:
    """With what `tables` has in place of files. Raises ExamplesError for a table that is no split."""
    if unknown := [name for name in tables if name not in ("train", "dev", "test")]:
        raise ExamplesError(f"tables has {unknown[0]!r}: there are train, dev and test")
    return dataclasses.replace(config, **dict.fromkeys(tables, (MEMORY,)))


def read_all(task: Task[Any, Any], config: ExamplesConfig, tables: Tables | None = None) -> Examples:
    """Read everything that a run needs, and look at it. `tables`: as in `over_tables`.

    Raises ExamplesError for files that are not there, and for rows that are not what they should be where that stops the run.
    """
    counting, held_out, tables = Counting(config), [], tables or {}
    train: Collection[Any] = []
    seen = _Seen(task)
    for example in _training(task, config, counting, held_out, tables):
        seen.add(example)
        if not config.streaming:
            train.append(example)
    if config.streaming:
        train = Streamed(lambda: _training(task, config, Counting(config), [], tables), seen.count)
    dev = list(_read(task, "dev", config, counting, tables)) if config.dev else held_out
    if not train or not dev:
        raise ExamplesError(_none(bool(train), config, counting))
    # A test set may be given later, and must not change what is trained.
    labels = task.labels(Streamed(lambda: itertools.chain(train, dev), len(train) + len(dev)))
    known = seen.labels.union(*map(task.labels_of, dev)) if task.labels_are_found else None
    test = list(_read(task, "test", config, counting, tables, known))
    for example in (*dev, *test):
        seen.odd.update(task.oddities(example))
    return Examples(train, dev, test, labels, tuple(_oddities(task, seen, dev, test, counting)), seen.fingerprint(dev))


def _none(has_train: bool, config: ExamplesConfig, counting: Counting) -> str:
    """What to say where nothing is left to train on, or to evaluate on."""
    if has_train and not config.dev:
        return f"data.dev_share ({config.dev_share:g}) takes none of the few examples of data.train to evaluate on: raise it, or name data.dev"
    split, left_out = "dev" if has_train else "train", ""
    if counting.count:
        left_out = f", and {counting.count:,} rows are left out ({'; '.join(counting.first)})"
    return f"data.{split} has no example{left_out}: check its files"


def _training(
    task: Task[Any, Any], config: ExamplesConfig, counting: Counting, held_out: list[Any], tables: Tables
) -> Iterator[Any]:
    """The training examples. Where dev has no files of its own, a share of them goes to `held_out` in their place.

    By a hash of the text: equal texts are on the same side, whatever the seed, so that seeds can be compared.
    """
    taken = 0
    for example in _read(task, "train", config, counting, tables):
        if not config.dev and _hash(task.text(example)) / 2**64 < config.dev_share:
            held_out.append(example)
        elif config.max_train_examples is None or taken < config.max_train_examples:
            taken += 1
            yield example


def _hash(text: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=8).digest(), "big")


def training_features(
    bound: BoundTask[Any, Any], train: Collection[Any], folder: Path | None = None
) -> Sequence[Feature]:
    """What a model reads of training examples; of `Streamed` ones on disk, in `folder` (None: where temporary files are)."""
    if not isinstance(train, Streamed):
        return bound.features(list(train))

    def chunks() -> Iterator[list[Feature]]:
        examples, first = iter(train), 0
        while some := list(itertools.islice(examples, _AT_ONCE)):
            yield [dataclasses.replace(one, example=first + one.example) for one in bound.features(some)]
            first += len(some)

    return StoredFeatures(chunks(), folder)


def _read(
    task: Task[Any, Any],
    split: str,
    config: ExamplesConfig,
    counting: Counting,
    tables: Tables,
    known: Collection[str] | None = None,
) -> Iterator[Any]:
    """The examples of a split. `known`: the labels that they may have; None: any."""
    for source in getattr(config, split):
        records = _records(source, split, config, counting, tables)
        for _, of_file in itertools.groupby(records, lambda record: record.place.rpartition(":")[0]):
            yield from _of_file(task, split, of_file, counting, known)


def _of_file(
    task: Task[Any, Any],
    split: str,
    records: Iterable[Record],
    counting: Counting,
    known: Collection[str] | None,
) -> Iterator[Any]:
    # A first record that lacks a column, and records that lack what is measured: wrong ones, if another one there has it.
    lacking: tuple[Record, MissingColumnError] | None = None
    columns: set[str] = set()
    unmeasured: list[tuple[Record, Any, str]] = []
    measurable = False
    for record in records:
        if lacking is not None:
            columns.update(record.values)
        try:
            example = task.parse(record)
            if known is not None:
                _check_known(task.labels_of(example), known)
        except MissingColumnError as error:
            if counting.stops or not record.first:
                raise
            lacking = record, error
        except BadRecordError as error:
            counting(record.place, str(error))
        else:
            if split == "train" or (fault := task.unmeasurable(example)) is None:
                measurable = True
                yield example
            else:
                unmeasured.append((record, example, fault))
    if lacking is not None:
        record, error = lacking
        if error.column not in columns:
            raise error
        counting(record.place, f"has no {error.column!r}")
    for record, example, fault in unmeasured:
        if measurable:
            counting(record.place, fault)
        else:
            # All of them: what is wrong is the setting, which is said with its name.
            yield example


def _check_known(labels: Iterable[str], known: Collection[str]) -> None:
    for label in labels:
        if label not in known:
            raise BadRecordError(unknown_label(label, known))


def _records(source: str, split: str, config: ExamplesConfig, counting: Counting, tables: Tables) -> Iterable[Record]:
    if source == BUILTIN:
        return builtin_records()
    if source != MEMORY:
        return read_records(source, config, counting)
    if split not in tables:
        raise ExamplesError(
            f"data.{split} is {MEMORY}, the rows of a program: call finetune(config, tables) with them again"
        )
    return (
        Record(row, f"{split}:{number}", own_columns=True, first=number == 1)
        for number, row in enumerate(tables[split], 1)
    )


class _Seen:
    """What is kept of training examples that have gone by."""

    def __init__(self, task: Task[Any, Any]):
        self._task, self._digest = task, hashlib.sha256()
        self._texts = array.array("Q")
        self.labels: set[str] = set()
        self.odd: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        return len(self._texts)

    def add(self, example: Any) -> None:
        self._digest.update(_bytes(example))
        self._texts.append(_hash(self._task.text(example)))
        self.labels.update(self._task.labels_of(example))
        self.odd.update(self._task.oddities(example))

    def again(self, examples: Sequence[Any]) -> int:
        """How many of these have the text of one that has gone by."""
        texts = np.array([_hash(self._task.text(example)) for example in examples], np.uint64)
        return int(np.isin(texts, np.frombuffer(self._texts, np.uint64)).sum())

    def fingerprint(self, dev: Sequence[Any]) -> str:
        """As in `Examples`."""
        digest = self._digest.copy()
        digest.update(f"{self.count} {len(dev)}".encode())
        for example in dev:
            digest.update(_bytes(example))
        return digest.hexdigest()


def _bytes(example: Any) -> bytes:
    return repr(example).encode("utf8", "surrogatepass")


def _oddities(
    task: Task[Any, Any], seen: _Seen, dev: Sequence[Any], test: Sequence[Any], counting: Counting
) -> Iterator[str]:
    if counting.count:
        yield f"{counting.count:,} rows are left out: {'; '.join(counting.first)}"
    yield from (f"{count:,} examples {what}" for what, count in seen.odd.items())
    learnt = seen.labels
    measured = {label for example in dev for label in task.labels_of(example)}
    if only := sorted(measured - learnt):
        yield f"labels that dev has and train has not, so that they cannot be learnt: {_some(only)}"
    if empty := [label for label in task.listed if label not in learnt | measured]:
        yield f"labels without an example in train: {_some(empty)}"
    for name, split in (("dev", dev), ("test", test)):
        if again := seen.again(split):
            yield f"{again:,} of {len(split):,} texts in {name} are in train too: what is measured on them is no test"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
