"""What a fine-tuning task is: how its examples are read, what the model computes of them, and how that is scored.

A new task is one new file with two classes: a `Task`, which reads records, and a `BoundTask`, which has the model. The step and the
loop are those of pretraining.
"""

import abc
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tokenizers import Encoding, Tokenizer

from jaxbert.config import ModelConfig
from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, ExamplesError, MissingColumnError, Record
from jaxbert.train.losses import Sums
from jaxbert.train.state import Batch
from jaxbert.weights.embedder import Embedder
from jaxbert.weights.names import Family

TASK = "jaxbert_task"
"""The key of config.json that has a task's settings."""
LENGTH = "jaxbert_max_length"
"""The key that has the tokens of a sequence that it was fine-tuned with."""
NO_ANSWER = "no_answer_is_possible"
"""The key that says that a question may have no answer."""
MARKERS = "entity_markers"
"""The key that says what stands around entities."""
OF_A_TASK = ("id2label", "label2id", "num_labels", "problem_type", TASK, LENGTH, NO_ANSWER, MARKERS)
"""Keys that belong to a model's head, and not to the encoder under it."""
E = TypeVar("E")
P = TypeVar("P")


class Encoder(NamedTuple):
    """What a task puts its head on."""

    config: ModelConfig
    family: Family
    tokenizer: Tokenizer
    max_length: int
    """Tokens of a sequence."""


class Outputs(NamedTuple):
    """What the model says of a batch, for the host to decode."""

    sequences: Mapping[str, Array]
    """[R, S, ...]: of each sequence."""
    tokens: Mapping[str, Array]
    """[R, L, ...]: of each token."""


