"""The report: baselines by hand, the table, the examples, and the picture."""

import json
import math
import pathlib

import numpy as np
import pytest
import tokenizers

from jaxbert import report
from jaxbert.finetune import report as finetuning
from jaxbert.finetune import seeds

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
WORDS = ["the", "array", "matrix", "sort", "##ed", "returns", "values", ".", "在", "文"]


@pytest.fixture
def tokenizer() -> tokenizers.Tokenizer:
    vocabulary = VOCABULARY | {word: 5 + index for index, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def batch(labels: list[int], weights: list[float]) -> dict[str, np.ndarray]:
    return {"mlm_labels": np.array([labels], np.int32), "mlm_weights": np.array([weights], np.float32)}


def test_unigram_baselines_by_hand():
    # Special tokens 0 and 1 do not count; the others count 5 + 1, 2 + 1 and 0 + 1 of 10.
    counts = np.array([100, 50, 5, 2, 0])
    found = report.unigram_baselines(counts, (0, 1), [batch([2, 3, 2], [1, 1, 0]), batch([4, 2, 0], [1, 1, 0])])
    expected = -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4
    assert found.mlm_loss == pytest.approx(expected)
    assert found.mlm_accuracy == pytest.approx(2 / 4)
    assert found.nsp_accuracy == 0.5


def test_no_targets_give_no_number():
    found = report.unigram_baselines(np.array([1, 1]), (0,), [batch([0], [0])])
    assert math.isnan(found.mlm_loss)
    assert math.isnan(found.mlm_accuracy)


def test_table_puts_each_measure_beside_its_baseline():
    baselines = report.Baselines(mlm_loss=math.log(100), mlm_accuracy=0.05)
    rows = report.table({"mlm_loss": math.log(10), "mlm_accuracy": 0.4, "nsp_accuracy": 0.75}, baselines)
    assert rows == [
        ("held-out MLM loss", "2.303", "4.605"),
        ("held-out MLM perplexity", "10.0", "100.0"),
        ("held-out MLM accuracy", "40.0%", "5.0%"),
        ("held-out NSP accuracy", "75.0%", "50.0%"),
    ]
    assert len(report.table({"mlm_loss": 1.0, "mlm_accuracy": 0.4}, baselines)) == 3


def test_examples_hide_the_longest_whole_word(tokenizer: tokenizers.Tokenizer):
    seen = []

    def predict(row: dict[str, np.ndarray]) -> np.ndarray:
        seen.append({name: values.copy() for name, values in row.items()})
        probability = np.zeros((1, 1, 15), np.float32)
        probability[0, 0, [7, 6, 5]] = 0.5, 0.3, 0.2
        return probability

    sentences = ["the", "sorted the sorted", "Sorted array returns the values.", "the 在", "matrix " * 40]
    first, second = report.fill_mask_examples(sentences, tokenizer, 4, predict, length=16)
    # "sorted" is longer and is two tokens.
    assert first.sentence == "Sorted array [MASK] the values."
    assert first.answer == "returns"
    assert first.candidates[:3] == (("matrix", 0.5), ("array", pytest.approx(0.3)), ("the", pytest.approx(0.2)))
    assert len(first.candidates) == report.NUM_CANDIDATES
    assert (second.sentence, second.answer) == ("the [MASK]", "在")
    row = seen[0]
    assert row["input_ids"].tolist() == [[2, 8, 9, 6, 4, 5, 11, 12, 3] + [0] * 7]
    assert row["mlm_positions"].tolist() == [[4]]
    assert row["sequence_ids"].sum() == 9


def test_report_page_and_picture(tmp_path: pathlib.Path):
    lines = [
        {"step": 10, "split": "train", "mlm_loss": 5.0, "mlm_accuracy": 0.1, "nsp_accuracy": 0.5},
        {"step": 20, "split": "train", "mlm_loss": None, "mlm_accuracy": 0.2, "nsp_accuracy": 0.5},
        {"step": 20, "split": "heldout", "mlm_loss": 4.5, "mlm_accuracy": 0.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", report.Baselines(6.0, 0.05))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    example = report.Example("A [MASK] .", "word", (("word", 0.9), ("array", 0.1)))
    page = report.to_markdown("tiny", [("steps", "20")], [("held-out MLM loss", "2.3", "4.6")], [example])
    assert "| held-out MLM loss | 2.3 | 4.6 |" in page
    assert "hidden: **word**; the model says: word 90%, array 10%" in page


def test_a_run_whose_metrics_could_not_be_written_is_reported(tmp_path: pathlib.Path):
    report.draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", report.Baselines(6.0, 0.05))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert finetuning.logged(tmp_path / "metrics.jsonl", "heldout", "accuracy") == []
    assert seeds.divergence(tmp_path / "metrics.jsonl") is None


def test_samples_are_read(tmp_path: pathlib.Path):
    (tmp_path / "samples.jsonl").write_text('{"text": "One."}\n{"text": "在。"}\n', encoding="utf8")
    assert report.read_samples(tmp_path / "samples.jsonl") == ["One.", "在。"]


def test_show_prints_square_brackets(capsys: pytest.CaptureFixture[str]):
    report.show([("held-out MLM loss", "2.3", "4.6")], [report.Example("A [MASK] [x].", "b", (("b", 1.0),))])
    printed = capsys.readouterr().out
    assert "A [MASK] [x]." in printed
    assert "4.6" in printed
