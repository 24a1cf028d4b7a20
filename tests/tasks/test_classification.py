"""Classification: what rows mean, losses against torch, packed rows, scores against scikit-learn, and the worst mistakes."""

import math
import pathlib
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from jaxbert.config import ModelConfig, VocabularyConfig
from jaxbert.data.examples import Layout, fill
from jaxbert.data.labelled import read_records
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ClassificationConfig, ExamplesConfig, TaskConfig
from jaxbert.tasks.classification import BoundClassification, Classification, Judgement, Text
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import Encoder, sorted_labels
from jaxbert.text.vocabulary import train_tokenizer

TEXTS = ["a cat sat", "a dog sat here", "the cat and the dog", "here", "the the the a a a sat sat cat dog"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, VocabularyConfig(size=140))


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    """Weights large enough that a mix-up of sequences would show."""
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
        dtype="float32",
    )
    return Encoder(config, "bert", tokenizer, 12)


def parse(values: dict, **settings) -> Text:
    return Classification(ClassificationConfig(**settings)).parse(Record(values, "a.tsv:7"))


def texts(*labels: str) -> list[Text]:
    """An example of each label, or of several that a comma separates."""
    return [Text(TEXTS[n % len(TEXTS)], None, tuple(filter(None, label.split(",")))) for n, label in enumerate(labels)]


def bound(encoder: Encoder, train: list[Text], **settings) -> BoundClassification:
    task = Classification(ClassificationConfig(**settings))
    return task.bind(task.labels(train), train, encoder)


def test_the_registry_makes_every_task():
    made = {type(make_task(config())).__name__ for config in get_args(TaskConfig)}
    assert isinstance(make_task(ClassificationConfig()), Classification)
    assert made == {"Classification", "Tagging", "Relation", "SpanAnswering", "MultipleChoice", "Similarity"}


PARSED = [
    ({"text": " a ", "label": " x "}, {}, Text(" a ", None, ("x",))),
    ({"text": "a", "label": 1}, {}, Text("a", None, ("1",))),
    ({"text": "a", "label": False}, {}, Text("a", None, ("False",))),
    ({"s1": "a", "s2": "b", "y": "x"}, {"text": "s1", "text_pair": "s2", "label": "y"}, Text("a", "b", ("x",))),
    ({"text": "a", "label": "x, y,x,,"}, {"target": "multi-label"}, Text("a", None, ("x", "y"))),
    ({"text": "a", "label": "x;y"}, {"target": "multi-label", "label_separator": ";"}, Text("a", None, ("x", "y"))),
    ({"text": "a", "label": ["x, y", 2]}, {"target": "multi-label"}, Text("a", None, ("x, y", "2"))),
    ({"text": "a", "label": ""}, {"target": "multi-label"}, Text("a", None, ())),
    ({"text": "a", "label": []}, {"target": "multi-label"}, Text("a", None, ())),
    ({"text": "a", "label": "-1.5"}, {"target": "regression"}, Text("a", None, (), -1.5)),
    ({"text": "a", "label": 3}, {"target": "regression"}, Text("a", None, (), 3.0)),
]


@pytest.mark.parametrize(("values", "settings", "expected"), PARSED)
def test_what_a_row_means(values: dict, settings: dict, expected: Text):
    found = parse(values, **settings)
    assert (found.text, found.pair, found.labels) == (expected.text, expected.pair, expected.labels)
    assert found.number == expected.number or math.isnan(expected.number)


