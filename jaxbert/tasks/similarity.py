"""Similarity and retrieval: vectors of texts that are near where the texts belong together (Reimers & Gurevych 2019).

The loss picks the text that belongs to each anchor out of all texts in the batch (in-batch negatives, Henderson et al. 2017), of
which some may be there because they look right and are wrong (hard negatives, Karpukhin et al. 2020). Without pairs, a text
belongs to itself under other dropout (SimCSE, Gao et al. 2021).
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbert.data.features import Feature
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import SimilarityConfig
from jaxbert.model.classifiers import BertForSentenceEmbedding
from jaxbert.tasks import metrics
from jaxbert.tasks.task import (
    BoundTask,
    Encoder,
    Mistake,
    Outputs,
    Task,
    encode,
    is_cut,
    number_in,
    text_in,
    type_ids,
)
from jaxbert.train.losses import Sums
from jaxbert.train.state import Batch
from jaxbert.weights.embedder import Embedder

# What a sequence is in its example; a measured one is no part of the loss.
_ANCHOR, _POSITIVE, _NEGATIVE, _MEASURED = range(4)
_RECALL_AT = (1, 5, 10)
_NOTHING = -1e9
# Cosines that are in memory at once while texts are ranked.
_AT_ONCE = 2**24


@dataclasses.dataclass(frozen=True)
class Related:
    """A text, what belongs to it, what does not, and how alike it and the positive are."""

    anchor: str
    positive: str | None
    negatives: tuple[str, ...] = ()
    score: float = math.nan


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Vectors of length 1 of the texts of an example."""

    anchor: Float[np.ndarray, " D"]
    positive: Float[np.ndarray, " D"] | None
    negatives: tuple[Float[np.ndarray, " D"], ...]


class Similarity(Task[Related, Vectors]):
    """See `SimilarityConfig`."""

    def __init__(self, settings: SimilarityConfig):
        self.settings: SimilarityConfig = settings

    def parse(self, record: Record) -> Related:
        """A row of a table."""
        settings = self.settings
        anchor, positive, negatives, score = text_in(record, settings.anchor, "task.anchor"), None, (), math.nan
        if settings.target == "pairs" or settings.positive in record.values:
            positive = text_in(record, settings.positive, "task.positive")
        if settings.negatives is not None:
            negatives = self._negatives(record, settings.negatives)
        if settings.score is not None and settings.score in record.values:
            score = number_in(record, settings.score, "task.score")
        return Related(anchor, positive, negatives, score)

    def _negatives(self, record: Record, name: str) -> tuple[str, ...]:
        # Files for dev and test may have none; `bind` asks for them in train.
        found = record.values.get(name)
        found = [found] if isinstance(found, str) else found
        if found is None:
            return ()
        if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
            raise BadRecordError(f"{name} is {found!r}, and no text and no list of texts")
        return tuple(one for one in found if one.strip())

    def text(self, example: Related) -> str:
        """The anchor and what belongs to it."""
        return example.anchor if example.positive is None else f"{example.anchor}\t{example.positive}"

    def unmeasurable(self, example: Related) -> str | None:
        """It has no score, where scores are asked for, or no second text."""
        if example.positive is None:
            return f"has no {self.settings.positive!r}"
        lacks = self.settings.score is not None and math.isnan(example.score)
        return f"has no {self.settings.score!r}" if lacks else None

    def labels_of(self, example: Related) -> Iterable[str]:
        """There are none."""
        return ()

    def labels(self, train: Collection[Related]) -> tuple[str, ...]:
        """There are none."""
        return ()

    def bind(self, labels: tuple[str, ...], train: Collection[Related], encoder: Encoder) -> "BoundSimilarity":
        """On an encoder. Raises ExamplesError where no training row has the negatives that the settings name."""
        name = self.settings.negatives
        if name is not None and train and not any(example.negatives for example in train):
            raise ExamplesError(
                f"data.train has no row with a text in a column {name!r}: set task.negatives to one that it has, or leave it out"
            )
        return BoundSimilarity(self.settings, encoder, self._oddities(train))

    def _oddities(self, train: Collection[Related]) -> list[str]:
        if self.settings.score is None or self.settings.target != "pairs":
            return []
        scores = [example.score for example in train if not math.isnan(example.score)]
        highest = max(scores, default=0.0)
        low = sum(score < highest for score in scores)
        if not low:
            return []
        return [
            f"{low:,} of {len(train):,} training examples have a {self.settings.score!r} below the highest ({highest:g}), and are "
            "learnt like the others, as texts that belong together: leave out of data.train what does not"
        ]


