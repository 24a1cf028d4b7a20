"""Relation extraction: how two marked entities of a text are related, read from where they begin (Baldini Soares et al. 2019, section 3)."""

import bisect
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Encoding

from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import RelationConfig
from jaxbert.model.classifiers import BertForRelationClassification
from jaxbert.tasks import metrics
from jaxbert.tasks.pairs import SIGNS, Pair, around, in_tokens, marked, with_spans, without_tags
from jaxbert.tasks.task import (
    MARKERS,
    BoundTask,
    Encoder,
    Mistake,
    Outputs,
    Table,
    Task,
    check_listed,
    column,
    label_in,
    some,
    sorted_labels,
    text_in,
    too_few,
    type_ids,
    unknown_label,
)
from jaxbert.train.losses import Sums, masked_accuracy, masked_cross_entropy
from jaxbert.train.state import Batch


@dataclasses.dataclass(frozen=True)
class Related:
    """What the model says of a pair."""

    label: str
    scores: Float[np.ndarray, " C"]
    """Probability of each relation."""


class Relation(Task[Pair, Related]):
    """See `RelationConfig`."""

    def __init__(self, settings: RelationConfig):
        self.settings: RelationConfig = settings

    def parse(self, record: Record) -> Pair:
        """A row of a table."""
        settings = self.settings
        text = text_in(record, settings.text, "task.text")
        label = label_in(record, settings.label, "task.label")
        check_listed((label,), settings.labels)
        if settings.spans is None:
            return Pair(*without_tags(text), label)
        spans = column(record, settings.spans, "task.spans")
        try:
            return Pair(*with_spans(text, spans), label)
        except BadRecordError as error:
            raise BadRecordError(f"{settings.spans} {error}") from None

    def text(self, example: Pair) -> str:
        """The text, with its entities marked."""
        return marked(example)[0]

    @property
    def labels_are_found(self) -> bool:
        """Where none are listed."""
        return not self.settings.labels

    @property
    def listed(self) -> Sequence[str]:
        """Those of `task.labels`."""
        return self.settings.labels

    def labels_of(self, example: Pair) -> Iterable[str]:
        """Its relation."""
        return (example.label,)

    def labels(self, train: Collection[Pair]) -> tuple[str, ...]:
        """Those that are listed, or those of the rows of train and dev."""
        found = self.settings.labels or sorted_labels((example.label,) for example in train)
        if len(found) < 2:
            raise too_few("relations", found, self.settings.labels)
        return found

    def bind(self, labels: tuple[str, ...], train: Collection[Pair], encoder: Encoder) -> "BoundRelation":
        """With a head for these relations."""
        return BoundRelation(self.settings, labels, encoder, train)