BAD = [
    ({"text": "", "label": "x"}, {}, "text is empty"),
    ({"text": " \t", "label": "x"}, {}, "text is empty"),
    ({"text": None, "label": "x"}, {}, "text is None"),
    ({"text": 3, "label": "x"}, {}, "text is 3"),
    ({"text": "a", "text2": "", "label": "x"}, {"text_pair": "text2"}, "text2 is empty"),
    ({"text": "a", "label": " "}, {}, "label is ' ', and no class"),
    ({"text": "a", "label": None}, {}, "label is None, and no class"),
    ({"text": "a", "label": ["x"]}, {}, r"label is \['x'\], and no class"),
    ({"text": "a", "label": "good"}, {"target": "regression"}, "label is 'good', and no number"),
    ({"text": "a", "label": "1_000"}, {"target": "regression"}, "label is '1_000', and no number"),
    ({"text": "a", "label": "nan"}, {"target": "regression"}, "label is 'nan', and no number"),
    ({"text": "a", "label": math.inf}, {"target": "regression"}, "label is inf, and no number"),
    ({"text": "a", "label": 10**400}, {"target": "regression"}, "and no number"),
    ({"text": "a", "label": None}, {"target": "regression"}, "label is None, and no number"),
    ({"text": "a", "label": True}, {"target": "regression"}, "label is True, and no number"),
    ({"text": "a", "label": None}, {"target": "multi-label"}, "label is None"),
    ({"text": "a", "label": [["x"]]}, {"target": "multi-label"}, r"label is \[\['x'\]\], and no list of classes"),
    ({"text": "a", "label": ["x", None]}, {"target": "multi-label"}, "and no list of classes"),
    ({"text": "a", "label": {"x": 1}}, {"target": "multi-label"}, "label is {'x': 1}"),
]


@pytest.mark.parametrize(("values", "settings", "reason"), BAD)
def test_what_is_wrong_with_a_row(values: dict, settings: dict, reason: str):
    with pytest.raises(BadRecordError, match=reason):
        parse(values, **settings)


@pytest.mark.parametrize(
    ("missing", "field"), [("text", "task.text"), ("text_b", "task.text-pair"), ("label", "task.label")]
)
def test_a_missing_column_stops_with_the_field_to_set(missing: str, field: str):
    values = {"text": "a", "text_b": "b", "label": "x"}
    del values[missing]
    there = ", ".join(map(repr, values))
    with pytest.raises(ExamplesError, match=rf"a.tsv:7: has no column '{missing}': set {field} to one of {there}"):
        parse(values, text_pair="text_b")


def test_a_table_that_was_read_as_conll_is_told(tmp_path: pathlib.Path):
    """By its suffix."""
    (tmp_path / "a.txt").write_text("text\tlabel\na film\tgood\n")
    (record,) = read_records(str(tmp_path / "a.txt"), ExamplesConfig(), lambda place, reason: pytest.fail(reason))
    with pytest.raises(
        ExamplesError, match=r"a.txt:1: has no column 'text': it was read as CoNLL, .* --data.format tsv"
    ):
        Classification(ClassificationConfig()).parse(record)


def test_a_column_that_only_one_record_lacks_is_wrong_with_it():
    task = Classification(ClassificationConfig())
    for values, name in (({"text": "a"}, "label"), ({"label": "x"}, "text")):
        with pytest.raises(BadRecordError, match=f"has no '{name}'"):
            task.parse(Record(values, "a.jsonl:7", own_columns=True))


def test_classes_are_sorted_and_numbers_by_their_value():
    assert sorted_labels([["b"], ["a", "c"], []]) == ("a", "b", "c")
    assert sorted_labels([["10"], ["9"], ["-1"]]) == ("-1", "9", "10")
    assert sorted_labels([["10"], ["9"], ["x"]]) == ("10", "9", "x")


@pytest.mark.parametrize("labels", [["①", "②"], ["--1", "2"]])
def test_labels_that_only_look_like_numbers_are_sorted_as_text(labels: list[str]):
    assert sorted_labels([labels]) == tuple(sorted(labels))


def test_labels_of_the_same_value_have_an_order():
    """The order of a set of strings is another one in every process, and a class's id must not be."""
    assert sorted_labels([["1", "01", "001", "0001", "00001", "0"]]) == ("0", "00001", "0001", "001", "01", "1")


