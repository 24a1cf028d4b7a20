"""What a fine-tuned model says of texts: classes, entities, relations, answers and choices, through the tasks' own features and decoding."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from jaxbert.data.examples import Layout, evaluation_batches
from jaxbert.finetune.config import ChoiceConfig, ClassificationConfig, RelationConfig, SpanConfig, TaggingConfig
from jaxbert.predict.batches import row_lengths
from jaxbert.predict.texts import PredictError, TextError
from jaxbert.tasks import entities
from jaxbert.tasks.choice import BoundMultipleChoice, Choices, joined
from jaxbert.tasks.classification import BoundClassification, Text
from jaxbert.tasks.pairs import Pair, with_spans, without_tags
from jaxbert.tasks.relation import BoundRelation
from jaxbert.tasks.sentences import Sentence
from jaxbert.tasks.span import BoundSpanAnswering, Question
from jaxbert.tasks.tagging import BoundTagging
from jaxbert.tasks.task import NO_ANSWER, TASK, BoundTask, Encoder
from jaxbert.tasks.words import words_of
from jaxbert.weights.load import Loaded

R = TypeVar("R")


class Entity(TypedDict):
    """An entity in a text, with the keys of transformers' token-classification pipeline."""

    entity_group: str
    score: float
    """Mean probability of the tags that were read in it."""
    word: str
    start: int
    end: int
    """In characters of the text."""


class Cut(NamedTuple, Generic[R]):
    """Results, one for each text, and how many of the texts were cut."""

    results: list[R]
    cut: int


