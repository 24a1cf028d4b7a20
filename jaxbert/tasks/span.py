"""Span question answering: where in its context the answer to a question stands (Devlin et al. 2018, sections 4.2 and 4.3)."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tokenizers import Encoding, Tokenizer

from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, Record
from jaxbert.finetune.config import SpanConfig
from jaxbert.model.classifiers import BertForQuestionAnswering, SpanOutput
from jaxbert.tasks import answers
from jaxbert.tasks.task import NO_ANSWER, BoundTask, Encoder, Mistake, Outputs, Task, missing, text_in, type_ids
from jaxbert.train.losses import Sums, masked_cross_entropy
from jaxbert.train.state import Batch

# Finite, so that sums with it stay finite.
_NOT_MINE = -1e9
_CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its context, and the answers that are right."""

    identity: str
    question: str
    context: str
    answers: tuple[tuple[str, int | None], ...]
    """(text, start in characters; None where it does not stand in the context, which some do not to the letter). Empty: the context
    has no answer."""
    moved: bool = dataclasses.field(default=False, repr=False)
    """No answer stands where its file says, and one of them elsewhere."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A piece of the context."""

    text: str
    """Empty: no answer."""
    start: int
    end: int
    """In characters of the context."""
    score: float
    """Probability among the candidates."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """What the model says of a question."""

    answer: Answer
    candidates: tuple[Answer, ...]
    """The best ones, without an empty one."""
    null_margin: float
    """By how much the score of no answer is above the best answer's."""


class SpanAnswering(Task[Question, Answered]):
    """See `SpanConfig`."""

    def __init__(self, settings: SpanConfig):
        self.settings: SpanConfig = settings

    def parse(self, record: Record) -> Question:
        """A question of SQuAD's JSON, or a row with "question", "context" and "answers", in one of the forms of `_listed`."""
        needed = ["question", "context"] + ["answers"] * (not record.values.get("impossible", False))
        for name in needed:
            if name not in record.values:
                there = ", ".join(map(repr, record.values))
                raise missing(
                    record, name, f"name the columns 'question', 'context' and 'answers', which are now {there}"
                )
        question = text_in(record, "question", "the columns").strip()
        context = text_in(record, "context", "the columns")
        found, places = [], []
        for answer in _listed(record.values["answers"]) if "answers" in needed else ():
            try:
                text, start = answer
            except (TypeError, ValueError):
                raise BadRecordError(f"{answer!r} is no answer: (text, start) is one") from None
            if not isinstance(text, str) or not text.strip() or type(start) is not int:
                raise BadRecordError(f"{answer!r} is no answer: (text, start) is one")
            found.append((text, _place(context, text, start)))
            places.append(start)
        moved = all(place != start for (_, place), start in zip(found, places, strict=True))
        moved &= any(place is not None for _, place in found)
        identity = str(record.values.get("id", record.place))
        return Question(identity, question, context, tuple(dict.fromkeys(found)), moved)

    def text(self, example: Question) -> str:
        """Question and context."""
        return f"{example.question}\t{example.context}"

    def labels_of(self, example: Question) -> Iterable[str]:
        """None: answers are no labels."""
        return ()

    def unanswered(self, examples: Collection[Question]) -> int:
        """Questions that their context has no answer to (SQuAD 2.0)."""
        return sum(not example.answers for example in examples)

    def oddities(self, example: Question) -> Iterable[str]:
        """Answers that are not where they are said to be."""
        if example.moved:
            yield "have no answer that begins where their file says: it is taken where it stands"
        if example.answers and not _is_found(example):
            yield "have no answer that stands in their context, or stands there once: they are scored, and not learnt"

    def labels(self, train: Collection[Question]) -> tuple[str, ...]:
        """transformers' names of the two logits."""
        return ("LABEL_0", "LABEL_1")

    def bind(self, labels: tuple[str, ...], train: Collection[Question], encoder: Encoder) -> "BoundSpanAnswering":
        """With a head for spans. No answer is possible where a training question has none."""
        answered = chinese = 0
        for one in train:
            answered += bool(one.answers)
            chinese += any(_CHINESE.search(text) for text, _ in one.answers)
        warnings = []
        if not self.settings.characters and 2 * chinese > answered:
            warnings.append(
                "most answers of data.train are Chinese, and are scored by English words, as SQuAD's are: set task.characters "
                "(--task.characters) for the scores of CMRC"
            )
        return BoundSpanAnswering(self.settings, labels, encoder, answered < len(train), warnings)


