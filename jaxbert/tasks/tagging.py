"""Tagging: a tag for each word, read from the hidden state of its first piece (Devlin et al. 2018, section 5.3)."""

import bisect
import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Encoding

from jaxbert.data.features import Feature
from jaxbert.data.records import ExamplesError, Record
from jaxbert.finetune.config import TaggingConfig
from jaxbert.model.classifiers import BertForTokenClassification
from jaxbert.tasks import entities, metrics
from jaxbert.tasks.entities import Span
from jaxbert.tasks.sentences import Sentence, in_characters, sentence_in, tag_scheme
from jaxbert.tasks.task import (
    BoundTask,
    Encoder,
    Mistake,
    Outputs,
    Table,
    Task,
    check_listed,
    encode,
    sorted_labels,
    type_ids,
    unknown_label,
)
from jaxbert.tasks.words import first_pieces
from jaxbert.train.losses import Sums, masked_accuracy, masked_cross_entropy
from jaxbert.train.state import Batch

# Share of a window that the next one repeats.
_OVERLAP = 4


@dataclasses.dataclass(frozen=True)
class Tagged:
    """What the model says of a sentence."""

    tags: tuple[str, ...]
    entities: tuple[Span, ...]
    """In characters."""
    scores: tuple[float, ...]
    """Of each entity: the mean probability of the tags that were read in it."""
    loss: float
    """Mean -log probability of the right tags, in nats."""
    word_scores: tuple[float, ...] = ()
    """Of each word: the probability of its tag."""


class Tagging(Task[Sentence, Tagged]):
    """See `TaggingConfig`."""

    def __init__(self, settings: TaggingConfig):
        self.settings: TaggingConfig = settings

    def parse(self, record: Record) -> Sentence:
        """A sentence of CoNLL's columns, or a text with its spans."""
        sentence = sentence_in(record, self.settings)
        check_listed(self.labels_of(sentence), self.settings.labels)
        return sentence

    def text(self, example: Sentence) -> str:
        """The sentence."""
        return example.text

    @property
    def labels_are_found(self) -> bool:
        """Where none are listed."""
        return not self.settings.labels

    @property
    def listed(self) -> Sequence[str]:
        """Those of `task.labels`."""
        return self.settings.labels

    def labels_of(self, example: Sentence) -> Iterable[str]:
        """The types of its entities, or its tags."""
        return example.tags if self.settings.scheme == "words" else (kind for _, _, kind in example.entities)

    def oddities(self, example: Sentence) -> Iterable[str]:
        """Entities that a tag for each word cannot say."""
        if self.settings.scheme == "words":
            return
        if self.settings.scheme == "iob2" and example.entities != example.strict:
            yield "have a tag that IOB2 has not there, as an I- that begins an entity: task.scheme iob1 reads files where that is meant"
        if {*example.entities} != {*in_characters(entities.spans(example.tags), example.words)}:
            yield "have an entity that is no run of whole words, or overlaps another one: it counts as right, and cannot be found"

    def labels(self, train: Collection[Sentence]) -> tuple[str, ...]:
        """The tags: those of the types that are listed, or that the sentences of train and dev have."""
        types = self.settings.labels or sorted_labels(self.labels_of(example) for example in train)
        if not types:
            raise ExamplesError(
                "data.train and data.dev have no entities: check task.tag-column, task.spans and task.scheme"
            )
        if self.settings.scheme == "words":
            return types
        return entities.tag_set(types, tag_scheme(self.settings))

    def bind(self, labels: tuple[str, ...], train: Collection[Sentence], encoder: Encoder) -> "BoundTagging":
        """With a head for these tags."""
        return BoundTagging(self.settings, labels, encoder)


