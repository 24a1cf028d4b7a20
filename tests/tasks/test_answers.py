"""Scores of answers, as the official scripts print them."""

import json
import pathlib

import pytest

from jaxbert.tasks.answers import cmrc_scores, squad_scores


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        # Case, punctuation, articles and spaces do not count.
        ("the  Denver-Broncos!", ["DenverBroncos"], 1, 1),
        ("A cat, an owl", ["cat owl"], 1, 1),
        ("The U.S.", ["us"], 1, 1),
        # Articles are whole words; punctuation goes first.
        ("theatre", ["atre"], 0, 0),
        ("a.m.", ["m"], 0, 0),
        # 1 of 2 found, of 1 right; words as often as they stand.
        ("Denver Broncos", ["Broncos"], 0, 2 / 3),
        ("to be or not to be", ["to be"], 0, 2 * 2 / 8),
        ("be", ["be be be"], 0, 2 * 1 / 4),
        ("Carolina", ["Denver"], 0, 0),
        # The best of the right answers, of each measure by itself.
        ("in 1912", ["1912", "In 1912", "the year 1912"], 1, 1),
        ("in May 1912", ["May", "1912 in June"], 0, 2 / 3),
        # SQuAD 2.0: an empty answer is right where there is none, and nowhere else.
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("the", [], 1, 1),
        ("", ["cat"], 0, 0),
        # Only ASCII punctuation is taken out.
        ("«café»", ["café"], 0, 0),
        ("naïve café", ["café"], 0, 2 / 3),
    ],
)
def test_squad(found: str, right: list[str], exact: float, f1: float):
    assert squad_scores(found, right) == pytest.approx((exact, f1))


@pytest.mark.parametrize(
    ("system", "exact", "f1"), [("bert_ensemble", "86.206", "92.196"), ("match_lstm", "67.635", "76.756")]
)
def test_official_scores_of_published_predictions(shared_data: pathlib.Path, system: str, exact: str, f1: str):
    """What evaluate-v1.1.py printed for these files."""
    folder = shared_data / "labelled" / "squad-v1.1"
    articles = json.loads((folder / "dev-v1.1.json").read_text(encoding="utf8"))["data"]
    found = json.loads((folder / "predictions" / f"{system}.json").read_text(encoding="utf8"))
    questions = [question for article in articles for part in article["paragraphs"] for question in part["qas"]]
    scores = [
        squad_scores(found.get(question["id"], ""), [answer["text"] for answer in question["answers"]])
        for question in questions
    ]
    means = [f"{100 * sum(values) / len(questions):.3f}" for values in zip(*scores, strict=True)]
    assert means == [exact, f1]


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("北京大学", ["北京大学"], 1, 1),
        # Chinese punctuation does not count, nor case.
        ("《北京，大学》。", ["北京大学"], 1, 1),
        ("NBA", ["nba"], 1, 1),
        ("1998年", ["1998-年"], 1, 1),
        # The longest common run, not what they have in common: 京大 of 4 and of 3.
        ("北京大学", ["京大楼"], 0, 2 * 2 / (4 + 3)),
        ("北大", ["北京大学"], 0, 2 * 1 / (2 + 4)),
        ("学大京北", ["北京大学"], 0, 2 * 1 / 8),
        # A Latin word or a number is one segment.
        ("1998年5月", ["1998年"], 0, 2 * 2 / (4 + 2)),
        ("1998年", ["1999年"], 0, 2 * 1 / 4),
        ("new york市", ["york市"], 0, 2 * 2 / (3 + 2)),
        ("上海", ["北京"], 0, 0),
        # The best of the right answers.
        ("京大", ["北京", "京大楼", "京大"], 1, 1),
        ("京大", ["北京", "京大楼"], 0, 2 * 2 / (2 + 3)),
        ("", ["北京"], 0, 0),
        # Punctuation that the script does not list stays.
        ("“北京", ["北京"], 1, 1),
        ("北京(市)", ["北京市"], 0, 2 * 2 / (5 + 3)),
        # Marks are segments of their own, but not within a number: ( sega ), 10.5 %, 3,000.5 m.
        ("世嘉(SEGA)", ["sega"], 0, 2 * 1 / (5 + 1)),
        ("10.5%", ["10.5"], 0, 2 * 1 / (2 + 1)),
        ("3,000.5 m", ["3,000.5"], 0, 2 * 1 / (2 + 1)),
        ("a, b", ["a"], 0, 2 * 1 / (3 + 1)),
        ("1997——", ["1997"], 0, 2 * 1 / (3 + 1)),
        # A point is where everything ends, and not in what is short for something; several are one.
        ("A.B.", ["A.B"], 0, 2 * 1 / (2 + 1)),
        ("1...2", ["1"], 0, 2 * 1 / (3 + 1)),
        ("it's", ["it"], 0, 2 * 1 / (2 + 1)),
        ("don't", ["do"], 0, 2 * 1 / (2 + 1)),
        # remove_punctuation leaves the spaces between words.
        ("iPhone 6", ["iPhone6"], 0, 0),
    ],
)
def test_cmrc(found: str, right: list[str], exact: float, f1: float):
    assert cmrc_scores(found, right) == pytest.approx((exact, f1))


def test_answers_of_real_chinese_questions_are_right(shared_data: pathlib.Path):
    articles = json.loads((shared_data / "labelled" / "cmrc2018" / "cmrc2018_trial.json").read_text(encoding="utf8"))[
        "data"
    ]
    questions = [question for article in articles for part in article["paragraphs"] for question in part["qas"]]
    assert len(questions) == 1002
    for question in questions:
        right = [answer["text"] for answer in question["answers"]]
        assert all(cmrc_scores(text, right) == (1, 1) for text in right)
