"""Classification: a class for each text or pair of texts, several classes, or a number (Devlin et al. 2018, section 4.1)."""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ClassificationConfig
from jaxbert.model.classifiers import BertForSequenceClassification
from jaxbert.model.heads import SEQUENCE_HIDDEN_LAYERS
from jaxbert.tasks import metrics
from jaxbert.tasks.task import (
    BoundTask,
    Encoder,
    Mistake,
    Outputs,
    Table,
    Task,
    check_listed,
    column,
    encode,
    is_cut,
    label_in,
    number_in,
    some,
    sorted_labels,
    text_in,
    too_few,
    type_ids,
    unknown_label,
)
from jaxbert.train.losses import Sums, masked_accuracy
from jaxbert.train.state import Batch


@dataclasses.dataclass(frozen=True)
class Text:
    """A text or a pair, with its class, its classes, or its number."""

    text: str
    pair: str | None
    labels: tuple[str, ...]
    number: float = math.nan


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the model says of a text."""

    labels: tuple[str, ...]
    scores: Float[np.ndarray, " C"]
    """Probability of each class; of "regression": the number."""


class Classification(Task[Text, Judgement]):
    """See `ClassificationConfig`."""

    def __init__(self, settings: ClassificationConfig):
        self.settings: ClassificationConfig = settings

    def parse(self, record: Record) -> Text:
        """A row of a table."""
        settings = self.settings
        text = text_in(record, settings.text, "task.text")
        pair = text_in(record, settings.text_pair, "task.text-pair") if settings.text_pair is not None else None
        if settings.target == "regression":
            return Text(text, pair, (), number_in(record, settings.label, "task.label"))
        if settings.target == "multi-label":
            value = column(record, settings.label, "task.label")
            if value is None or isinstance(value, dict):
                raise BadRecordError(f"{settings.label} is {value!r}, and no list of classes")
            parts = value if isinstance(value, list | tuple) else str(value).split(settings.label_separator)
            if any(part is None or isinstance(part, list | tuple | dict) for part in parts):
                raise BadRecordError(f"{settings.label} is {value!r}, and no list of classes")
            labels = tuple(dict.fromkeys(p for part in parts if (p := str(part).strip())))
            check_listed(labels, settings.labels)
            return Text(text, pair, labels)
        check_listed((label := label_in(record, settings.label, "task.label"),), settings.labels)
        return Text(text, pair, (label,))

    def text(self, example: Text) -> str:
        """Both texts."""
        return example.text if example.pair is None else f"{example.text}\t{example.pair}"

    @property
    def labels_are_found(self) -> bool:
        """Where none are listed."""
        return not self.settings.labels

    @property
    def listed(self) -> Sequence[str]:
        """Those of `task.labels`."""
        return self.settings.labels

    def labels_of(self, example: Text) -> Iterable[str]:
        """Its classes."""
        return example.labels

    def labels(self, train: Collection[Text]) -> tuple[str, ...]:
        """Those that are listed, or those of the rows of train and dev; "number" for a regression."""
        if self.settings.target == "regression":
            return ("number",)
        found = self.settings.labels or sorted_labels(example.labels for example in train)
        least = "one" if self.settings.target == "multi-label" else "two"
        if len(found) < (1 if least == "one" else 2):
            raise too_few("classes", found, self.settings.labels, least)
        return found

    def bind(self, labels: tuple[str, ...], train: Collection[Text], encoder: Encoder) -> "BoundClassification":
        """With a head for these classes, and the weights that the training rows give them."""
        return BoundClassification(self.settings, labels, self._weights(labels, train), encoder)

    def _weights(self, labels: Sequence[str], train: Collection[Text]) -> dict[str, float]:
        if self.settings.class_weights == "none" or self.settings.target != "class":
            return dict.fromkeys(labels, 1.0)
        found = collections.Counter(example.labels for example in train)
        counts = {label: found[label,] for label in labels}
        seen = sum(count > 0 for count in counts.values())
        # As scikit-learn's "balanced": the mean over the training rows is 1.
        return {label: len(train) / (seen * count) if count else 1.0 for label, count in counts.items()}


class BoundClassification(BoundTask[Text, Judgement]):
    """A classifier of these labels."""

    architecture: str = "ForSequenceClassification"
    loss_weights: Mapping[str, float] = {"label_loss": 1.0}
    inputs: tuple[str, ...] = (*BoundTask.inputs, "cls_positions")

    def __init__(
        self, settings: ClassificationConfig, labels: tuple[str, ...], weights: Mapping[str, float], encoder: Encoder
    ):
        self.settings: ClassificationConfig = settings
        self.labels: Sequence[str] = labels
        self.encoder: Encoder = encoder
        self._weights = weights
        self._ids = {label: i for i, label in enumerate(labels)}
        if settings.positive is not None and settings.positive not in self._ids:
            raise ExamplesError(
                f"task.positive is {settings.positive!r}: it is none of the classes {', '.join(labels)}"
            )
        if settings.positive is not None and len(labels) != 2:
            raise ExamplesError(
                f"task.positive is {settings.positive!r}, and is for two classes: leave it out with {len(labels)} ({some(labels)})"
            )
        default = {"class": "accuracy", "multi-label": "macro_f1", "regression": "spearman"}[settings.target]
        self.metric: str = settings.metric or default
        hidden_layer = SEQUENCE_HIDDEN_LAYERS[encoder.family]
        self.model: nn.Module = BertForSequenceClassification(encoder.config, len(labels), hidden_layer)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all examples."""
        return {"label_loss": jnp.sum(batch["weight"])}

    def sums(self, found: Float[Array, "R S C"], batch: Batch) -> dict[str, Sums]:
        """Cross-entropy in nats, of several classes the mean of their binary ones; of a number the squared error."""
        weight, total = batch["weight"], jnp.sum(batch["weight"])
        if self.settings.target == "regression":
            return {"label_loss": (jnp.sum(weight * jnp.square(found[..., 0] - batch["number"])), total)}
        smoothing = self.settings.label_smoothing
        if self.settings.target == "multi-label":
            target = batch["targets"] * (1 - smoothing) + smoothing / 2
            binary = -target * jax.nn.log_sigmoid(found) - (1 - target) * jax.nn.log_sigmoid(-found)
            return {"label_loss": (jnp.sum(weight * binary.mean(-1)), total)}
        surprise = -jax.nn.log_softmax(found)
        own = jnp.take_along_axis(surprise, batch["label"][..., None], axis=-1)[..., 0]
        # As in torch, what is spread over the classes weighs what each class weighs.
        weights_C = jnp.array([self._weights[label] for label in self.labels], jnp.float32)
        spread = jnp.einsum("rsc,c->rs", surprise, weights_C, precision="highest") / len(self.labels)
        losses = (1 - smoothing) * weight * own + smoothing * batch["real"] * spread
        accuracy = masked_accuracy(found, batch["label"], batch["real"])
        return {"label_loss": (jnp.sum(losses), total), "accuracy": accuracy}

    def readable(self, found: Float[Array, "R S C"]) -> Outputs:
        """Probabilities, or numbers."""
        if self.settings.target == "regression":
            return Outputs({"scores": found}, {})
        probability = jax.nn.sigmoid if self.settings.target == "multi-label" else jax.nn.softmax
        return Outputs({"scores": probability(found)}, {})

    def features(self, examples: Sequence[Text]) -> list[Feature]:
        """One sequence each."""
        texts = [e.text if e.pair is None else (e.text, e.pair) for e in examples]
        encodings = encode(self.encoder, texts)
        return [
            Feature(
                n, encoding.ids, type_ids(self.encoder, encoding), values=self._target(example), cut=is_cut(encoding)
            )
            for n, (example, encoding) in enumerate(zip(examples, encodings, strict=True))
        ]

    def _target(self, example: Text) -> dict[str, float | int | list[float]]:
        if self.settings.target == "regression":
            return {"weight": 1.0, "number": example.number}
        unknown = [label for label in example.labels if label not in self._ids]
        if unknown:
            raise ExamplesError(unknown_label(unknown[0], self.labels))
        if self.settings.target == "multi-label":
            return {"weight": 1.0, "targets": [float(label in example.labels) for label in self.labels]}
        return {"weight": self._weights[example.labels[0]], "label": self._ids[example.labels[0]]}

    def decode(
        self, examples: Sequence[Text], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Judgement]:
        """The likeliest class, those above the threshold, or none for a number."""
        return [self._judgement(one["scores"]) for one in outputs]

    def _judgement(self, scores: Float[np.ndarray, " C"]) -> Judgement:
        if self.settings.target == "regression":
            return Judgement((), scores)
        if self.settings.target == "multi-label":
            chosen = np.flatnonzero(scores >= self.settings.threshold).tolist()
        else:
            chosen = [int(scores.argmax())]
        return Judgement(tuple(self.labels[i] for i in chosen), scores)

    def score(self, examples: Sequence[Text], predictions: Sequence[Judgement]) -> dict[str, float]:
        """accuracy, macro_f1, micro_f1, matthews, and f1 of two classes; pearson, spearman and mse of numbers."""
        if self.settings.target == "regression":
            gold = np.array([example.number for example in examples])
            found = np.array([float(prediction.scores[0]) for prediction in predictions])
            error = float(np.mean(np.square(gold - found)))
            return {"pearson": metrics.pearson(gold, found), "spearman": metrics.spearman(gold, found), "mse": error}
        exact = sum({*e.labels} == {*p.labels} for e, p in zip(examples, predictions, strict=True)) / len(examples)
        counts = self.counts(examples, predictions)
        macro = metrics.macro_f1(counts, unseen=self.settings.target == "multi-label")
        micro = metrics.together(counts).f1
        scores = {"accuracy": exact, "macro_f1": macro, "micro_f1": micro}
        if self.settings.target == "class":
            scores["matthews"] = metrics.matthews(self._confusion(examples, predictions))
            if len(self.labels) == 2:
                scores["f1"] = counts[self._ids[self._positive]].f1
        return scores

    @property
    def _positive(self) -> str:
        return self.labels[1] if self.settings.positive is None else self.settings.positive

    def tables(self, examples: Sequence[Text], predictions: Sequence[Judgement]) -> list[Table]:
        """Precision, recall, F1 and support of each class, and their means."""
        if self.settings.target == "regression":
            return []
        counts = self.counts(examples, predictions)
        rows = metrics.report_rows(self.labels, counts)
        rows += metrics.average_rows(counts, unseen=self.settings.target == "multi-label")
        return [Table("By class", metrics.REPORT_COLUMNS, rows)]

    def confusion(
        self, examples: Sequence[Text], predictions: Sequence[Judgement]
    ) -> tuple[Sequence[str], np.ndarray] | None:
        """Of single classes."""
        return (self.labels, self._confusion(examples, predictions)) if self.settings.target == "class" else None

    def mistakes(self, examples: Sequence[Text], predictions: Sequence[Judgement]) -> list[Mistake]:
        """Wrong classes, by -log of the right one's probability; wrong numbers, by their distance."""
        found = []
        for example, one in zip(examples, predictions, strict=True):
            text = example.text if example.pair is None else f"{example.text} | {example.pair}"
            if self.settings.target == "regression":
                predicted = float(one.scores[0])
                found.append(Mistake(text, f"{example.number:g}", f"{predicted:.3g}", abs(predicted - example.number)))
            elif {*example.labels} != {*one.labels}:
                right = np.array([label in example.labels for label in self.labels])
                chance = (
                    np.where(right, one.scores, 1 - one.scores)
                    if self.settings.target != "class"
                    else one.scores[right]
                )
                loss = -float(np.log(np.maximum(chance, 1e-12)).mean())
                found.append(Mistake(text, ", ".join(example.labels), ", ".join(one.labels), loss))
        return found

    def configuration(self) -> dict[str, Any]:
        """With transformers' name of the kind of target."""
        kinds = {
            "class": "single_label_classification",
            "multi-label": "multi_label_classification",
            "regression": "regression",
        }
        return {**super().configuration(), "problem_type": kinds[self.settings.target]}

    def counts(self, examples: Sequence[Text], predictions: Sequence[Judgement]) -> list[metrics.Counts]:
        """What was found of each class."""
        pairs = list(zip(examples, predictions, strict=True))
        return [
            metrics.Counts(
                sum(label in e.labels and label in p.labels for e, p in pairs),
                sum(label in p.labels for _, p in pairs),
                sum(label in e.labels for e, _ in pairs),
            )
            for label in self.labels
        ]

    def _confusion(self, examples: Sequence[Text], predictions: Sequence[Judgement]) -> np.ndarray:
        gold = np.array([self._ids[example.labels[0]] for example in examples])
        found = np.array([self._ids[prediction.labels[0]] for prediction in predictions])
        return metrics.confusion(gold, found, len(self.labels))