class BoundTagging(BoundTask[Sentence, Tagged]):
    """A tagger of these tags."""

    architecture: str = "ForTokenClassification"
    loss_weights: Mapping[str, float] = {"tag_loss": 1.0}

    def __init__(self, settings: TaggingConfig, labels: tuple[str, ...], encoder: Encoder):
        self.settings: TaggingConfig = settings
        self.labels: Sequence[str] = labels
        self.encoder: Encoder = encoder
        self._ids = {label: i for i, label in enumerate(labels)}
        self._words = settings.scheme == "words"
        free = np.ones((len(labels), len(labels)), bool), np.ones(len(labels), bool), np.ones(len(labels), bool)
        self._allowed = free if self._words else entities.transitions(labels)
        self.metric: str = settings.metric or ("accuracy" if self._words else "f1")
        self.model: nn.Module = BertForTokenClassification(encoder.config, len(labels))

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all words."""
        return {"tag_loss": jnp.sum(batch["tag_weight"])}

    def sums(self, found: Float[Array, "R L C"], batch: Batch) -> dict[str, Sums]:
        """Cross-entropy in nats, and the share of words with the right tag."""
        targets = (found, batch["tag"], batch["tag_weight"])
        return {"tag_loss": masked_cross_entropy(*targets), "accuracy": masked_accuracy(*targets)}

    def readable(self, found: Float[Array, "R L C"]) -> Outputs:
        """Log-probabilities."""
        return Outputs({}, {"log_probabilities": jax.nn.log_softmax(found)})

    def features(self, examples: Sequence[Sentence]) -> list[Feature]:
        """A sequence each; of sentences that are too long, windows that overlap."""
        encodings = encode(self.encoder, [example.text for example in examples], self.encoder.max_length // _OVERLAP)
        return [
            feature
            for n, (example, encoding) in enumerate(zip(examples, encodings, strict=True))
            for feature in self._windows(n, example, (encoding, *encoding.overflowing))
        ]

    def _windows(self, number: int, example: Sentence, encodings: Sequence[Encoding]) -> Iterator[Feature]:
        pieces = [first_pieces(encoding, example.words) for encoding in encodings]
        tag_of = self._tags_of(example, {word for word_of, _ in pieces for word in word_of.values()})
        for encoding, (word_of, within) in zip(encodings, pieces, strict=True):
            tags, weights = [0] * len(encoding), [0.0] * len(encoding)
            for place, word in word_of.items():
                if tag_of[word] not in self._ids:
                    raise ExamplesError(unknown_label(tag_of[word], self.labels))
                tags[place], weights[place] = self._ids[tag_of[word]], 1.0
            tokens, host = {"tag": tags, "tag_weight": weights}, {"word_of": word_of, "within": within}
            yield Feature(number, encoding.ids, type_ids(self.encoder, encoding), tokens, host=host)

    def _tags_of(self, example: Sentence, read: Collection[int]) -> dict[int, str]:
        """Tags of the words that are read, as if there were no others: an entity begins with one of them, and none splits it."""
        words = sorted(read)
        if self._words:
            return {word: example.tags[word] for word in words}
        found = [
            Span(bisect.bisect_left(words, start), bisect.bisect_left(words, end), kind)
            for start, end, kind in entities.spans(example.tags)
        ]
        tags = entities.tags([one for one in found if one.start < one.end], len(words), tag_scheme(self.settings))
        return dict(zip(words, tags, strict=True))

    def decode(
        self, examples: Sequence[Sentence], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Tagged]:
        """The likeliest legal tags. A word is read in the window where it has most around it."""
        best: list[dict[int, tuple[int, np.ndarray]]] = [{} for _ in examples]
        for feature, found in zip(features, outputs, strict=True):
            for place, word in feature.host["word_of"].items():
                around = min(place, len(feature.input_ids) - 1 - place)
                known = best[feature.example].get(word)
                if known is None or around > known[0]:
                    best[feature.example][word] = around, found["log_probabilities"][place]
        within: list[dict[int, int]] = [{} for _ in examples]
        for feature in features:
            within[feature.example] |= feature.host["within"]
        return [self._tagged(*one) for one in zip(examples, best, within, strict=True)]

    def _tagged(
        self, example: Sentence, rows: Mapping[int, tuple[int, np.ndarray]], within: Mapping[int, int]
    ) -> Tagged:
        read, words = sorted(rows), range(len(example.words))
        scores = np.array([rows[n][1] for n in read]).reshape(-1, len(self.labels)).astype(np.float64)
        path = entities.best_path(scores, self._allowed)
        chances = np.exp(scores[np.arange(len(read)), path]) if path else np.zeros(0)
        gold = [self._ids.get(tag, 0) for tag in self._tags_of(example, read).values()]
        loss = -float(scores[np.arange(len(read)), gold].mean()) if gold else 0.0
        short = [self.labels[i] for i in path]
        # A word that is nothing to the tokenizer is outside, or (of parts of speech) whatever comes first.
        unread = entities.OUTSIDE if entities.OUTSIDE in self._ids else self.labels[0]
        found = {n: (tag, chance) for n, tag, chance in zip(read, short, chances.tolist(), strict=True)}
        # What is within another word's piece goes on with what that word is.
        each = [found.get(within.get(n, n), (unread, 1.0)) for n in words]
        word_scores = tuple(chance for _, chance in each)
        if self._words:
            return Tagged(tuple(tag for tag, _ in each), (), (), loss, word_scores)
        # Only what is read begins, goes on with or ends an entity: what the tokenizer leaves out does not split one.
        last, whole = {n: n for n in read} | {within[n]: n for n in sorted(within)}, entities.spans(short)
        over = [Span(read[start], last[read[end - 1]] + 1, kind) for start, end, kind in whole]
        means = tuple(float(chances[start:end].mean()) for start, end, _ in whole)
        tags = tuple(entities.tags(over, len(words), tag_scheme(self.settings)))
        return Tagged(tags, in_characters(over, example.words), means, loss, word_scores)

    def score(self, examples: Sequence[Sentence], predictions: Sequence[Tagged]) -> dict[str, float]:
        """precision, recall and f1 of whole entities (micro, as conlleval), strict_f1, macro_f1 over types, accuracy of words."""
        pairs = [pair for e, p in zip(examples, predictions, strict=True) for pair in zip(e.tags, p.tags, strict=True)]
        accuracy = sum(gold == tag for gold, tag in pairs) / len(pairs) if pairs else math.nan
        if self._words:
            return {"accuracy": accuracy}
        counts = self._counts(examples, predictions)
        whole = metrics.together(list(counts.values()))
        strict = metrics.together(list(self._counts(examples, predictions, strict=True).values()))
        return {
            "precision": whole.precision,
            "recall": whole.recall,
            "f1": whole.f1,
            "strict_f1": strict.f1,
            "macro_f1": metrics.macro_f1(list(counts.values())),
            "accuracy": accuracy,
        }

    def _counts(
        self, examples: Sequence[Sentence], predictions: Sequence[Tagged], strict: bool = False
    ) -> dict[str, metrics.Counts]:
        correct, predicted, gold = ({} for _ in range(3))
        for example, prediction in zip(examples, predictions, strict=True):
            right, found = {*(example.strict if strict else example.entities)}, {*prediction.entities}
            for table, some in ((correct, right & found), (predicted, found), (gold, right)):
                for span in some:
                    table[span.type] = table.get(span.type, 0) + 1
        names = sorted(predicted.keys() | gold.keys())
        return {name: metrics.Counts(*(table.get(name, 0) for table in (correct, predicted, gold))) for name in names}

    def tables(self, examples: Sequence[Sentence], predictions: Sequence[Tagged]) -> list[Table]:
        """Entities by type in both readings, and words by tag."""
        table = self._confusion(examples, predictions)
        words = metrics.report_rows(self.labels, metrics.class_counts(table))
        by_word = Table("Words, by tag", metrics.REPORT_COLUMNS, words)
        if self._words:
            return [by_word]
        by_type = []
        for reading in ("conlleval", "strict"):
            counts = self._counts(examples, predictions, strict=reading == "strict")
            rows = metrics.report_rows(list(counts), list(counts.values()))
            rows += metrics.report_rows(["all"], [metrics.together(list(counts.values()))])
            by_type.append(Table(f"Whole entities, by type ({reading})", metrics.REPORT_COLUMNS, rows))
        return [*by_type, by_word]

    def confusion(
        self, examples: Sequence[Sentence], predictions: Sequence[Tagged]
    ) -> tuple[Sequence[str], np.ndarray]:
        """Of words and tags."""
        return self.labels, self._confusion(examples, predictions)

    def _confusion(self, examples: Sequence[Sentence], predictions: Sequence[Tagged]) -> np.ndarray:
        gold = [self._ids[tag] for example in examples for tag in example.tags]
        found = [self._ids[tag] for prediction in predictions for tag in prediction.tags]
        return metrics.confusion(np.array(gold, int), np.array(found, int), len(self.labels))

    def mistakes(self, examples: Sequence[Sentence], predictions: Sequence[Tagged]) -> list[Mistake]:
        """Sentences with a wrong entity, or a wrong tag."""
        found = []
        for example, prediction in zip(examples, predictions, strict=True):
            if self._words and example.tags != prediction.tags:
                found.append(Mistake(example.text, " ".join(example.tags), " ".join(prediction.tags), prediction.loss))
            elif {*example.entities} != {*prediction.entities}:
                right, wrong = (
                    ", ".join(f"{example.text[s:e]} ({kind})" for s, e, kind in some) or "-"
                    for some in (example.entities, prediction.entities)
                )
                found.append(Mistake(example.text, right, wrong, prediction.loss))
        return found
