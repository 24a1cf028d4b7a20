"""Measures against scikit-learn and SciPy, on random predictions and at the edges."""

import warnings

import numpy as np
import pytest
from scipy import stats

from jaxbert.tasks import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def predictions(seed: int, classes: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Gold classes and predictions that agree in about half of the cases."""
    draw = np.random.default_rng(seed)
    gold, guess = draw.integers(0, classes, (2, count))
    return gold, np.where(draw.random(count) < 0.4, gold, guess)


# One class alone; a class that is never gold, never predicted, or neither; nothing right.
EDGES = [
    ([0, 0, 0], [0, 0, 0]),
    ([0, 0, 0], [1, 1, 0]),
    ([0, 1, 1], [1, 1, 1]),
    ([0, 1, 2], [1, 2, 0]),
    ([0, 2, 2, 3], [0, 2, 3, 3]),
    ([1], [1]),
]
CASES = [(np.array(gold), np.array(found)) for gold, found in EDGES]
CASES += [predictions(seed, classes) for seed in range(3) for classes in (2, 3, 9)]
CLASSES = 10


@pytest.mark.parametrize("case", range(len(CASES)))
def test_classes_are_measured_as_scikit_learn_does(case: int):
    gold, found = CASES[case]
    table = metrics.confusion(gold, found, CLASSES)
    names = list(range(CLASSES))
    np.testing.assert_array_equal(table, sklearn_metrics.confusion_matrix(gold, found, labels=names))
    counts = metrics.class_counts(table)
    with warnings.catch_warnings():
        # It warns of a correlation over one class.
        warnings.simplefilter("ignore")
        theirs = sklearn_metrics.precision_recall_fscore_support(gold, found, labels=names, zero_division=0)
        matthews = sklearn_metrics.matthews_corrcoef(gold, found)
    for ours, values in zip(("precision", "recall", "f1", "gold"), theirs, strict=True):
        np.testing.assert_allclose([getattr(count, ours) for count in counts], values, err_msg=ours)
    macro = sklearn_metrics.f1_score(gold, found, average="macro", zero_division=0)
    micro = sklearn_metrics.f1_score(gold, found, average="micro", zero_division=0)
    assert metrics.macro_f1(counts) == pytest.approx(macro)
    assert metrics.together(counts).f1 == pytest.approx(micro)
    assert metrics.matthews(table) == pytest.approx(matthews)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("unseen", [False, True])
def test_means_over_classes_are_those_of_scikit_learns_report(case: int, unseen: bool):
    gold, found = CASES[case]
    counts = metrics.class_counts(metrics.confusion(gold, found, CLASSES))
    labels = list(range(CLASSES)) if unseen else None
    theirs = sklearn_metrics.classification_report(gold, found, labels=labels, output_dict=True, zero_division=0)
    rows = [
        [name, *(f"{theirs[name][key]:.3f}" for key in ("precision", "recall", "f1-score")), str(len(gold))]
        for name in ("macro avg", "weighted avg")
    ]
    assert metrics.average_rows(counts, unseen) == rows


def test_nothing_has_no_measure_above_0():
    nothing = metrics.Counts(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)
    assert metrics.together([]) == nothing
    assert metrics.macro_f1([]) == metrics.macro_f1([nothing]) == 0
    assert metrics.average_rows([])[1] == ["weighted avg", "0.000", "0.000", "0.000", "0"]
    assert metrics.matthews(np.zeros((3, 3), np.int64)) == 0


@pytest.mark.parametrize("kind", ["normal", "ties", "shifted", "two", "outlier"])
def test_correlations_are_those_of_scipy(kind: str):
    draw = np.random.default_rng(0)
    one = draw.normal(size=50)
    other = one + draw.normal(size=50)
    if kind == "ties":
        one, other = np.round(one), np.round(other)
    elif kind == "shifted":
        other = 1e4 - 3 * other
    elif kind == "two":
        one, other = one[:2], other[:2]
    elif kind == "outlier":
        one[0] = 1e6
    assert metrics.pearson(one, other) == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-12)
    assert metrics.spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [(0.1, None), (0.1, 0.7), (1 / 3, 0.3), (5.0, 5.0), (-0.7, 0.1)])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_what_does_not_vary_correlates_with_nothing(one: float, other: float | None, count: int):
    """The mean of equal numbers is not always that number to the last bit."""
    constant = np.full(count, one)
    varied = np.random.default_rng(0).normal(size=count) if other is None else np.full(count, other)
    for measure in (metrics.pearson, metrics.spearman):
        assert measure(constant, varied) == pytest.approx(0, abs=1e-12)
        assert measure(varied, constant) == pytest.approx(0, abs=1e-12)


def test_rows_of_a_report():
    counts = [metrics.Counts(1, 3, 2), metrics.Counts(0, 0, 1234)]
    assert metrics.report_rows(["a", "b"], counts) == [
        ["a", "0.333", "0.500", "0.400", "2"],
        ["b", "0.000", "0.000", "0.000", "1,234"],
    ]
    assert len(metrics.REPORT_COLUMNS) == 5
