"""Multiple choice: which of several continuations or answers is the right one (Devlin et al. 2018, section 4.4)."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, Record
from jaxbert.finetune.config import ChoiceConfig
from jaxbert.model.classifiers import BertForMultipleChoice
from jaxbert.model.heads import CHOICE_HIDDEN_LAYERS
from jaxbert.tasks.task import (
    BoundTask,
    Encoder,
    Mistake,
    Outputs,
    Task,
    column,
    encode,
    is_cut,
    text_in,
    type_ids,
)
from jaxbert.train.losses import Sums
from jaxbert.train.state import Batch

# Finite, so that differences with it are.
_NOTHING = -1e9


@dataclasses.dataclass(frozen=True)
class Choices:
    """What all choices share, the choices, and which one is right."""

    context: str
    choices: tuple[str, ...]
    """Each with the question before it."""
    right: int
    """From 0."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What the model says of the choices."""

    choice: int
    scores: Float[np.ndarray, " n"]
    """Probability of each choice."""


class MultipleChoice(Task[Choices, Chosen]):
    """See `ChoiceConfig`."""

    def __init__(self, settings: ChoiceConfig):
        self.settings: ChoiceConfig = settings

    def parse(self, record: Record) -> Choices:
        """A row of a table."""
        settings = self.settings
        context = text_in(record, settings.context, "task.context")
        question = text_in(record, settings.question, "task.question") if settings.question is not None else None
        choices = self._choices(record)
        return Choices(context, joined(question, choices), self._right(record, len(choices)))

    def _choices(self, record: Record) -> Sequence[str]:
        name, *others = self.settings.choices
        if others:
            return [text_in(record, one, "task.choices") for one in (name, *others)]
        found = column(record, name, "task.choices")
        if not isinstance(found, list | tuple) or not all(isinstance(one, str) and one.strip() for one in found):
            raise BadRecordError(f"{name} is {found!r}, and no list of texts")
        if len(found) < 2:
            raise BadRecordError(f"{name} has {len(found)} choices: there must be at least two")
        return found

    def _right(self, record: Record, count: int) -> int:
        name, first = self.settings.label, self.settings.first_number
        value = column(record, name, "task.label")
        text = str(value).strip()
        if len(text) == 1 and text.isascii() and text.isalpha():
            number = ord(text.upper()) - ord("A")
        else:
            try:
                number = int(text) - first
            except ValueError:
                raise BadRecordError(f"{name} is {value!r}, and neither a number nor a letter") from None
        if not 0 <= number < count:
            raise BadRecordError(f"{name} is {value!r}, and the {count} choices are {first} to {first + count - 1}")
        return number

    def text(self, example: Choices) -> str:
        """All of it."""
        return "\t".join((example.context, *example.choices))

    def labels_of(self, example: Choices) -> Iterable[str]:
        """The place of the right one."""
        return (str(example.right + self.settings.first_number),)

    def labels(self, train: Collection[Choices]) -> tuple[str, ...]:
        """The places that there are."""
        first = self.settings.first_number
        return tuple(str(n + first) for n in range(max((len(example.choices) for example in train), default=0)))

    def bind(self, labels: tuple[str, ...], train: Collection[Choices], encoder: Encoder) -> "BoundMultipleChoice":
        """With a head."""
        return BoundMultipleChoice(self.settings, labels, encoder)