class FinetunedModel:
    """A model with the head of a task. Each method wants the head that its task trains."""

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, max_length: int):
        self._loaded = loaded
        self._encoder = Encoder(loaded.config, loaded.family, tokenizer, max_length)
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._rows, self._devices = NamedSharding(mesh, PartitionSpec("data")), mesh.size
        self._params = jax.device_put(loaded.params, NamedSharding(mesh, PartitionSpec()))
        self.labels: tuple[str, ...] = loaded.label_names
        """Names of the classes, by their ids."""
        if twice := [label for label, count in collections.Counter(self.labels).items() if count > 1]:
            raise PredictError(
                f"{loaded.source}: two of its classes are named {twice[0]!r}: give each a name of its own in id2label"
            )
        self._programs: dict[type, Any] = {}
        settings = loaded.extra.get(TASK)
        self._settings: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> Cut[dict[str, Any]]:
        """Of each text or pair: the label (or labels, or number) and the scores of all."""
        problem = str(self._loaded.extra.get("problem_type"))
        target = {"multi_label_classification": "multi-label", "regression": "regression"}.get(problem, "class")
        target = "regression" if len(self.labels) == 1 else target
        if target == "regression" and len(self.labels) > 1:
            raise PredictError(
                f"{self._loaded.source}: gives {len(self.labels)} numbers for a text, and classify gives one"
            )
        task = BoundClassification(
            ClassificationConfig(target=target, **self._kept("threshold")),  # pyright: ignore[reportArgumentType]
            self.labels,
            dict.fromkeys(self.labels, 1.0),
            self._encoder,
        )
        # What the labels are is asked here: any will do.
        examples = [
            Text(text, None, self.labels[:1], 0.0) if isinstance(text, str) else Text(*text, self.labels[:1], 0.0)
            for text in texts
        ]
        found = []
        predicted = self._predicted(task, examples)
        for one in predicted.results:
            scores = {label: float(score) for label, score in zip(self.labels, one.scores, strict=True)}
            if target == "regression":
                found.append({"number": float(one.scores[0])})
            elif target == "multi-label":
                found.append({"labels": list(one.labels), "scores": scores})
            else:
                found.append({"label": one.labels[0], "score": scores[one.labels[0]], "scores": scores})
        return Cut(found, predicted.cut)

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each text; where words have tags of their own, every word with its tag."""
        words_alone = not entities.are_of_entities(self.labels)
        scheme = "words" if words_alone else "bioes" if any(label.startswith("E-") for label in self.labels) else "iob2"
        if not words_alone and entities.OUTSIDE not in self.labels:
            raise PredictError(
                f"{self._loaded.source}: its labels are entities' ({self.labels[0]}, ...) and none is {entities.OUTSIDE}: name it in id2label"
            )
        task = BoundTagging(TaggingConfig(scheme=scheme), self.labels, self._encoder)
        places = [words_of(text) for text in texts]
        # What the tags are is asked here: any will do.
        some = self.labels[0] if words_alone else entities.OUTSIDE
        examples = [
            Sentence(text, words, (some,) * len(words), (), ()) for text, words in zip(texts, places, strict=True)
        ]
        results = []
        for text, words, one in zip(texts, places, self._predicted(task, examples).results, strict=True):
            spans = [(*place, tag) for place, tag in zip(words, one.tags, strict=True)] if words_alone else one.entities
            scores = one.word_scores if words_alone else one.scores
            results.append(
                [
                    Entity(entity_group=kind, score=score, word=text[start:end], start=start, end=end)
                    for (start, end, kind), score in zip(spans, scores, strict=True)
                ]
            )
        return results

    def relate(self, texts: Sequence[str], spans: Sequence[Any] | None) -> Cut[dict[str, Any]]:
        """The relation of two entities of each text, and the scores of all. `spans` None: they are marked as <e1>..</e1> and <e2>..</e2>."""
        task = BoundRelation(RelationConfig(), self.labels, self._encoder)
        examples, faults = [], {}
        for number, text in enumerate(texts):
            try:
                found = without_tags(text) if spans is None else with_spans(text, spans[number])
                examples.append(Pair(*found, self.labels[0]))
            except ValueError as error:
                mark = ": mark its entities as <e1>..</e1> and <e2>..</e2>, or give their spans"
                faults[number] = f"{error}{mark}" if spans is None else f"its spans {error}"
        if faults:
            raise TextError(faults)
        predicted = self._predicted(task, examples)
        results = [
            {
                "label": one.label,
                "score": float(one.scores.max()),
                "scores": {label: float(score) for label, score in zip(self.labels, one.scores, strict=True)},
            }
            for one in predicted.results
        ]
        return Cut(results, predicted.cut)

    def answer(self, questions: Sequence[str], contexts: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """The best answers to each question, the likeliest first, with the keys of transformers' question-answering pipeline.

        An empty "answer" is none at all, from models that may say so.
        """
        settings = SpanConfig(
            **self._kept("stride", "max_question_length", "max_answer_length", "n_best", "null_threshold")
        )
        settings = dataclasses.replace(settings, n_best=max(settings.n_best, top_k))
        may_be_empty = self._loaded.extra.get(NO_ANSWER) is True
        task = BoundSpanAnswering(settings, self.labels, self._encoder, may_be_empty)
        examples = [Question("", question, context, ()) for question, context in zip(questions, contexts, strict=True)]
        results = []
        for one in self._predicted(task, examples).results:
            others = [candidate for candidate in one.candidates if candidate != one.answer]
            results.append(
                [
                    {"answer": found.text, "score": found.score, "start": found.start, "end": found.end}
                    for found in (one.answer, *others)[:top_k]
                ]
            )
        return results

    def choose(
        self, contexts: Sequence[str], choices: Sequence[Sequence[str]], questions: Sequence[str | None]
    ) -> Cut[dict[str, Any]]:
        """Of each context: the best choice, and the scores of all."""
        task = BoundMultipleChoice(ChoiceConfig(), (), self._encoder)
        examples = [
            Choices(context, joined(question, some), 0)
            for context, some, question in zip(contexts, choices, questions, strict=True)
        ]
        predicted = self._predicted(task, examples)
        results = [
            {"choice": one.choice, "score": float(one.scores[one.choice]), "scores": one.scores.tolist()}
            for one in predicted.results
        ]
        return Cut(results, predicted.cut)

    def _kept(self, *names: str) -> dict[str, Any]:
        return {name: self._settings[name] for name in names if name in self._settings}

    def _predicted(self, task: BoundTask[Any, Any], examples: Sequence[Any]) -> Cut[Any]:
        if not examples:
            return Cut([], 0)
        program = self._programs.setdefault(type(task), jax.jit(task.outputs))
        features = task.features(examples)
        longest = max(len(feature.input_ids) for feature in features)
        # Few lengths of rows are compiled.
        length = next(one for one in row_lengths(self._encoder.max_length) if one >= longest)
        found: list[Mapping[str, np.ndarray]] = [{} for _ in features]
        for placed in evaluation_batches(features, Layout(length, self._devices)):
            _, outputs = program(self._params, jax.device_put(placed.arrays, self._rows))
            for feature, values in placed.outputs_of(features, jax.device_get(outputs)):
                found[feature] = values
        return Cut(task.decode(examples, features, found), len({one.example for one in features if one.cut}))