class BoundRelation(BoundTask[Pair, Related]):
    """A classifier of these relations."""

    architecture: str = "ForRelationClassification"
    loss_weights: Mapping[str, float] = {"label_loss": 1.0}
    inputs: tuple[str, ...] = (*BoundTask.inputs, "entities")

    def __init__(
        self, settings: RelationConfig, labels: tuple[str, ...], encoder: Encoder, train: Collection[Pair] = ()
    ):
        self.settings: RelationConfig = settings
        self.labels: Sequence[str] = labels
        self.encoder: Encoder = encoder
        self._ids = {label: i for i, label in enumerate(labels)}
        self.metric: str = settings.metric
        self.model: nn.Module = BertForRelationClassification(encoder.config, len(labels))
        self._room = encoder.max_length - encoder.tokenizer.num_special_tokens_to_add(False)
        self.warnings: Sequence[str] = list(self._oddities(train))

    def _oddities(self, train: Collection[Pair]) -> Iterator[str]:
        other = self.settings.other
        if other and other not in map(_without_direction, self.labels):
            yield (
                f"task.other is {other!r}, and none of the relations is that ({some(self.labels)}): macro_f1 and micro_f1 count all "
                'of them; set it to the one that says that there is no relation, or to ""'
            )
        if apart := sum(map(self._are_apart, train)):
            yield (
                f"{apart:,} of {len(train):,} training examples have entities further apart than data.max_length "
                f"({self.encoder.max_length}) has room for: what stands between them is left out; raise it"
            )

    def _are_apart(self, example: Pair) -> bool:
        low, high = min(example.first[0], example.second[0]), max(example.first[1], example.second[1])
        # A token has a byte at least, and markers are 8: of most texts that is enough to know.
        if len(example.text[low:high].encode("utf8", "surrogatepass")) + 8 <= self._room:
            return False
        text, starts = marked(example)
        encoding = self.encoder.tokenizer.encode(text, add_special_tokens=False)
        read = around(in_tokens(example, encoding, starts), len(encoding), self._room)
        return read[-1] - read[0] >= len(read)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axis names."""
        one_BxL = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, one_BxL, one_BxL, one_BxL, one_BxL, jnp.zeros((1, 1, 2), jnp.int32))["params"]

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all examples."""
        return {"label_loss": jnp.sum(batch["real"])}

    def sums(self, found: Float[Array, "R S C"], batch: Batch) -> dict[str, Sums]:
        """Cross-entropy in nats."""
        targets = (found, batch["label"], batch["real"])
        return {"label_loss": masked_cross_entropy(*targets), "accuracy": masked_accuracy(*targets)}

    def readable(self, found: Float[Array, "R S C"]) -> Outputs:
        """Probabilities."""
        return Outputs({"scores": jax.nn.softmax(found)}, {})

    def features(self, examples: Sequence[Pair]) -> list[Feature]:
        """One sequence each. Of a text that is too long, the part around its entities is read, or a part around each of them."""
        texts = [marked(example) for example in examples]
        encodings = self.encoder.tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False)
        return [
            self._feature(n, example, encoding, starts)
            for n, (example, encoding, (_, starts)) in enumerate(zip(examples, encodings, texts, strict=True))
        ]

    def _feature(self, number: int, example: Pair, encoding: Encoding, starts: tuple[int, int]) -> Feature:
        if example.label not in self._ids:
            raise ExamplesError(unknown_label(example.label, self.labels))
        spans, ids = in_tokens(example, encoding, starts), encoding.ids
        read = around(spans, len(ids), self._room)
        encoding.truncate(len(read))
        whole = self.encoder.tokenizer.post_process(encoding)
        before = next((n for n, special in enumerate(whole.special_tokens_mask) if not special), 0)
        places = [min(bisect.bisect_left(read, start), len(read) - 1) for start, _ in spans]
        return Feature(
            number,
            [*whole.ids[:before], *(ids[n] for n in read), *whole.ids[before + len(read) :]],
            type_ids(self.encoder, whole),
            values={"label": self._ids[example.label]},
            positions={"entities": [place + before for place in places]},
            cut=len(read) < len(ids),
        )

    def decode(
        self, examples: Sequence[Pair], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Related]:
        """The likeliest relation."""
        return [Related(self.labels[int(one["scores"].argmax())], one["scores"]) for one in outputs]

    def score(self, examples: Sequence[Pair], predictions: Sequence[Related]) -> dict[str, float]:
        """macro_f1 as SemEval-2010 Task 8's official scorer has it, micro_f1 without the other relation, accuracy."""
        gold = [example.label for example in examples]
        found = [prediction.label for prediction in predictions]
        counts = official_counts(gold, found, self.settings.other)
        return {
            "macro_f1": macro_f1(counts),
            "micro_f1": metrics.together(list(counts.values())).f1,
            "accuracy": sum(a == b for a, b in zip(gold, found, strict=True)) / len(gold),
        }

    def tables(self, examples: Sequence[Pair], predictions: Sequence[Related]) -> list[Table]:
        """By relation, its directions together as the official scorer counts them; and each by itself."""
        gold, found = [e.label for e in examples], [p.label for p in predictions]
        counts = official_counts(gold, found, self.settings.other)
        each = metrics.class_counts(self._confusion(examples, predictions))
        return [
            Table(
                "By relation, official",
                metrics.REPORT_COLUMNS,
                metrics.report_rows(list(counts), list(counts.values())),
            ),
            Table("By relation and direction", metrics.REPORT_COLUMNS, metrics.report_rows(self.labels, each)),
        ]

    def confusion(self, examples: Sequence[Pair], predictions: Sequence[Related]) -> tuple[Sequence[str], np.ndarray]:
        """Of relations."""
        return self.labels, self._confusion(examples, predictions)

    def _confusion(self, examples: Sequence[Pair], predictions: Sequence[Related]) -> np.ndarray:
        gold = np.array([self._ids[example.label] for example in examples])
        found = np.array([self._ids[prediction.label] for prediction in predictions])
        return metrics.confusion(gold, found, len(self.labels))

    def mistakes(self, examples: Sequence[Pair], predictions: Sequence[Related]) -> list[Mistake]:
        """Wrong relations, by -log of the right one's probability."""
        return [
            Mistake(
                marked(example)[0],
                example.label,
                one.label,
                -float(np.log(max(one.scores[self._ids[example.label]], 1e-12))),
            )
            for example, one in zip(examples, predictions, strict=True)
            if example.label != one.label
        ]

    def configuration(self) -> dict[str, Any]:
        """With the markers that the texts have."""
        return {**super().configuration(), MARKERS: list(SIGNS)}


def official_counts(gold: Sequence[str], found: Sequence[str], other: str) -> dict[str, metrics.Counts]:
    """Counts of each relation but the other one, directions together: a wrong direction is a prediction, and not correct.

    semeval2010_task8_scorer-v1.2.pl, the (9+1)-way evaluation with directionality taken into account.
    """
    # What the key has not is to the scorer like the other relation.
    names = sorted({_without_direction(label) for label in gold} - {other})
    return {
        name: metrics.Counts(
            sum(a == b and _without_direction(a) == name for a, b in zip(gold, found, strict=True)),
            sum(_without_direction(b) == name for b in found),
            sum(_without_direction(a) == name for a in gold),
        )
        for name in names
    }


def macro_f1(counts: Mapping[str, metrics.Counts]) -> float:
    """The mean F1 of the relations, each as one."""
    return sum(count.f1 for count in counts.values()) / len(counts) if counts else 0.0


def _without_direction(label: str) -> str:
    return re.sub(r"\(e[12],e[12]\)$", "", label)
