"""Similarity: the contrastive loss beside sentence-transformers', what is no negative, and measures of retrieval."""

import math

import jax
import numpy as np
import pytest
import scipy.stats
import torch
from made_task_encoders import encoder_of, outputs_of, parameters_of, wordpiece
from sklearn.metrics import label_ranking_average_precision_score

from jaxbert.config import ConfigError
from jaxbert.data.examples import TrainingBatches, layout_of
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig, SimilarityConfig
from jaxbert.finetune.validation import validate
from jaxbert.tasks.similarity import BoundSimilarity, Related, Similarity, Vectors

PAIRS = [
    Related("the cat sat", "a cat was there", ("the cat runs",)),
    Related("big dog", "a dog", ("small dog", "red dog")),
    Related("in the house", "it was in"),
    Related("over the tree", "gone over"),
]


def bind(**settings) -> BoundSimilarity:
    return Similarity(SimilarityConfig(**settings)).bind((), [], encoder_of(wordpiece()))


def batch_of(bound: BoundSimilarity, examples: list[Related]):
    features = bound.features(examples)
    [batch] = TrainingBatches(features, 8, layout_of(features, 2), seed=0, together=True).batches(0, 1)
    return batch


def loss_of(bound: BoundSimilarity, params, examples: list[Related]) -> float:
    total, weight = jax.jit(bound.forward, static_argnums=2)(params, batch_of(bound, examples), None)["label_loss"]
    assert float(weight) == len(examples) == float(bound.weights(batch_of(bound, examples))["label_loss"])
    return float(total / weight)


def vectors_of(bound: BoundSimilarity, params, examples: list[Related]) -> list[Vectors]:
    features = bound.features(examples)
    return bound.decode(examples, features, outputs_of(bound, params, features))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_the_loss_is_that_of_sentence_transformers(pooling: str):
    bound = bind(pooling=pooling, temperature=0.05)
    params = parameters_of(bound)
    vectors = vectors_of(bound, params, PAIRS)
    anchors = torch.tensor(np.stack([one.anchor for one in vectors]))
    candidates = [one.positive for one in vectors] + [vector for one in vectors for vector in one.negatives]
    # sentence-transformers' MultipleNegativesRankingLoss: cosines x 20, cross-entropy with the own positive.
    scores = torch.nn.functional.cosine_similarity(anchors[:, None], torch.tensor(np.stack(candidates)), dim=-1) * 20
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    assert loss_of(bound, params, PAIRS) == pytest.approx(float(expected), rel=1e-4)


def test_equal_texts_are_no_negatives():
    bound = bind()
    params = parameters_of(bound)
    # Both anchors have the same answer; a third answer is the first anchor itself.
    rows = [Related("the cat", "a dog"), Related("one cat", "a dog"), Related("it runs", "the cat")]
    vectors = vectors_of(bound, params, rows)
    candidates = np.stack([one.positive for one in vectors])
    losses = []
    for n, kept in enumerate(([0], [1, 2], [2, 0])):
        logits = candidates[kept] @ vectors[n].anchor / 0.05
        logits = logits if n != 2 else np.append(logits, candidates[1] @ vectors[n].anchor / 0.05)
        losses.append(np.log(np.exp(logits).sum()) - candidates[n] @ vectors[n].anchor / 0.05)
    assert loss_of(bound, params, rows) == pytest.approx(np.mean(losses), rel=1e-4)


def test_what_belongs_to_the_same_anchor_is_no_negative():
    bound = bind()
    params = parameters_of(bound)
    # Two answers of one question, each in a row of its own; what answers it not; and an answer that is another question's negative.
    rows = [
        Related("the cat", "a dog", ("no",)),
        Related("the cat", "big dog"),
        Related("it runs", "gone", ("big dog",)),
    ]
    vectors = vectors_of(bound, params, rows)
    candidates = np.stack([*(one.positive for one in vectors), vectors[0].negatives[0], vectors[2].negatives[0]])
    losses = []
    for n, asked in enumerate(([0, 2, 3], [1, 2, 3], [0, 1, 2, 3, 4])):
        logits = candidates[asked] @ vectors[n].anchor / 0.05
        losses.append(np.log(np.exp(logits).sum()) - candidates[n] @ vectors[n].anchor / 0.05)
    assert loss_of(bound, params, rows) == pytest.approx(np.mean(losses), rel=1e-4)


