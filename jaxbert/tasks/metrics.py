"""Measures of predictions, as scikit-learn and SciPy define them (the tests compare them with these)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Counts(NamedTuple):
    """What was found of a class or type."""

    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing is correct."""
        return 2 * self.correct / (self.predicted + self.gold) if self.correct else 0.0


def confusion(gold: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "C C"]:
    """How often each class (row) was taken for each (column)."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (gold, predicted), 1)
    return table


def class_counts(table: Int[np.ndarray, "C C"]) -> list[Counts]:
    """Counts of each class, from a confusion table."""
    columns = zip(np.diag(table), table.sum(0), table.sum(1), strict=True)
    return [Counts(int(correct), int(predicted), int(gold)) for correct, predicted, gold in columns]


def together(counts: Sequence[Counts]) -> Counts:
    """The sums over classes: their precision, recall and F1 are the micro-averages."""
    return Counts(*(sum(values) for values in zip(*counts, strict=True))) if counts else Counts(0, 0, 0)


def macro_f1(counts: Sequence[Counts], unseen: bool = False) -> float:
    """Mean F1 over the classes that are in the gold labels or in the predictions.

    `unseen`: over the others too, whose F1 is 0, as scikit-learn has it of several labels for each example.
    """
    seen = [count.f1 for count in _seen(counts, unseen)]
    return sum(seen) / len(seen) if seen else 0.0


def _seen(counts: Sequence[Counts], unseen: bool) -> list[Counts]:
    return [count for count in counts if unseen or count.gold or count.predicted]


def matthews(table: Int[np.ndarray, "C C"]) -> float:
    """Matthews' correlation of several classes (Gorodkin 2004); 0 where gold or prediction is one class alone."""
    gold, predicted = (table.sum(axis).astype(np.float64) for axis in (1, 0))
    total = gold.sum()
    covariance = np.trace(table) * total - gold @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float(covariance / math.sqrt(spread)) if spread else 0.0


def pearson(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation; 0 where one of both does not vary."""
    # The mean of equal numbers may be off by a rounding.
    if not np.ptp(one) or not np.ptp(other):
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    spread = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / spread if spread else 0.0


def spearman(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, of equal values the mean rank."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def report_rows(names: Sequence[str], counts: Sequence[Counts]) -> list[list[str]]:
    """Rows of a report: name, precision, recall, F1, support."""
    return [
        [name, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.gold:,}"]
        for name, one in zip(names, counts, strict=True)
    ]


def average_rows(counts: Sequence[Counts], unseen: bool = False) -> list[list[str]]:
    """Rows of a report: the means over classes, each as one and by its support, as scikit-learn's classification_report has them.

    `unseen`: as in `macro_f1`.
    """
    seen = _seen(counts, unseen)
    gold = np.array([one.gold for one in seen], np.float64)
    table = np.array([[one.precision, one.recall, one.f1] for one in seen]).reshape(-1, 3)
    shares = {"macro avg": np.ones(len(seen)) / max(len(seen), 1), "weighted avg": gold / max(gold.sum(), 1)}
    return [[name, *(f"{mean:.3f}" for mean in share @ table), f"{gold.sum():,.0f}"] for name, share in shares.items()]


REPORT_COLUMNS = ("", "precision", "recall", "F1", "support")