class Table(NamedTuple):
    """A table of a report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Mistake(NamedTuple):
    """An example that the model got wrong."""

    text: str
    gold: str
    predicted: str
    loss: float
    """The larger, the worse; `BoundTask.ranked_by` says what it is."""


class Task(abc.ABC, Generic[E, P]):
    """A task before its model is known. `E` is its example, `P` its prediction."""

    @abc.abstractmethod
    def parse(self, record: Record) -> E:
        """The example in a record. Raises BadRecordError, saying what is wrong with it, and ExamplesError for a missing column."""

    @abc.abstractmethod
    def text(self, example: E) -> str:
        """What tells an example from others."""

    @abc.abstractmethod
    def labels_of(self, example: E) -> Iterable[str]:
        """The labels of an example."""

    @property
    def labels_are_found(self) -> bool:
        """Whether the labels are those that train and dev happen to have, so that another one cannot be measured."""
        return False

    @property
    def listed(self) -> Sequence[str]:
        """Labels that the settings list, as `labels_of` has them."""
        return ()

    def unmeasurable(self, example: E) -> str | None:
        """Why nothing can be measured on an example of dev or test, though it may be learnt; None: it can."""
        return None

    def unanswered(self, examples: Collection[E]) -> int:
        """How many have nothing to be found, for `--check-data` to say."""
        return 0

    def oddities(self, example: E) -> Iterable[str]:
        """What is odd about an example that is used all the same: "have no answer ...", for a warning that counts them."""
        return ()

    @abc.abstractmethod
    def labels(self, train: Collection[E]) -> tuple[str, ...]:
        """The labels of the task, in the order of their ids. `train`: the examples of train and dev."""

    @abc.abstractmethod
    def bind(self, labels: tuple[str, ...], train: Collection[E], encoder: Encoder) -> "BoundTask[E, P]":
        """The task with a head for these labels."""


class BoundTask(abc.ABC, Generic[E, P]):
    """A task on an encoder, with its labels: what is trained and scored. It is a `jaxbert.train.state.Task`."""

    architecture: str
    """transformers' class without its family's name, "ForSequenceClassification"."""
    metric: str
    """The measure of `score` that the best checkpoint is chosen by; the higher the better."""
    loss_weights: Mapping[str, float]
    """Coefficient of each loss term of `sums`."""
    model: nn.Module
    """Takes the arrays of `inputs`."""
    inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "sequence_ids", "position_ids")
    """Names of what the model is called with, in order."""
    labels: Sequence[str]
    labels_are_outputs: bool = True
    """Whether the labels are the names of the head's outputs."""
    together: bool = False
    """Whether the loss compares the features of an example, which must then be in one batch ("groups" says which belong together)."""
    ranked_by: str = "loss"
    """What the number of a `Mistake` is, for the report."""
    warnings: Sequence[str] = ()
    """What is odd about the settings on this encoder, a line each, for the screen and the report."""
    embedder: Embedder | None = None
    """What makes the exported model one that embeds texts."""

    # What the step computes.

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axis names."""
        # Parameters have the same shapes for any batch: the smallest will do.
        one_BxL = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, one_BxL, one_BxL, one_BxL)["params"]

    def apply(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Any:
        """What the model says of a batch. `dropout_key` None: no dropout."""
        tokens = (batch[name] for name in self.inputs)
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return self.model.apply({"params": params}, *tokens, deterministic=dropout_key is None, rngs=rngs)

    @abc.abstractmethod
    def weights(self, batch: Batch) -> dict[str, Array]:
        """Total weight of each loss term over the batch, from the data alone."""

    @abc.abstractmethod
    def sums(self, found: Any, batch: Batch) -> dict[str, Sums]:
        """(sum, weight) of each loss term, and of what else is measured in training; `found`: as from `apply`."""

    @abc.abstractmethod
    def readable(self, found: Any) -> Outputs:
        """What `decode` wants of what `apply` gives."""

    def forward(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, Sums]:
        """(sum, weight) of each loss term and metric over the batch."""
        return self.sums(self.apply(params, batch, dropout_key), batch)

    def outputs(self, params: Any, batch: Batch) -> tuple[dict[str, Sums], Outputs]:
        """`sums` and `readable` without dropout."""
        found = self.apply(params, batch, None)
        # The batches of an evaluation may part what belongs together: `score` has the loss of such tasks.
        return {} if self.together else self.sums(found, batch), self.readable(found)

    # What the host does.

    @abc.abstractmethod
    def features(self, examples: Sequence[E]) -> list[Feature]:
        """The sequences that the model reads, in the order of the examples."""

    @abc.abstractmethod
    def decode(
        self, examples: Sequence[E], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[P]:
        """A prediction for each example; `outputs`: of each feature, those of tokens cut to its length."""

    def check_measurable(self, examples: Sequence[E], files: str) -> None:
        """Raise ExamplesError, before anything is trained, where examples lack what `score` needs. `files`: "data.dev"."""

    @abc.abstractmethod
    def score(self, examples: Sequence[E], predictions: Sequence[P]) -> dict[str, float]:
        """Measures by name, 0 to 1 but for those of numbers."""

    def configuration(self) -> dict[str, Any]:
        """Keys for config.json."""
        return {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }

    def tables(self, examples: Sequence[E], predictions: Sequence[P]) -> list[Table]:
        """What a report shows beside the measures."""
        return []

    def confusion(self, examples: Sequence[E], predictions: Sequence[P]) -> tuple[Sequence[str], np.ndarray] | None:
        """Names, and how often each (row) was taken for each (column); None where there is no such thing."""
        return None

    def mistakes(self, examples: Sequence[E], predictions: Sequence[P]) -> list[Mistake]:
        """What was predicted wrong."""
        return []


def encode(encoder: Encoder, texts: Sequence[Any], overlap: int | None = None) -> list[Encoding]:
    """The encodings of texts or of pairs. What is too long is cut, the longer part of a pair first.

    `overlap`: texts that are too long are read in windows, of which each repeats so many tokens of the one before; the further ones
    are in `Encoding.overflowing`.
    """
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenizer.enable_truncation(encoder.max_length, stride=overlap or 0)
    return tokenizer.encode_batch(list(texts))


def is_cut(encoding: Encoding) -> bool:
    """Whether `encode`, without windows, left something out."""
    return bool(encoding.overflowing)


def type_ids(encoder: Encoder, encoding: Encoding) -> list[int]:
    """Token types; some tokenizers number the parts of a pair for models that do not tell them apart."""
    return encoding.type_ids if encoder.config.type_vocab_size > 1 else [0] * len(encoding)


def column(record: Record, name: str, field: str) -> Any:
    """What stands in a column.

    Raises MissingColumnError, naming the `field` of the configuration, where the file has no such column, and BadRecordError where
    only this record has not, as a line of JSONL may.
    """
    if name not in record.values:
        raise missing(record, name, f"set {field} to one of {', '.join(map(repr, record.values))}")
    return record.values[name]


def missing(record: Record, name: str, way_out: str) -> Exception:
    """What is raised, as `column` says, for a column that is not there."""
    if record.own_columns and not record.first:
        return BadRecordError(f"has no {name!r}")
    # JSON has no tuples.
    if isinstance(record.values.get("columns"), tuple):
        way_out = "it was read as CoNLL, a word and its tag on each line; --data.format tsv (or csv, jsonl) reads it as a table"
    if record.own_columns:
        way_out += "; where other rows have it, --data.bad-rows skip leaves this one out"
    return MissingColumnError(f"{record.place}: has no column {name!r}: {way_out}", name)


def text_in(record: Record, name: str, field: str) -> str:
    """The text in a column. Raises BadRecordError where it is none, or empty."""
    value = column(record, name, field)
    if not isinstance(value, str) or not value.strip():
        raise BadRecordError(f"{name} is {'empty' if value == '' or isinstance(value, str) else repr(value)}")
    return value


def label_in(record: Record, name: str, field: str) -> str:
    """The class in a column, which may be a number. Raises BadRecordError where it is none, or empty."""
    value = column(record, name, field)
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        raise BadRecordError(f"{name} is {value!r}, and no class")
    return str(value).strip()


def number_in(record: Record, name: str, field: str) -> float:
    """The number in a column. Raises BadRecordError where it is none, or not finite."""
    value = column(record, name, field)
    try:
        # To Python, true is the number 1, and 1_000 is one too.
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRecordError(f"{name} is {value!r}, and no number")
    return number


def sorted_labels(examples: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The labels of examples; in the order of numbers where all are numbers."""
    found = {label for labels in examples for label in labels}
    numbers = all(re.fullmatch("-?[0-9]{1,18}", label) for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if numbers else str))


def check_listed(found: Iterable[str], listed: Sequence[str]) -> None:
    """Raise BadRecordError for a label that is none of `listed`, which is task.labels; where that is empty, all are taken."""
    unknown = [label for label in found if label not in listed] if listed else []
    if unknown:
        raise BadRecordError(f"label {unknown[0]!r} is not one of task.labels ({some(listed)})")


def too_few(kind: str, found: Sequence[str], listed: Sequence[str], least: str = "two") -> ExamplesError:
    """What is raised where there are not enough labels to tell apart. `listed`: task.labels."""
    if listed:
        return ExamplesError(
            f"task.labels has {len(found)} {kind} ({', '.join(found)}): list at least {least}, or none"
        )
    where = f"data.train and data.dev have {len(found)} {kind} ({', '.join(found)})"
    return ExamplesError(f"{where}: there must be at least {least}")


def unknown_label(label: str, labels: Collection[str]) -> str:
    """What is wrong with an example whose label the task has not."""
    known = some(sorted_labels([labels]))
    return (
        f"label {label!r} is none of the task's ({known}), which are those of data.train and data.dev, or task.labels"
    )


def some(labels: Sequence[str]) -> str:
    """The first of them, for messages."""
    return ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