def test_dropout_makes_the_pair_of_a_single_text():
    bound = bind(target="dropout")
    params = parameters_of(bound)
    rows = [Related(text, None) for text in ("the cat sat", "big dog", "it was gone")]
    features = bound.features(rows)
    assert [feature.example for feature in features] == [0, 0, 1, 1, 2, 2]
    assert features[0].input_ids == features[1].input_ids
    batch = batch_of(bound, rows)
    # Without dropout both are the same: the cosine with itself is 1.
    assert float(bound.forward(params, batch, None)["accuracy"][0]) == 3
    found = jax.jit(bound.apply)(params, batch, jax.random.key(0))
    real = batch["real"] > 0
    same = [found[real & (batch["groups"] == group)] for group in range(3)]
    assert all(not np.allclose(one, other, atol=1e-3) for one, other in same)


def test_a_pair_measured_in_dev_is_no_part_of_the_loss_of_single_texts():
    bound = bind(target="dropout")
    params = parameters_of(bound)
    pairs = [Related(one.anchor, one.positive) for one in PAIRS]
    alone = [Related(one.anchor, None) for one in PAIRS]
    assert loss_of(bound, params, pairs) == pytest.approx(loss_of(bound, params, alone), rel=1e-5)
    for one, other in zip(vectors_of(bound, params, pairs), vectors_of(bind(), params, pairs), strict=True):
        assert one.positive is not None
        np.testing.assert_allclose(one.positive, other.positive, atol=1e-6)


def rows_and_vectors(seed: int = 0) -> tuple[list[Related], list[Vectors]]:
    draw = np.random.default_rng(seed)

    def vector() -> np.ndarray:
        found = draw.normal(size=8)
        return (found / np.linalg.norm(found)).astype(np.float32)

    texts = {f"answer {n}": vector() for n in range(30)} | {f"wrong {n}": vector() for n in range(10)}
    rows, vectors = [], []
    for n in range(30):
        row = Related(f"question {n}", f"answer {n}", (f"wrong {n % 10}",))
        anchor = texts[f"answer {n}"] + 1.5 * vector()
        anchor = (anchor / np.linalg.norm(anchor)).astype(np.float32)
        rows.append(row)
        vectors.append(Vectors(anchor, texts[f"answer {n}"], (texts[f"wrong {n % 10}"],)))
    return rows, vectors


def test_measures_of_retrieval():
    rows, vectors = rows_and_vectors()
    scores = bind().score(rows, vectors)
    corpus = np.stack([one.positive for one in vectors] + [one.negatives[0] for one in vectors[:10]])
    cosines = np.stack([one.anchor for one in vectors]) @ corpus.T
    # With one right text each, the mean reciprocal rank is the ranking's average precision.
    right = np.eye(30, 40, dtype=int)
    assert scores["mrr"] == pytest.approx(label_ranking_average_precision_score(right, cosines))
    ranks = (cosines >= cosines[np.arange(30), np.arange(30), None]).sum(1)
    assert 1 < ranks.mean() < 15
    for k in (1, 5, 10):
        assert scores[f"recall_at_{k}"] == pytest.approx(np.mean(ranks <= k))
    mistakes = bind().mistakes(rows, vectors)
    assert len(mistakes) == (ranks > 1).sum()
    assert all(one.predicted != one.gold for one in mistakes)
    assert sorted(one.loss + 1 for one in mistakes) == sorted(ranks[ranks > 1])


def test_several_rows_of_one_question_are_one_question():
    vector = np.eye(4, dtype=np.float32)
    rows = [Related("q", "a"), Related("q", "b"), Related("r", "c")]
    # The nearest text of q is b, which belongs to it as a does.
    vectors = [Vectors(vector[1], vector[0], ()), Vectors(vector[1], vector[1], ()), Vectors(vector[3], vector[2], ())]
    scores = bind().score(rows, vectors)
    # c is orthogonal to r like all others, and so comes last of three.
    assert scores == {"mrr": (1 + 1 / 3) / 2, "recall_at_1": 0.5, "recall_at_5": 1.0, "recall_at_10": 1.0}


def test_vectors_that_are_all_alike_find_nothing():
    one = np.ones(4, np.float32) / 2
    rows = [Related(f"q{n}", f"a{n}") for n in range(20)]
    assert bind().score(rows, [Vectors(one, one, ())] * 20)["mrr"] == pytest.approx(1 / 20)