def test_labels_are_those_that_are_listed_or_found():
    task = Classification(ClassificationConfig())
    assert task.labels(texts("b", "a", "b")) == ("a", "b")
    assert Classification(ClassificationConfig(labels=("b", "a", "c"))).labels(texts("b")) == ("b", "a", "c")
    assert Classification(ClassificationConfig(target="regression")).labels(texts("")) == ("number",)
    assert Classification(ClassificationConfig(target="multi-label")).labels(texts("a")) == ("a",)
    with pytest.raises(
        ExamplesError, match=r"data.train and data.dev have 1 classes \(b\): there must be at least two"
    ):
        task.labels(texts("b", "b"))
    with pytest.raises(ExamplesError, match=r"task.labels has 1 classes \(b\): list at least two, or none"):
        Classification(ClassificationConfig(labels=("b",))).labels(texts("a", "b"))


def test_an_unknown_label_is_named(encoder: Encoder):
    for target in ("class", "multi-label"):
        task = bound(encoder, texts("a", "b"), target=target, labels=("a", "b"))
        with pytest.raises(ExamplesError, match=r"label 'c' is none of the task's \(a, b\)"):
            task.features(texts("a", "c"))
    with pytest.raises(ExamplesError, match=r"task\.positive is 'c': it is none of the classes a, b"):
        bound(encoder, texts("a", "b"), positive="c")


def test_a_positive_class_of_more_than_two_is_refused(encoder: Encoder):
    """Where the classes are listed, the settings say so; here they are found."""
    with pytest.raises(
        ExamplesError, match=r"task\.positive is 'c', and is for two .*: leave it out with 3 \(a, b, c\)"
    ):
        bound(encoder, texts("a", "b", "c"), positive="c")


@pytest.mark.parametrize(("target", "label"), [("class", "neg"), ("multi-label", "pos, neg")])
def test_a_label_that_is_not_listed_is_wrong_with_a_row(target: str, label: str):
    settings = {"target": target, "labels": ("pos", "other")}
    with pytest.raises(BadRecordError, match=r"label 'neg' is not one of task.labels \(pos, other\)"):
        parse({"text": "a", "label": label}, **settings)
    assert parse({"text": "a", "label": "other"}, **settings).labels == ("other",)