class BoundSimilarity(BoundTask[Related, Vectors]):
    """An embedder."""

    architecture: str = "Model"
    loss_weights: Mapping[str, float] = {"label_loss": 1.0}
    ranked_by: str = "nearer texts"
    inputs: tuple[str, ...] = (*BoundTask.inputs, "cls_positions")
    labels: Sequence[str] = ()
    together: bool = True

    def __init__(self, settings: SimilarityConfig, encoder: Encoder, warnings: Sequence[str] = ()):
        self.settings: SimilarityConfig = settings
        self.encoder: Encoder = encoder
        self.warnings: Sequence[str] = warnings
        self.metric: str = settings.metric or ("spearman" if settings.score is not None else "mrr")
        self.model: nn.Module = BertForSentenceEmbedding(encoder.config, settings.pooling)
        self.embedder: Embedder | None = Embedder(settings.pooling, normalize=True, max_length=encoder.max_length)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axis names."""
        one_BxL = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, one_BxL, one_BxL, one_BxL, one_BxL, one_BxL)["params"]

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Of all anchors."""
        return {"label_loss": jnp.sum(batch["real"] * (batch["role"] == _ANCHOR))}

    def sums(self, found: Float[Array, "R S D"], batch: Batch) -> dict[str, Sums]:
        """-log of the share that each anchor's positive has among the positives and negatives of the whole batch, in nats."""
        real_N, role_N, group_N, text_N, anchor_N, positive_N = (
            batch[name].reshape(-1) for name in ("real", "role", "groups", "text", "anchor", "positive")
        )
        vectors_NxD = _of_length_1(found.reshape(-1, found.shape[-1]))
        cosines_NxN = jnp.einsum("nd,md->nm", vectors_NxD, vectors_NxD, precision="highest")
        own_NxN = (group_N[:, None] == group_N[None, :]) & (role_N == _POSITIVE)[None, :] & (real_N > 0)[None, :]
        # What reads as the anchor is no negative, nor what some row of the batch says belongs to it, wherever it stands.
        reads_NxN = text_N[None, :] == text_N[:, None]
        theirs_NxN = (anchor_N[None, :] == anchor_N[:, None]) & ((role_N == _POSITIVE) & (real_N > 0))[None, :]
        belongs_NxN = jnp.einsum("nk,km->nm", theirs_NxN.astype(jnp.float32), reads_NxN.astype(jnp.float32)) > 0
        same_NxN = reads_NxN | (text_N[None, :] == positive_N[:, None]) | belongs_NxN
        candidate_N = (real_N > 0) & ((role_N == _POSITIVE) | (role_N == _NEGATIVE))
        asked_NxN = own_NxN | (candidate_N[None, :] & ~same_NxN)
        logits_NxN = jnp.where(asked_NxN, cosines_NxN / self.settings.temperature, _NOTHING)
        own_N = jnp.sum(jnp.where(own_NxN, logits_NxN, 0), axis=1)
        weight_N = real_N * (role_N == _ANCHOR)
        total = jnp.sum(weight_N)
        losses_N = jax.nn.logsumexp(logits_NxN, axis=1) - own_N
        best_N = (own_N >= logits_NxN.max(1)).astype(jnp.float32)
        return {"label_loss": (jnp.sum(weight_N * losses_N), total), "accuracy": (jnp.sum(weight_N * best_N), total)}

    def readable(self, found: Float[Array, "R S D"]) -> Outputs:
        """Vectors of length 1."""
        return Outputs({"vector": _of_length_1(found)}, {})

    def features(self, examples: Sequence[Related]) -> list[Feature]:
        """A sequence for each text; a text that belongs to itself is there twice."""
        roles = [(n, role, text) for n, example in enumerate(examples) for role, text in self._texts(example)]
        encodings = encode(self.encoder, [text for _, _, text in roles])
        found = []
        for (n, role, text), one in zip(roles, encodings, strict=True):
            example = examples[n]
            belongs = example.anchor if self._alone or example.positive is None else example.positive
            numbers = {"text": text, "anchor": example.anchor, "positive": belongs}
            values = {"role": role, **{name: _number(it) for name, it in numbers.items()}}
            found.append(Feature(n, one.ids, type_ids(self.encoder, one), values=values, cut=is_cut(one)))
        return found

    @property
    def _alone(self) -> bool:
        return self.settings.target == "dropout"

    def _texts(self, example: Related) -> Iterator[tuple[int, str]]:
        yield _ANCHOR, example.anchor
        if self._alone:
            yield _POSITIVE, example.anchor
        if example.positive is not None:
            yield (_MEASURED if self._alone else _POSITIVE), example.positive
        yield from ((_NEGATIVE, text) for text in example.negatives)

    def decode(
        self, examples: Sequence[Related], features: Sequence[Feature], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Vectors]:
        """The vectors of each example's texts."""
        by_role: list[dict[int, list[np.ndarray]]] = [{} for _ in examples]
        for feature, one in zip(features, outputs, strict=True):
            by_role[feature.example].setdefault(int(feature.values["role"]), []).append(one["vector"])  # pyright: ignore[reportArgumentType]
        positive = _MEASURED if self._alone else _POSITIVE
        return [
            Vectors(one[_ANCHOR][0], one[positive][0] if positive in one else None, tuple(one.get(_NEGATIVE, ())))
            for one in by_role
        ]

    def check_measurable(self, examples: Sequence[Related], files: str) -> None:
        """Raise ExamplesError where a text has no second one, or a pair no score where `task.score` asks for one."""
        if any(example.positive is None for example in examples):
            raise ExamplesError(
                f"{files} has texts without a second one in the column {self.settings.positive!r}: "
                "name files of pairs there, which tell how good vectors are"
            )
        if self.settings.score is not None and any(math.isnan(example.score) for example in examples):
            raise ExamplesError(
                f"{files} has rows without a column {self.settings.score!r}: set task.score to one that dev and test have"
            )

    def score(self, examples: Sequence[Related], predictions: Sequence[Vectors]) -> dict[str, float]:
        """spearman and pearson of the cosines with the scores; or mrr and recall of each anchor's positives among all texts."""
        pairs = list(zip(examples, predictions, strict=True))
        if self.settings.score is not None:
            gold = np.array([example.score for example in examples])
            found = np.array([float(one.anchor @ one.positive) for one in predictions if one.positive is not None])
            return {"spearman": metrics.spearman(gold, found), "pearson": metrics.pearson(gold, found)}
        ranks = np.array([rank for _, rank, _ in _ranked(pairs)])
        recall = {f"recall_at_{k}": float(np.mean(ranks <= k)) for k in _RECALL_AT}
        return {"mrr": float(np.mean(1 / ranks)), **recall}

    def mistakes(self, examples: Sequence[Related], predictions: Sequence[Vectors]) -> list[Mistake]:
        """Anchors to which another text is nearer than any that belongs to it, by how many are."""
        pairs = list(zip(examples, predictions, strict=True))
        if self.settings.score is not None:
            return []
        texts, _ = _corpus(pairs)
        return [
            Mistake(example.anchor, example.positive or "", texts[nearest], float(rank - 1))
            for (example, _), (_, rank, nearest) in zip(_anchors(pairs), _ranked(pairs), strict=True)
            if rank > 1
        ]

    def configuration(self) -> dict[str, Any]:
        """An embedder has no labels."""
        return {}