def test_correlation_of_scored_pairs():
    draw = np.random.default_rng(0)
    rows = [Related("x", "y", (), float(score)) for score in draw.uniform(0, 5, 40)]
    vectors = [Vectors(draw.normal(size=8), draw.normal(size=8), ()) for _ in rows]
    found = bind(score="score").score(rows, vectors)
    cosines = [float(one.anchor @ one.positive) for one in vectors if one.positive is not None]
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr([r.score for r in rows], cosines).statistic)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr([r.score for r in rows], cosines).statistic)


def parse(values: dict, **settings) -> Related:
    return Similarity(SimilarityConfig(**settings)).parse(Record(values, "train.jsonl:1"))


def test_rows():
    assert parse({"anchor": "a", "positive": "b"}) == Related("a", "b")
    values = {"anchor": "a", "positive": "b", "n": ["c", " "], "s": "4.5"}
    assert parse(values, negatives="n", score="s") == Related("a", "b", ("c",), 4.5)
    assert parse({"anchor": "a", "positive": "b", "n": "c"}, negatives="n").negatives == ("c",)
    assert parse({"anchor": "a"}, target="dropout").positive is None
    assert parse({"anchor": "a", "positive": "b"}, target="dropout").positive == "b"
    for values, settings, text in (
        ({"anchor": "a", "positive": ""}, {}, "positive is empty"),
        ({"anchor": "a", "positive": "b", "n": 3}, {"negatives": "n"}, "n is 3, and no text and no list of texts"),
        ({"anchor": "a", "positive": "b", "s": "high"}, {"score": "s"}, "s is 'high', and no number"),
        ({"anchor": "a", "positive": "b", "s": True}, {"score": "s"}, "s is True, and no number"),
    ):
        with pytest.raises(BadRecordError, match=text):
            parse(values, **settings)
    with pytest.raises(ExamplesError, match=r"has no column 'positive': set task\.positive"):
        parse({"anchor": "a"})


def test_negatives_are_asked_for_in_train_alone():
    """Pairs for dev and scored pairs for test, beside triplets for training, have no such column."""
    task, encoder = Similarity(SimilarityConfig(negatives="n")), encoder_of(wordpiece())
    rows = [parse({"anchor": "a", "positive": "b", **more}, negatives="n") for more in ({}, {"n": None}, {"n": "c"})]
    assert [row.negatives for row in rows] == [(), (), ("c",)]
    task.bind((), rows, encoder)
    with pytest.raises(ExamplesError, match=r"^data.train has no row with a text in a column 'n': set task.negatives"):
        task.bind((), rows[:2], encoder)


@pytest.mark.parametrize(
    ("scores", "settings", "said"),
    [
        ((5, 1.5, 0), {"score": "s"}, "2 of 3 training examples have a 's' below the highest (5), and are learnt like"),
        ((5, 1, math.nan), {"score": "s"}, "1 of 3 training examples"),
        ((5, 5), {"score": "s"}, None),
        ((math.nan,), {"score": "s"}, None),
        ((math.nan,), {}, None),
        # What is learnt of single texts is no pair.
        ((5, 1), {"score": "s", "target": "dropout"}, None),
    ],
)
def test_a_low_score_in_train_is_odd(scores: tuple[float, ...], settings: dict, said: str | None):
    rows = [Related("a", "b", (), score) for score in scores]
    bound = Similarity(SimilarityConfig(**settings)).bind((), rows, encoder_of(wordpiece()))
    assert len(bound.warnings) == (said is not None)
    assert all(warning.startswith(said or "") for warning in bound.warnings)


def test_files_that_measure_nothing():
    with pytest.raises(ExamplesError, match=r"data.dev has texts without a second one in the column 'positive'"):
        bind(target="dropout").check_measurable([Related("a", None)], "data.dev")
    with pytest.raises(ExamplesError, match=r"data.test has rows without a column 's'"):
        bind(score="s").check_measurable([Related("a", "b")], "data.test")
    bind(score="s").check_measurable([Related("a", "b", (), 1.0)], "data.test")
    bind().check_measurable([Related("a", "b")], "data.dev")


def test_settings_that_contradict():
    config = FinetuneConfig(
        task=SimilarityConfig(target="dropout", temperature=0.0),
        dropout=0.0,
        data=ExamplesConfig(train=("a.tsv",)),
        train=FinetuneTrainConfig(accumulation_steps=2),
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    for name in ("train.accumulation_steps", "task.temperature", "dropout is 0", "data.dev is empty"):
        assert name in str(caught.value)
