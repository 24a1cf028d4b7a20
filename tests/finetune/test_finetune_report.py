"""Pictures and tables of a report, whatever the labels and texts are."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from jaxbert.finetune.report import draw_confusion, draw_curves, draw_seeds, write
from jaxbert.tasks.task import BoundTask, Mistake


@pytest.mark.parametrize("names", [["a", "b"], ["$_$", "b"], ["a_b^c", "\\frac"], [f"class {n}" for n in range(30)]])
def test_a_confusion_matrix_of_any_labels(tmp_path: pathlib.Path, names: list[str]):
    """matplotlib takes what stands between two dollars for mathematics."""
    draw_confusion(tmp_path / "confusion.png", names, np.eye(len(names), dtype=int))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("labels", "numbered"),
    [(["good", "naïve"], False), (["正面", "bad"], True), (["bad", "W" * 60], False), (["x" * 61, "bad"], True)],
)
def test_classes_that_cannot_be_drawn_are_numbered(tmp_path: pathlib.Path, labels: list[str], numbered: bool):
    """matplotlib's font has no Chinese, and warns of boxes in their place; a long name leaves no room for the matrix."""

    class Bare(BoundTask):
        loss_weights = {"label_loss": 1.0}  # noqa: RUF012
        metric = "accuracy"

        def confusion(self, examples, predictions):
            return labels, np.eye(2, dtype=int)

    Bare.__abstractmethods__ = frozenset()
    (tmp_path / "metrics.jsonl").touch()
    splits = {"dev": ([], {"loss": 1.0, "accuracy": 0.5}, [])}
    write(tmp_path, "bare", Bare(), splits, untrained={}, facts={}, warnings=())
    report = (tmp_path / "report.md").read_text(encoding="utf8")
    assert ("## Numbers in confusion.png" in report) is numbered
    assert (f"| 0 | {labels[0]} |\n| 1 | {labels[1]} |" in report) is numbered
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf8"))["confusion"]["labels"] == labels
    height, width, _ = np.asarray(PIL.Image.open(tmp_path / "confusion.png")).shape
    assert 0.9 < height / width < 1.1
    # The two dark fields of the matrix, however much room its names take.
    image = np.asarray(PIL.Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
    assert (image[..., 2] - image[..., 0] > 80).sum() > 0.01 * height * width


def test_more_classes_than_a_picture_has_room_for_are_said(tmp_path: pathlib.Path):
    class Many(BoundTask):
        loss_weights = {"label_loss": 1.0}  # noqa: RUF012
        metric = "accuracy"

        def confusion(self, examples, predictions):
            return list(map(str, range(81))), np.eye(81, dtype=int)

    Many.__abstractmethods__ = frozenset()
    (tmp_path / "metrics.jsonl").touch()
    write(tmp_path, "many", Many(), {"dev": ([], {"loss": 1.0}, [])}, untrained={}, facts={}, warnings=("odd",))
    assert not (tmp_path / "confusion.png").exists()
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))
    assert content["warnings"] == ["odd", "no confusion.png: 81 classes are too many for a picture"]
    assert len(content["confusion"]["counts"]) == 81


def test_numbers_that_are_not_finite_are_null(tmp_path: pathlib.Path):
    """A reader of JSON knows neither NaN nor Infinity."""

    class Odd(BoundTask):
        loss_weights = {"label_loss": 1.0}  # noqa: RUF012
        metric = "spearman"

        def mistakes(self, examples, predictions):
            return [Mistake("a text", "1", "2", np.inf)]

    Odd.__abstractmethods__ = frozenset()
    (tmp_path / "metrics.jsonl").touch()
    measures = {"loss": np.float64(np.nan), "spearman": 0.5}
    write(tmp_path, "odd", Odd(), {"dev": ([], measures, [])}, untrained=measures, facts={}, warnings=())
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf8"), parse_constant=pytest.fail)
    assert content["measures"]["dev"] == content["untrained"] == {"loss": None, "spearman": 0.5}
    assert content["mistakes"]["worst"][0]["loss"] is None


@pytest.mark.parametrize("held_out", [{"loss": 1.0, "f1": 0.5}, {"loss": 1.0, "f1": None}, {"loss": 1.0}])
def test_curves_of_measures_that_may_be_missing(tmp_path: pathlib.Path, held_out: dict):
    records = [{"split": "train", "step": 1, "loss": 2.0}, {"split": "heldout", "step": 1, **held_out}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "f1")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_with_one_evaluation_is_seen(tmp_path: pathlib.Path):
    """Its colour is in both panels, beside the legends, which are drawn without a marker where there is none."""
    records = [{"split": "train", "step": n, "loss": 2.0} for n in (1, 9)]
    records.append({"split": "heldout", "step": 9, "loss": 1.0, "f1": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_seeds({"seed 0": tmp_path / "metrics.jsonl"}, tmp_path / "curves.png", "f1")
    right = np.asarray(PIL.Image.open(tmp_path / "curves.png").convert("RGB"))[:, 600:]
    # C0 of matplotlib.
    rows, _ = np.nonzero((np.abs(right.astype(int) - (0x1F, 0x77, 0xB4)) < 8).all(-1))
    # The legend's marker and the point's: one of them alone is less than 20 rows high.
    assert np.ptp(rows) > 50


@pytest.mark.parametrize(
    ("weights", "shown"), [({"tag_loss": 1.0}, False), ({"tag_loss": 1.0, "other_loss": 1.0}, True)]
)
def test_a_term_that_is_the_loss_is_not_shown_again(tmp_path: pathlib.Path, weights: dict, shown: bool):
    class Bare(BoundTask):
        loss_weights = weights
        metric = "f1"

    Bare.__abstractmethods__ = frozenset()
    (tmp_path / "metrics.jsonl").touch()
    splits = {"dev": ([], {"loss": 1.0, "tag_loss": 1.0, "f1": 0.5}, [])}
    write(tmp_path, "bare", Bare(), splits, untrained={}, facts={}, warnings=())
    assert ("| tag loss |" in (tmp_path / "report.md").read_text()) is shown