_Pairs = Sequence[tuple[Related, Vectors]]


def _of_length_1(vectors: Array) -> Array:
    # An empty slot has the vector 0, which has no direction.
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vectors), -1, keepdims=True), 1e-24))


def _corpus(pairs: _Pairs) -> tuple[list[str], np.ndarray]:
    """All texts that anchors are compared with, each once, and their vectors."""
    found: dict[str, np.ndarray] = {}
    for example, one in pairs:
        assert example.positive is not None
        assert one.positive is not None
        found.setdefault(example.positive, one.positive)
        for text, vector in zip(example.negatives, one.negatives, strict=True):
            found.setdefault(text, vector)
    return list(found), np.stack(list(found.values()))


def _anchors(pairs: _Pairs) -> list[tuple[Related, Vectors]]:
    """Each anchor once, though it may stand in several rows, each with a text that belongs to it."""
    return list({example.anchor: (example, one) for example, one in reversed(pairs)}.values())[::-1]


def _ranked(pairs: _Pairs) -> Iterator[tuple[str, int, int]]:
    """Each anchor, the rank from 1 of the nearest text that belongs to it, and which text is the nearest."""
    texts, vectors = _corpus(pairs)
    places = {text: n for n, text in enumerate(texts)}
    belonging: dict[str, list[int]] = {}
    for example, _ in pairs:
        belonging.setdefault(example.anchor, []).append(places[example.positive or ""])
    anchors = _anchors(pairs)
    step = max(_AT_ONCE // len(texts), 1)
    for first in range(0, len(anchors), step):
        some = anchors[first : first + step]
        cosines = np.stack([one.anchor for _, one in some]) @ vectors.T
        for (example, _), row in zip(some, cosines, strict=True):
            if example.anchor in places:
                # A text is no answer to itself, unless it is said to be.
                own = places[example.anchor]
                row[own] = row[own] if own in belonging[example.anchor] else -np.inf
            best = row[belonging[example.anchor]].max()
            # Of equally near texts the one that belongs comes last: vectors that are all alike find nothing.
            others = np.delete(row, belonging[example.anchor])
            yield example.anchor, 1 + int((others >= best).sum()), int(row.argmax())


def _number(text: str) -> int:
    """31 bits that tell a text from the others in its batch, whatever it was read together with."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=4).digest(), "big") >> 1
