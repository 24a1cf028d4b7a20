"""Labelled files -> the examples of a run: train, dev and test, and what is odd about them."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxbert.data.labelled import BadRecordError, Counting, ExamplesError, Record, read_records
from jaxbert.finetune.builtin import builtin_records
from jaxbert.finetune.config import ExamplesConfig
from jaxbert.tasks.task import Task

BUILTIN = "builtin"
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a run learns from and is measured on."""

    train: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]
    """One line each."""
    fingerprint: str
    """sha256 of the examples of train and dev, in their order."""


def read_all(task: Task[Any, Any], config: ExamplesConfig) -> Examples:
    """Read everything that a run needs, and look at it.

    Raises ExamplesError for files that are not there, and for rows that are not what they should be where that stops the run.
    """
    counting = Counting(config)
    train = list(_read(task, config.train, config, counting))
    dev = list(_read(task, config.dev, config, counting))
    test = list(_read(task, config.test, config, counting))
    if not config.dev:
        train, dev = _split(task, train, config.dev_share)
    train = train[: config.max_train_examples]
    if not train or not dev:
        raise ExamplesError("there are no examples to train on, or none to evaluate on: check data.train and data.dev")
    # A test set may be given later, and must not change what is trained.
    labels = task.labels([*train, *dev])
    return Examples(train, dev, test, labels, tuple(_oddities(task, train, dev, labels, counting)), _digest(train, dev))


def _read(task: Task[Any, Any], sources: Sequence[str], config: ExamplesConfig, counting: Counting) -> Iterator[Any]:
    for source in sources:
        records: Iterator[Record] = builtin_records() if source == BUILTIN else read_records(source, config, counting)
        for record in records:
            try:
                yield task.parse(record)
            except BadRecordError as error:
                counting(record.place, str(error))


def _split(task: Task[Any, Any], examples: Sequence[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Train and dev, by a hash of the text: equal texts are on the same side, whatever the seed, so that seeds can be compared."""
    train, dev = [], []
    for example in examples:
        text = task.text(example).encode("utf8", "surrogatepass")
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
        (dev if number < share else train).append(example)
    return train, dev


def _digest(*splits: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for example in (len(split), *split):
            digest.update(repr(example).encode("utf8", "surrogatepass"))
    return digest.hexdigest()


def _oddities(
    task: Task[Any, Any], train: Sequence[Any], dev: Sequence[Any], labels: Sequence[str], counting: Counting
) -> Iterator[str]:
    if counting.count:
        yield f"{counting.count:,} rows are left out: {'; '.join(counting.first)}"
    learnt = {label for example in train for label in task.labels_of(example)}
    measured = {label for example in dev for label in task.labels_of(example)}
    if only := sorted(measured - learnt):
        yield f"labels that dev has and train has not, so that they cannot be learnt: {_some(only)}"
    if empty := [label for label in labels if label not in learnt | measured and learnt and learnt <= {*labels}]:
        yield f"labels without an example in train: {_some(empty)}"
    texts = {task.text(example) for example in train}
    if again := sum(task.text(example) in texts for example in dev):
        yield f"{again:,} of {len(dev):,} texts in dev are in train too: what is measured on them is no test"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