def logits_and_batch(task: BoundClassification, examples: list[Text]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random logits for each slot of two examples a row, slots without an example among them; and the batch."""
    features = task.features(examples)
    rows = -(-len(examples) // 2)
    batch = fill(features, np.arange(len(features)), np.arange(len(features)) // 2, rows, Layout(24, 1)).arrays
    assert batch["real"].sum() == len(examples) < batch["real"].size
    return np.random.default_rng(0).normal(size=(*batch["real"].shape, len(task.labels))).astype(np.float32), batch


def mean_loss(task: BoundClassification, logits: np.ndarray, batch: dict[str, np.ndarray]) -> float:
    found = task.sums(jnp.asarray(logits), {name: jnp.asarray(values) for name, values in batch.items()})
    (total, weight) = found["label_loss"]
    assert float(weight) == pytest.approx(float(task.weights(batch)["label_loss"]))
    return float(total / weight)


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs(encoder: Encoder, weights: str, smoothing: float):
    examples = texts("a", "b", "c", "a", "a", "a", "c")
    task = bound(encoder, examples, class_weights=weights, label_smoothing=smoothing)
    logits, batch = logits_and_batch(task, examples)
    real = batch["real"] > 0
    ours, labels = torch.tensor(logits[real]), torch.tensor(batch["label"][real]).long()
    class_weights = torch.tensor([7 / (3 * n) for n in (4, 1, 2)]) if weights == "balanced" else torch.ones(3)
    expected = torch.nn.CrossEntropyLoss(weight=class_weights, label_smoothing=smoothing)(ours, labels)
    assert mean_loss(task, logits, batch) == pytest.approx(float(expected), rel=1e-5)
    correct, count = task.sums(jnp.asarray(logits), batch)["accuracy"]
    assert float(count) == len(examples)
    assert float(correct) == (ours.argmax(-1) == labels).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_classes_have_torchs_binary_cross_entropy(encoder: Encoder, smoothing: float):
    examples = texts("a", "a,b", "", "c,b,a", "c")
    task = bound(encoder, examples, target="multi-label", label_smoothing=smoothing)
    logits, batch = logits_and_batch(task, examples)
    real = batch["real"] > 0
    targets = [[float(label in example.labels) for label in "abc"] for example in examples]
    np.testing.assert_array_equal(batch["targets"][real], targets)
    smoothed = torch.tensor(targets) * (1 - smoothing) + smoothing / 2
    expected = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits[real]), smoothed)
    assert mean_loss(task, logits, batch) == pytest.approx(float(expected), rel=1e-5)


def test_a_number_has_torchs_squared_error(encoder: Encoder):
    examples = [Text(TEXTS[n], None, (), number) for n, number in enumerate((0.5, -2.0, 3.25))]
    task = bound(encoder, examples, target="regression")
    logits, batch = logits_and_batch(task, examples)
    real = batch["real"] > 0
    expected = torch.nn.MSELoss()(torch.tensor(logits[real][:, 0]), torch.tensor([0.5, -2.0, 3.25]))
    assert mean_loss(task, logits, batch) == pytest.approx(float(expected), rel=1e-5)


def test_extreme_logits_keep_losses_finite(encoder: Encoder):
    for target in ("class", "multi-label"):
        examples = texts("a", "b", "b")
        task = bound(encoder, examples, target=target)
        logits, batch = logits_and_batch(task, examples)
        assert math.isfinite(mean_loss(task, logits * 1e5, batch))


@pytest.mark.parametrize("target", ["class", "multi-label", "regression"])
def test_packed_rows_give_the_loss_and_gradients_of_a_row_each(encoder: Encoder, target: str):
    labels = ("a", "b,c", "c", "b", "a,b") if target == "multi-label" else ("a", "b", "c", "b", "a")
    examples = [
        Text(text, "here" if n == 1 else None, label.labels, n / 2)
        for n, (text, label) in enumerate(zip(TEXTS, texts(*labels), strict=True))
    ]
    task = bound(encoder, examples, target=target, class_weights="balanced" if target == "class" else "none")
    features = task.features(examples)
    params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))

    def loss(params, batch):
        total, weight = task.forward(params, batch, None)["label_loss"]
        return total / weight

    grad = jax.jit(jax.value_and_grad(loss))

    alone = fill(features, np.arange(5), np.arange(5), 5, Layout(16, 1)).arrays
    together = fill(features, np.arange(5), np.array([0, 1, 1, 0, 1]), 2, Layout(40, 1)).arrays
    (loss_1, grads_1), (loss_2, grads_2) = (grad(params, batch) for batch in (alone, together))
    assert float(loss_1) == pytest.approx(float(loss_2), rel=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.device_get(grads_1))) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), grads_1, grads_2)


def test_texts_and_pairs_become_sequences(encoder: Encoder):
    examples = [Text("a cat", None, ("a",)), Text("a cat", "the dog", ("b",)), Text("the " * 40, "here " * 4, ("b",))]
    single, pair, long = bound(encoder, examples).features(examples)
    tokens = [encoder.tokenizer.id_to_token(i) for i in pair.input_ids]
    assert tokens == ["[CLS]", "a", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert list(pair.token_type_ids) == [0, 0, 0, 0, 1, 1, 1]
    assert list(single.input_ids) == list(pair.input_ids[:4])
    # The longer part of a pair is cut first.
    assert len(long.input_ids) == encoder.max_length
    assert list(long.token_type_ids) == [0] * 7 + [1] * 5
    assert [feature.example for feature in (single, pair, long)] == [0, 1, 2]


def test_balanced_weights_are_scikit_learns(encoder: Encoder):
    sklearn_weights = pytest.importorskip("sklearn.utils.class_weight")
    examples = texts("b", "a", "b", "b", "c", "b", "a")
    task = bound(encoder, examples, class_weights="balanced")
    gold = [example.labels[0] for example in examples]
    theirs = sklearn_weights.compute_sample_weight("balanced", gold)
    ours = [feature.values["weight"] for feature in task.features(examples)]
    np.testing.assert_allclose(ours, theirs)
    assert np.mean(ours) == pytest.approx(1)
    # A class that is listed and has no example takes nothing from the others.
    listed = bound(encoder, examples, class_weights="balanced", labels=("a", "b", "c", "d"))
    np.testing.assert_allclose([feature.values["weight"] for feature in listed.features(examples)], theirs)


def judged(task: BoundClassification, scores) -> list[Judgement]:
    """Predictions from scores, one row each."""
    outputs = [{"scores": np.asarray(row, np.float32)} for row in scores]
    return task.decode([], [], outputs)


def test_readable_scores_are_probabilities(encoder: Encoder):
    logits = jnp.array([[[1.0, 2.0]]])
    single, several = (bound(encoder, texts("a", "b"), target=target) for target in ("class", "multi-label"))
    np.testing.assert_allclose(
        single.readable(logits).sequences["scores"][0, 0], [1 / (1 + math.e), 1 / (1 + 1 / math.e)]
    )
    np.testing.assert_allclose(
        several.readable(logits).sequences["scores"][0, 0], 1 / (1 + np.exp([-1.0, -2.0])), rtol=1e-6
    )
    number = bound(encoder, [Text("a", None, (), 1.0)], target="regression")
    assert number.readable(logits[..., :1]).sequences["scores"].tolist() == [[[1.0]]]


def test_scores_of_single_classes(encoder: Encoder):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    gold = texts("a", "b", "c", "c", "b", "a")
    task = bound(encoder, gold)
    scores = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.9, 0.1, 0.0]]
    found = judged(task, scores)
    assert [one.labels for one in found] == [("a",), ("a",), ("c",), ("b",), ("b",), ("a",)]
    truth, guess = ([one.labels[0] for one in some] for some in (gold, found))
    assert task.score(gold, found) == pytest.approx(
        {
            "accuracy": 4 / 6,
            "macro_f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
            "micro_f1": sklearn_metrics.f1_score(truth, guess, average="micro"),
            "matthews": sklearn_metrics.matthews_corrcoef(truth, guess),
        }
    )
    names, table = task.confusion(gold, found)
    assert names == ("a", "b", "c")
    np.testing.assert_array_equal(table, sklearn_metrics.confusion_matrix(truth, guess))
    (by_class,) = task.tables(gold, found)
    assert by_class.rows[0] == ["a", "0.667", "1.000", "0.800", "2"]
    report = sklearn_metrics.classification_report(truth, guess, output_dict=True)
    for name, *row in by_class.rows:
        theirs = [f"{report[name][key]:.3f}" for key in ("precision", "recall", "f1-score")]
        assert row == [*theirs, f"{report[name]['support']:.0f}"]
    assert [row[0] for row in by_class.rows] == ["a", "b", "c", "macro avg", "weighted avg"]


@pytest.mark.parametrize(("positive", "label"), [(None, "y"), ("n", "n")])
def test_two_classes_have_the_f1_of_the_positive_one(encoder: Encoder, positive: str | None, label: str):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    gold = texts("n", "y", "y", "y", "n")
    task = bound(encoder, gold, positive=positive)
    found = judged(task, [[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    truth, guess = ([one.labels[0] for one in some] for some in (gold, found))
    assert task.score(gold, found)["f1"] == pytest.approx(sklearn_metrics.f1_score(truth, guess, pos_label=label))


def test_scores_of_several_classes(encoder: Encoder):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    gold = texts("a", "a,b", "", "c")
    task = bound(encoder, gold, target="multi-label", threshold=0.6)
    found = judged(task, [[0.6, 0.59, 0], [0.7, 0.9, 0.9], [0.1, 0.1, 0.1], [0, 0.99, 0.3]])
    assert [one.labels for one in found] == [("a",), ("a", "b", "c"), (), ("b",)]
    matrices = [[[label in one.labels for label in "abc"] for one in some] for some in (gold, found)]
    truth, guess = (np.array(matrix, int) for matrix in matrices)
    assert task.score(gold, found) == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(truth, guess),
            "macro_f1": sklearn_metrics.f1_score(truth, guess, average="macro", zero_division=0),
            "micro_f1": sklearn_metrics.f1_score(truth, guess, average="micro", zero_division=0),
        }
    )
    assert task.confusion(gold, found) is None
    report = sklearn_metrics.classification_report(
        truth, guess, target_names=[*"abc"], output_dict=True, zero_division=0
    )
    ((_, _, rows),) = task.tables(gold, found)
    for name, *row in rows:
        theirs = [f"{report[name][key]:.3f}" for key in ("precision", "recall", "f1-score")]
        assert row == [*theirs, f"{report[name]['support']:.0f}"]


def test_the_mean_f1_of_several_classes_has_those_that_are_nowhere(encoder: Encoder):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    gold = texts("a", "a,b")
    task = bound(encoder, gold, target="multi-label", labels=("a", "b", "c", "d"))
    found = judged(task, [[0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.9, 0.1]])
    truth, guess = [[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 0, 1, 0]]
    theirs = sklearn_metrics.f1_score(truth, guess, average="macro", zero_division=0)
    assert task.score(gold, found)["macro_f1"] == pytest.approx(theirs) == 0.25


def test_scores_of_numbers(encoder: Encoder):
    stats = pytest.importorskip("scipy.stats")
    numbers, guesses = [1.0, 2.0, 4.0, 3.0], [1.5, 2.0, 8.0, 2.0]
    gold = [Text(f"text {n}", None, (), number) for n, number in enumerate(numbers)]
    task = bound(encoder, gold, target="regression")
    found = judged(task, [[guess] for guess in guesses])
    assert task.score(gold, found) == pytest.approx(
        {
            "pearson": stats.pearsonr(numbers, guesses).statistic,
            "spearman": stats.spearmanr(numbers, guesses).statistic,
            "mse": (0.25 + 16 + 1) / 4,
        }
    )
    assert task.tables(gold, found) == []
    worst = max(task.mistakes(gold, found), key=lambda mistake: mistake.loss)
    assert worst == ("text 2", "4", "8", 4.0)


def test_each_target_chooses_the_best_by_its_own_measure(encoder: Encoder):
    metrics = {"class": "accuracy", "multi-label": "macro_f1", "regression": "spearman"}
    for target, metric in metrics.items():
        assert bound(encoder, texts("a", "b"), target=target).metric == metric
        assert bound(encoder, texts("a", "b"), target=target, metric="micro_f1").metric == "micro_f1"


def test_a_mistake_is_the_worse_the_less_likely_the_right_class(encoder: Encoder):
    gold = [Text("sure", None, ("a",)), Text("right", None, ("b",)), Text("one", "two", ("b",))]
    task = bound(encoder, gold)
    mistakes = task.mistakes(gold, judged(task, [[0.01, 0.99], [0.2, 0.8], [0.6, 0.4]]))
    assert [(m.text, m.gold, m.predicted) for m in mistakes] == [("sure", "a", "b"), ("one | two", "b", "a")]
    assert [m.loss for m in mistakes] == pytest.approx([-math.log(0.01), -math.log(0.4)], rel=1e-5)
    several = bound(encoder, texts("a,b"), target="multi-label")
    (mistake,) = several.mistakes(texts("a,b"), judged(several, [[0.9, 0.2]]))
    assert (mistake.gold, mistake.predicted) == ("a, b", "a")
    assert mistake.loss == pytest.approx(-(math.log(0.9) + math.log(0.2)) / 2, rel=1e-5)


def test_a_right_class_of_probability_0_is_a_finite_loss(encoder: Encoder):
    task = bound(encoder, texts("a", "b"))
    (mistake,) = task.mistakes(texts("a"), judged(task, [[0.0, 1.0]]))
    assert math.isfinite(mistake.loss)


def test_config_json_says_what_transformers_wants(encoder: Encoder):
    kinds = {
        "class": "single_label_classification",
        "multi-label": "multi_label_classification",
        "regression": "regression",
    }
    for target, kind in kinds.items():
        assert bound(encoder, texts("b", "a"), target=target).configuration()["problem_type"] == kind
    found = bound(encoder, texts("b", "a")).configuration()
    assert found["id2label"] == {"0": "a", "1": "b"}
    assert found["label2id"] == {"a": 0, "b": 1}
