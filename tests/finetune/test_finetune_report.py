"""Pictures and tables of a report, whatever the labels and texts are."""

import json
import pathlib

import numpy as np
import pytest

from jaxbert.finetune.report import draw_confusion, draw_curves


@pytest.mark.parametrize("names", [["a", "b"], ["$_$", "b"], ["a_b^c", "\\frac"], [f"class {n}" for n in range(30)]])
def test_a_confusion_matrix_of_any_labels(tmp_path: pathlib.Path, names: list[str]):
    """matplotlib takes what stands between two dollars for mathematics."""
    draw_confusion(tmp_path / "confusion.png", names, np.eye(len(names), dtype=int))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_confusion_matrix_of_chinese_labels_is_drawn_without_a_warning(tmp_path: pathlib.Path):
    draw_confusion(tmp_path / "confusion.png", ["正面", "负面"], np.eye(2, dtype=int))
    assert (tmp_path / "confusion.png").is_file()


@pytest.mark.parametrize("held_out", [{"loss": 1.0, "f1": 0.5}, {"loss": 1.0, "f1": None}, {"loss": 1.0}])
def test_curves_of_measures_that_may_be_missing(tmp_path: pathlib.Path, held_out: dict):
    records = [{"split": "train", "step": 1, "loss": 2.0}, {"split": "heldout", "step": 1, **held_out}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "f1")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