class BoundMultipleChoice(BoundTask[Choices, Chosen]):
    """A number for each choice, compared over the choices of an example, however many those are."""

    architecture: str = "ForMultipleChoice"
    labels_are_outputs: bool = False
    loss_weights: Mapping[str, float] = {"label_loss": 1.0}
    inputs: tuple[str, ...] = (*BoundTask.inputs, "cls_positions")
    together: bool = True

    def __init__(self, settings: ChoiceConfig, labels: tuple[str, ...], encoder: Encoder):
        self.settings: ChoiceConfig = settings
        self.labels: Sequence[str] = labels
        self.encoder: Encoder = encoder
        self.metric: str = settings.metric
        self.model: nn.Module = BertForMultipleChoice(encoder.config, CHOICE_HIDDEN_LAYERS[encoder.family])

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all examples: each has one right choice."""
        return {"label_loss": jnp.sum(batch["real"] * batch["right"])}

    def sums(self, found: Float[Array, "R S"], batch: Batch) -> dict[str, Sums]:
        """Cross-entropy over the choices of each example, in nats."""
        real, groups = batch["real"] > 0, batch["groups"].reshape(-1)
        logits, right = jnp.where(real, found, _NOTHING).reshape(-1), (batch["real"] * batch["right"]).reshape(-1)
        log_shares, best = compared(logits, groups, real.reshape(-1))
        total = jnp.sum(right)
        return {"label_loss": (-jnp.sum(right * log_shares), total), "accuracy": (jnp.sum(right * best), total)}

    def readable(self, found: Float[Array, "R S"]) -> Outputs:
        """The numbers."""
        return Outputs({"logit": found}, {})

    def features(self, examples: Sequence[Choices]) -> list[Feature]:
        """A sequence for each choice: the context, and the choice."""
        encodings = encode(self.encoder, [(one.context, choice) for one in examples for choice in one.choices])
        places = [(n, choice) for n, one in enumerate(examples) for choice in range(len(one.choices))]
        return [
            Feature(
                n,
                one.ids,
                type_ids(self.encoder, one),
                values={"right": int(choice == examples[n].right)},
                cut=is_cut(one),
            )
            for (n, choice), one in zip(places, encodings, strict=True)
        ]

    def decode(
        self, examples: Sequence[Choices], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Chosen]:
        """The best choice of each example."""
        logits: list[list[float]] = [[] for _ in examples]
        for feature, one in zip(features, outputs, strict=True):
            logits[feature.example].append(float(one["logit"]))
        return [_chosen(np.array(numbers)) for numbers in logits]

    def score(self, examples: Sequence[Choices], predictions: Sequence[Chosen]) -> dict[str, float]:
        """accuracy, and the loss."""
        pairs = list(zip(examples, predictions, strict=True))
        losses = [-float(np.log(max(one.scores[example.right], 1e-12))) for example, one in pairs]
        right = sum(one.choice == example.right for example, one in pairs)
        return {"loss": sum(losses) / len(losses), "accuracy": right / len(pairs)}

    def mistakes(self, examples: Sequence[Choices], predictions: Sequence[Chosen]) -> list[Mistake]:
        """Wrong choices, by -log of the right one's probability."""
        return [
            Mistake(
                example.context,
                example.choices[example.right],
                example.choices[one.choice],
                -float(np.log(max(one.scores[example.right], 1e-12))),
            )
            for example, one in zip(examples, predictions, strict=True)
            if one.choice != example.right
        ]

    def configuration(self) -> dict[str, Any]:
        """Choices have no names."""
        return {}


def compared(
    logits: Float[Array, " n"], groups: Int[Array, " n"], real: Bool[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log softmax of each logit among those of its group, and 1 for the largest one of each group."""
    n = len(logits)
    # What is no sequence is in a group of its own.
    groups = jnp.where(real, groups, n)
    largest = jax.ops.segment_max(logits, groups, n + 1)[groups]
    shares = jnp.exp(logits - jax.lax.stop_gradient(largest))
    total = jax.ops.segment_sum(shares, groups, n + 1)[groups]
    return logits - jax.lax.stop_gradient(largest) - jnp.log(total), (logits == largest).astype(jnp.float32)


def joined(question: str | None, choices: Sequence[str]) -> tuple[str, ...]:
    """Each choice behind its question."""
    return tuple(choices if question is None else (f"{question} {choice}" for choice in choices))


def _chosen(logits: Float[np.ndarray, " n"]) -> Chosen:
    shares = np.exp(logits - logits.max())
    return Chosen(int(logits.argmax()), shares / shares.sum())
