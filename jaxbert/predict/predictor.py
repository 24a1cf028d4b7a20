"""The Predictor: a loaded model that texts are handed to.

Whatever the number and the lengths of the texts, they go through the model in a few shapes (batches.py), so that few programs
are compiled, and in rows that several texts share, so that little is computed for nothing.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, overload

import numpy as np
from flax import traverse_util
from jaxtyping import Float
from tokenizers import Encoding

from jaxbert.config import ComputeType, Pooling
from jaxbert.predict import programs
from jaxbert.predict.batches import Item
from jaxbert.predict.finetuned import Cut, FinetunedModel
from jaxbert.predict.masks import candidates, find_masks, mask_fault
from jaxbert.predict.tasks import CUT, HEADS, Task
from jaxbert.predict.texts import Encoded, LongTexts, PredictError, TextEncoder, TextError, fault_of, open_tokenizer
from jaxbert.tasks.task import LENGTH
from jaxbert.weights.embedder import Embedder
from jaxbert.weights.load import Loaded

_SMALLEST_TOP_K = 8
R = TypeVar("R")
Spans = Sequence[Sequence[int]]
"""(start, end) of the first and the second entity of a text, in characters."""


class Predictor:
    """Texts in, plain Python out. Made by `jaxbert.load(path).predictor(task)`.

    Args:
      loaded: the model, with the heads that the task needs.
      task: what it will be asked for; heads that are missing are found at once. None: whatever its heads allow.
      max_length: tokens of the longest text that is read whole. None: as many as an embedder says, or
        as it was fine-tuned with, or as there are positions.
      long_texts: "truncate" cuts longer ones, with a warning; "window" reads them in windows that overlap by a quarter.
      tokens_per_batch: tokens in the largest batches. None: 2,048 on CPUs, else 32,768 for each device.
      dtype: compute type. None: that of `loaded.config`, which is "auto" unless it was replaced.

    All devices of this process share the batches. Raises PredictError where the model cannot serve.
    """

    def __init__(
        self,
        loaded: Loaded,
        task: Task | None = None,
        *,
        max_length: int | None = None,
        long_texts: LongTexts = "truncate",
        tokens_per_batch: int | None = None,
        dtype: ComputeType | None = None,
    ):
        if task is not None and not (isinstance(task, str) and task in HEADS):
            raise PredictError(f"there is no task {task!r}: there are {', '.join(HEADS)}")
        if long_texts not in get_args(LongTexts):
            raise PredictError(f"long_texts is {long_texts!r}: choose one of {', '.join(get_args(LongTexts))}")
        if dtype is not None:
            if dtype not in get_args(ComputeType):
                raise PredictError(f"dtype is {dtype!r}: choose one of {', '.join(get_args(ComputeType))}")
            loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, dtype=dtype))
        if loaded.tokenizer is None:
            raise PredictError(f"{loaded.source}: came without a tokenizer: put its files beside the weights")
        self._source, self._config, self._embedder = loaded.source, loaded.config, loaded.embedder
        self._heads, self._loaded = loaded.groups, loaded
        positions = loaded.config.max_position_embeddings
        own = None if loaded.embedder is None else loaded.embedder.max_length
        own = loaded.extra.get(LENGTH, positions) if own is None else own
        chosen = max_length if max_length is not None else min(own, positions) if _is_whole(own) else own
        if not _is_whole(chosen) or not 3 <= chosen <= positions:
            raise PredictError(f"max_length {chosen}: the model reads 3 to {positions} tokens")
        if tokens_per_batch is not None and not (_is_whole(tokens_per_batch) and tokens_per_batch >= 1):
            raise PredictError(f"tokens_per_batch {tokens_per_batch}: at least 1")
        for path, leaf in traverse_util.flatten_dict(loaded.params, sep="/").items():
            if not np.isfinite(np.asarray(leaf)).all():
                raise PredictError(
                    f"{loaded.source}: {path} is not finite: take an earlier checkpoint, or get it again"
                )
        self.num_truncated: int = 0
        """Texts that were cut so far."""
        self._texts = TextEncoder(open_tokenizer(loaded.tokenizer), chosen, long_texts)
        if task is not None:
            self._need(task)
        self._runner = programs.Runner(loaded.params, chosen, tokens_per_batch)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that is read whole, special ones included."""
        return self._texts.max_length

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier or a tagger tells apart, by ids; empty for other models."""
        return self._finetuned.labels if {"sequence", "token", "relation"} & {*self._heads} else ()

    @overload
    def fill_mask(self, texts: str, top_k: int = 5) -> list[Any]: ...
    @overload
    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[list[Any]]: ...
    def fill_mask(self, texts: str | Sequence[str], top_k: int = 5) -> list[Any]:
        """The likeliest tokens for each mask of each text, in the form of transformers' fill-mask pipeline.

        For a text: a list of `top_k` candidates, the best first; where it has several masks, such a list for each, and
        `sequence` then shows the other masks and the special tokens. For a list of texts: a list of that.

        Raises PredictError for a text without a mask, and for one with a mask beyond what is read of it.
        """
        self._need("fill-mask")
        vocabulary = self._texts.vocabulary
        if not _is_whole(top_k) or not 1 <= top_k <= vocabulary.size:
            raise PredictError(f"top_k {top_k}: the vocabulary has 1 to {vocabulary.size} tokens to give")
        many = _listed(texts)
        encoded = self._texts.encode(many, with_offsets=True)
        masks = [find_masks(self._texts, one) for one in encoded]
        faults = [mask_fault(self._texts, *one) for one in zip(many, encoded, masks, strict=True)]
        if any(faults):
            raise TextError({number: fault for number, fault in enumerate(faults) if fault})
        items = [self._item(window, position) for one in masks for window, position in one]
        self._warn_of_truncated(encoded)
        # Few values of k are compiled.
        k = min(_SMALLEST_TOP_K ** max(math.ceil(math.log(top_k, _SMALLEST_TOP_K)), 1), vocabulary.size)
        scores, tokens = self._runner.run(programs.top_tokens(self._config, k), items)
        results, done = [], 0
        for one in masks:
            found = range(done, done + len(one))
            done += len(one)
            lists = [
                candidates(self._texts, window, position, scores[i], tokens[i], top_k, len(one))
                for i, (window, position) in zip(found, one, strict=True)
            ]
            results.append(lists[0] if len(lists) == 1 else lists)
        return results[0] if isinstance(texts, str) else results

    @overload
    def next_sentence(self, first: str, second: str) -> float: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def next_sentence(self, first: Sequence[str], second: Sequence[str]) -> list[float]: ...
    def next_sentence(self, first: str | Sequence[str], second: str | Sequence[str]) -> float | list[float]:
        """The probability, 0 to 1, that the second text follows the first in one document; of lists, one for each pair.

        A pair that is too long is cut: the longer text loses tokens until both are equally long, from their ends, or, where
        long_texts is "window", so that the window around the place is read where the texts meet.
        """
        single = isinstance(first, str) and isinstance(second, str)
        left, right = _listed(first), _listed(second)
        if isinstance(first, str) != isinstance(second, str) or len(left) != len(right):
            raise PredictError("next_sentence takes two texts, or two lists of the same length")
        pairs = list(zip(left, right, strict=True))
        self._need("next-sentence")
        encoded = self._texts.encode(pairs)
        self._warn_of_truncated(encoded)
        items = [self._item(one.windows[0], 0) for one in encoded]
        (probabilities,) = self._runner.run(programs.is_next(self._config), items)
        return float(probabilities[0]) if single else [float(p) for p in probabilities]

    @overload
    def embed(
        self, texts: str, pooling: Pooling | None = None, normalize: bool | None = None, prompt: str | None = None
    ) -> Float[np.ndarray, " D"]: ...
    @overload
    def embed(
        self,
        texts: Sequence[str],
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
    ) -> Float[np.ndarray, "N D"]: ...
    def embed(
        self,
        texts: str | Sequence[str],
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
    ) -> Float[np.ndarray, "... D"]:
        """A vector for a text, or a float32 array with one for each.

        Args:
          pooling: "cls": the hidden state of the first token; "mean", "max": over all tokens, special ones included. None:
            what the model's folder says, else "mean".
          normalize: scale vectors to length 1. None: what the model's folder says, else not.
          prompt: what is put before every text ("query: "). None: what the model's folder says, else nothing.

        Of a text in windows: the mean of the windows' vectors, weighted by their tokens (of "max": the maximum).
        """
        embedder = self._embedder or Embedder("mean")
        prompt = embedder.prompt if prompt is None else prompt
        pooling = embedder.pooling if pooling is None else pooling
        if pooling not in get_args(Pooling):
            raise PredictError(f"pooling is {pooling!r}: choose one of {', '.join(get_args(Pooling))}")
        if not isinstance(prompt, str):
            raise PredictError(f"prompt is {prompt!r}: it is a text")
        many = [_prepared(text, prompt, embedder.lowercase) for text in _listed(texts)]
        if pairs := {n: "is a pair: embed takes texts" for n, text in enumerate(many) if isinstance(text, tuple)}:
            raise TextError(pairs)
        encoded = self._texts.encode(many)
        self._warn_of_truncated(encoded)
        items = [self._item(window, 0) for one in encoded for window in one.windows]
        (vectors,) = self._runner.run(programs.pooled(self._config, pooling), items)
        vectors = _joined(vectors, encoded, pooling)
        if embedder.normalize if normalize is None else normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[0] if isinstance(texts, str) else vectors

    @overload
    def classify(self, texts: str | tuple[str, str]) -> dict[str, Any]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def classify(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[dict[str, Any]]: ...
    def classify(self, texts: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """The class of a text or of a pair of texts: "label", "score" (its probability), "scores" of all classes.

        Where a text may have several classes: "labels" and "scores"; where it is judged by a number: "number". What is longer than the
        model reads is cut.
        """
        self._need("classify")
        single = isinstance(texts, str | tuple)
        many = self._checked([texts] if single else _listed(texts))
        if faults := {
            n: f"is {len(t)} texts: a pair has two" for n, t in enumerate(many) if isinstance(t, tuple) and len(t) != 2
        }:
            raise TextError(faults)
        found = self._counted(self._finetuned.classify(many))
        return found[0] if single else found

    @overload
    def tag(self, texts: str) -> list[Any]: ...
    @overload
    def tag(self, texts: Sequence[str]) -> list[list[Any]]: ...
    def tag(self, texts: str | Sequence[str]) -> list[Any]:
        """The entities of a text, in the form of transformers' token-classification pipeline ("simple"); of a list, such a list for each.

        Of models whose words each have a tag (parts of speech), every word. Long texts are read in windows.
        """
        self._need("tag")
        found: list[Any] = self._finetuned.tag(self._checked(_listed(texts)))
        return found[0] if isinstance(texts, str) else found

    @overload
    def relate(self, texts: str, spans: Spans | None = None) -> dict[str, Any]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def relate(self, texts: Sequence[str], spans: Sequence[Spans] | None = None) -> list[dict[str, Any]]: ...
    def relate(self, texts: str | Sequence[str], spans: Any = None) -> dict[str, Any] | list[dict[str, Any]]:
        """The relation of two entities of a text: marked in it ("The <e1>ridge</e1> uprises from the <e2>surge</e2>."), or given by `spans`.

        spans: ((start, end), (start, end)) of the first and the second entity, in characters; of a list of texts, a list of these.
        """
        self._need("relate")
        many = self._checked(_listed(texts))
        each = [spans] if spans is not None and isinstance(texts, str) else spans
        if each is not None and len(each) != len(many):
            raise PredictError(f"relate takes spans for every text: {len(each)} for {len(many)} texts")
        found = self._counted(self._finetuned.relate(many, each))
        return found[0] if isinstance(texts, str) else found

    @overload
    def answer(self, question: str, context: str, top_k: int = 1) -> list[dict[str, Any]]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def answer(self, question: Sequence[str], context: Sequence[str], top_k: int = 1) -> list[list[dict[str, Any]]]: ...
    def answer(self, question: str | Sequence[str], context: str | Sequence[str], top_k: int = 1) -> list[Any]:
        """The best answers to a question, pieces of its context: "answer", "score", "start" and "end" in characters.

        An empty answer is none, from models that were trained with such questions. Long contexts are read in windows.
        """
        self._need("answer")
        questions, contexts = _listed(question), _listed(context)
        if isinstance(question, str) != isinstance(context, str) or len(questions) != len(contexts):
            raise PredictError("answer takes a question and a context, or two lists of the same length")
        if not _is_whole(top_k) or top_k < 1:
            raise PredictError(f"top_k {top_k}: at least 1")
        found = self._finetuned.answer(self._checked(questions), self._checked(contexts), top_k)
        return found[0] if isinstance(question, str) else found

    @overload
    def choose(self, context: str, choices: Sequence[str], question: str | None = None) -> dict[str, Any]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def choose(
        self, context: Sequence[str], choices: Sequence[Sequence[str]], question: Sequence[str] | None = None
    ) -> list[dict[str, Any]]: ...
    def choose(
        self, context: str | Sequence[str], choices: Sequence[Any], question: str | Sequence[str] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Which of several choices fits a context: "choice" (from 0), its "score", and the "scores" of all; of lists, such a list.

        `question`: what stands before every choice.
        """
        self._need("choose")
        single = isinstance(context, str)
        contexts, lists = (
            _listed(context),
            [_listed(choices)] if single else [_listed(some) for some in _listed(choices)],
        )
        questions: list[str | None] = [None] * len(contexts) if question is None else self._checked(_listed(question))
        if isinstance(choices, str) or not len(contexts) == len(lists) == len(questions):
            raise PredictError("choose takes a context and a list of choices, or two lists of the same length")
        for some in lists:
            self._checked(some)
        if faults := {n: "has fewer than two choices" for n, some in enumerate(lists) if len(some) < 2}:
            raise TextError(faults)
        found = self._counted(self._finetuned.choose(self._checked(contexts), lists, questions))
        return found[0] if single else found

    @functools.cached_property
    def _finetuned(self) -> FinetunedModel:
        return FinetunedModel(self._loaded, self._texts.tokenizer, self.max_length)

    def _checked(self, texts: list[Any]) -> list[Any]:
        if faults := {number: fault for number, text in enumerate(texts) if (fault := fault_of(text))}:
            raise TextError(faults)
        return texts

    def _need(self, task: Task) -> None:
        missing = [head for head in HEADS[task] if head not in self._heads]
        if missing:
            there = ", ".join(self._heads) or "none"
            raise PredictError(f"{self._source}: {task} needs the head {missing[0]!r}, and its heads are: {there}")
        if task in CUT and self._texts.long_texts == "window":
            raise PredictError(
                f"{task} reads no windows: leave out long_texts, and what is too long is cut with a warning"
            )

    def _item(self, window: Encoding, position: int) -> Item:
        # Some tokenizers number the parts of a pair for models that do not tell them apart (RoBERTa).
        types = window.type_ids if self._config.type_vocab_size > 1 else [0] * len(window)
        return Item(window.ids, types, position)

    def _warn_of_truncated(self, encoded: Sequence[Encoded]) -> None:
        whole = "" if self._texts.long_texts == "window" else '; long_texts="window" reads single texts whole'
        self._warn(sum(one.truncated for one in encoded), len(encoded), whole)

    def _counted(self, found: Cut[R]) -> list[R]:
        """What was found, with a warning where texts were cut."""
        self._warn(found.cut, len(found.results), "")
        return found.results

    def _warn(self, cut: int, count: int, way: str) -> None:
        self.num_truncated += cut
        if cut:
            warnings.warn(
                f"{cut} of {count} texts are longer than {self.max_length} tokens and were cut{way}", stacklevel=4
            )


def _is_whole(value: Any) -> bool:
    # True and False are numbers to Python.
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    try:
        return list(texts)
    except TypeError:
        raise PredictError(f"texts are a str or a list of them, and not {type(texts).__name__}") from None


def _prepared(text: Any, prompt: str, lowercase: bool) -> Any:
    # What is no text is for the tokenizer to name.
    if not isinstance(text, str):
        return text
    return (prompt + text).lower() if lowercase else prompt + text


def _joined(
    vectors: Float[np.ndarray, "W D"], encoded: Sequence[Encoded], pooling: Pooling
) -> Float[np.ndarray, "N D"]:
    """One vector for each text, of one for each window."""
    if len(vectors) == len(encoded):
        return vectors
    counts = np.array([len(one.windows) for one in encoded])
    firsts = np.cumsum(counts) - counts
    if pooling == "max":
        return np.maximum.reduceat(vectors, firsts)
    sizes = np.array([len(window) for one in encoded for window in one.windows], np.float32)
    return np.add.reduceat(vectors * sizes[:, None], firsts) / np.add.reduceat(sizes, firsts)[:, None]