class BoundSpanAnswering(BoundTask[Question, Answered]):
    """A finder of answers."""

    architecture: str = "ForQuestionAnswering"
    loss_weights: Mapping[str, float] = {"span_loss": 1.0}
    labels_are_outputs: bool = False
    ranked_by: str = "probability"

    def __init__(
        self,
        settings: SpanConfig,
        labels: tuple[str, ...],
        encoder: Encoder,
        may_be_empty: bool,
        warnings: Sequence[str] = (),
    ):
        self.settings: SpanConfig = settings
        self.labels: Sequence[str] = labels
        self.encoder: Encoder = encoder
        self._may_be_empty = may_be_empty
        self.metric: str = settings.metric
        # A model that reads little has short windows.
        self.question_length: int = min(settings.max_question_length, encoder.max_length // 2)
        room = encoder.max_length - self.question_length - encoder.tokenizer.num_special_tokens_to_add(True)
        self.stride: int = settings.stride if settings.stride < room else max(room // 2, 0)
        self.warnings: Sequence[str] = [
            *warnings,
            *(
                f"task.{name} is {asked}, which leaves no room in sequences of {encoder.max_length} tokens: it is {value}"
                for name, asked, value in (
                    ("max_question_length", settings.max_question_length, self.question_length),
                    ("stride", settings.stride, self.stride),
                )
                if value != asked
            ),
        ]
        self.model: nn.Module = BertForQuestionAnswering(encoder.config)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all windows."""
        return {"span_loss": jnp.sum(batch["weight"])}

    def sums(self, found: SpanOutput, batch: Batch) -> dict[str, Sums]:
        """The mean of the cross-entropies of start and end over the tokens of a sequence, in nats."""
        slots = batch["real"].shape[1]
        mine_RxSxL = batch["sequence_ids"][:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
        losses = [
            masked_cross_entropy(
                jnp.where(mine_RxSxL, logits_RxL[:, None, :], _NOT_MINE), batch["span"][..., side], batch["weight"]
            )
            for side, logits_RxL in enumerate(found)
        ]
        return {"span_loss": ((losses[0][0] + losses[1][0]) / 2, losses[0][1])}

    def readable(self, found: SpanOutput) -> Outputs:
        """Logits."""
        return Outputs({}, {"start": found.start_logits_BxL, "end": found.end_logits_BxL})

    def features(self, examples: Sequence[Question]) -> list[Feature]:
        """Windows of each context, the question before each of them."""
        questions = self._cut([example.question for example in examples])
        tokenizer = Tokenizer.from_str(self.encoder.tokenizer.to_str())
        tokenizer.enable_truncation(self.encoder.max_length, stride=self.stride, strategy="only_second")
        pairs = [(question, example.context) for question, example in zip(questions, examples, strict=True)]
        return [
            self._feature(n, example, window)
            for n, (example, encoding) in enumerate(zip(examples, tokenizer.encode_batch(pairs), strict=True))
            for window in (encoding, *encoding.overflowing)
        ]

    def _cut(self, questions: Sequence[str]) -> list[str]:
        most = self.question_length
        encodings = self.encoder.tokenizer.encode_batch(list(questions), add_special_tokens=False)
        return [
            question if len(encoding) <= most else question[: encoding.offsets[most - 1][1]]
            for question, encoding in zip(questions, encodings, strict=True)
        ]

    def _feature(self, number: int, example: Question, encoding: Encoding) -> Feature:
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        offsets = np.array(encoding.offsets, np.int64)
        span = _window_span(example, inside, offsets)
        # An answer that cannot be found is no reason to learn that there is none.
        found = not example.answers or _is_found(example)
        return Feature(
            number,
            encoding.ids,
            type_ids(self.encoder, encoding),
            values={"weight": float(found)},
            positions={"span": span},
            host={"inside": inside, "offsets": offsets},
        )

    def decode(
        self, examples: Sequence[Question], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Answered]:
        """The best span over all windows of a context; none where no answer is possible and better by the threshold."""
        found: list[dict[tuple[int, int], float]] = [{} for _ in examples]
        empty = [math.inf] * len(examples)
        for feature, one in zip(features, outputs, strict=True):
            # The first token stands for no answer in this window; there is none at all only where every window says so.
            empty[feature.example] = min(empty[feature.example], float(one["start"][0] + one["end"][0]))
            for span, score in self._spans(feature, one):
                known = found[feature.example].get(span)
                if known is None or score > known:
                    found[feature.example][span] = score
        return [self._answered(*one) for one in zip(examples, found, empty, strict=True)]

    def _spans(self, feature: Feature, one: Mapping[str, np.ndarray]) -> Iterable[tuple[tuple[int, int], float]]:
        """(start, end) in characters, and score, of the best spans of a window."""
        inside, offsets = feature.host["inside"], feature.host["offsets"]
        places = np.flatnonzero(inside & (offsets[:, 1] > offsets[:, 0]))
        n = self.settings.n_best
        starts = places[np.argsort(-one["start"][places], kind="stable")[:n]].tolist()
        ends = places[np.argsort(-one["end"][places], kind="stable")[:n]].tolist()
        for start in starts:
            for end in ends:
                if start <= end < start + self.settings.max_answer_length:
                    span = int(offsets[start][0]), int(offsets[end][1])
                    yield span, float(one["start"][start] + one["end"][end])

    def _answered(self, example: Question, found: Mapping[tuple[int, int], float], empty: float) -> Answered:
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[: self.settings.n_best]
        scores = [score for _, score in best] + ([empty] if self._may_be_empty or not best else [])
        highest = max(scores)
        total = sum(math.exp(score - highest) for score in scores)
        candidates = tuple(
            Answer(example.context[start:end], start, end, math.exp(score - highest) / total)
            for (start, end), score in best
        )
        margin = empty - best[0][1] if best else math.inf
        none = Answer("", 0, 0, math.exp(empty - highest) / total)
        if not candidates or (self._may_be_empty and margin > self.settings.null_threshold):
            return Answered(none, candidates, margin)
        return Answered(candidates[0], candidates, margin)

    def score(self, examples: Sequence[Question], predictions: Sequence[Answered]) -> dict[str, float]:
        """exact_match and f1, as the official scripts of SQuAD, or of CMRC, score them; 0 to 1."""
        score = answers.cmrc_scores if self.settings.characters else answers.squad_scores
        pairs = [
            score(prediction.answer.text, [text for text, _ in example.answers])
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        exact, f1 = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        return {"exact_match": exact, "f1": f1}

    def configuration(self) -> dict[str, Any]:
        """Whether an answer may be none."""
        return {NO_ANSWER: self._may_be_empty}

    def mistakes(self, examples: Sequence[Question], predictions: Sequence[Answered]) -> list[Mistake]:
        """Answers that are not exactly right; the surer, the worse."""
        score = answers.cmrc_scores if self.settings.characters else answers.squad_scores
        return [
            Mistake(
                example.question,
                " / ".join(text for text, _ in example.answers) or "(none)",
                one.answer.text or "(none)",
                one.answer.score,
            )
            for example, one in zip(examples, predictions, strict=True)
            if not score(one.answer.text, [text for text, _ in example.answers])[0]
        ]


def _listed(value: Any) -> list[Any]:
    """(text, start) of answers that are such pairs, {"text", "start"}, or SQuAD's {"text", "answer_start"}; or one such of two lists."""
    if isinstance(value, Mapping):
        texts, starts = _pair(value)
        if isinstance(texts, str):
            return [(texts, starts)]
        if isinstance(texts, list | tuple) and isinstance(starts, list | tuple) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    if not isinstance(value, list | tuple):
        raise BadRecordError(f"answers are {value!r}, and not a list of (text, start)")
    return [_pair(one) if isinstance(one, Mapping) else one for one in value]


def _pair(answer: Mapping[str, Any]) -> tuple[Any, Any]:
    return answer.get("text"), answer.get("answer_start", answer.get("start"))


def _is_found(example: Question) -> bool:
    return any(place is not None for _, place in example.answers)


def _place(context: str, text: str, start: int) -> int | None:
    """Where an answer stands: at its start, or, in files that are off, where it stands alone."""
    if start >= 0 and context.startswith(text, start):
        return start
    return context.index(text) if context.count(text) == 1 else None


def _window_span(example: Question, inside: np.ndarray, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of the first answer that is whole in this window; (0, 0), the first token, where none is."""

    def is_blank(start: int, end: int) -> bool:
        # Spaces, and marks that the tokenizer leaves out, are in no token.
        return not any(character.isalnum() for character in example.context[start:end])

    for text, start in example.answers:
        if start is None:
            continue
        end = start + len(text)
        touched = np.flatnonzero(inside & (offsets[:, 0] < end) & (offsets[:, 1] > start))
        if len(touched) and is_blank(start, offsets[touched[0]][0]) and is_blank(offsets[touched[-1]][1], end):
            return int(touched[0]), int(touched[-1])
    return 0, 0
