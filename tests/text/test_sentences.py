"""Sentence splitting: a hand-written table, nothing lost, linear time on hostile text, real text."""

import gzip
import pathlib
import random
import re

import pytest

from jaxbert.text.sentences import MAX_SENTENCE_CHARACTERS, split_sentences

# "|" marks where a sentence ends; the text is the case without it.
CASES = [
    "",
    "One sentence without a stop",
    "One.| Two.| Three.",
    "Is it?| Yes!| It is.",
    "Really?!| Yes!!!| No...",
    # Abbreviations, titles, initials
    "Mr. Holt met Dr. Franks and Mrs. Webb.| They left.",
    "J. R. R. Tolkien wrote it.| It sold well.",
    "It was J. A. Smith who came.| He sat.",
    "J.R.R. Tolkien and J.-P. Sartre met.| They talked.",
    "Use a list, e.g. Python's, i.e. The one you know.| Then stop.",
    "The U.S. Army came.| It went.",
    "He lives in the U.S.| He likes it.",
    "See Fig. 3 and Figs. 4.| They differ.",
    "Take No. 5 of Vol. II.| Then go.",
    "He said no.| Then he left.",
    "It was Arsenal vs. Chelsea.| We lost.",
    "On Jan. 3 we met at St. Mary's.| It rained.",
    "Smith et al. (2018) showed it.| We agree.",
    "Acme Inc. Chairman Lee spoke.| Nobody listened.",
    "He works at Acme Inc.| They pay well.",
    "She has a Ph.D. in physics.| She teaches.",
    "Plan B.| It failed.",
    "Apples, pears, etc.| We ate them.",
    "We met at 5 p.m.| Then we ate.",
    "(Cf. Smith.)| Next.",
    # Numbers
    "Pi is 3.14 and rent 1,000.50 a month.| Version 1.2.3 is out.",
    "It was 1998.| We won 3.| Then 4.",
    "1. Introduction",
    "2.1. The model has 12 layers.| It is deep.",
    "Visit example.com or mail a.b@c.org.| Thanks.",
    # Ellipses
    "Wait... what is it?| I see...| Nothing.",
    "It was Mr...| Nobody knew.",
    "Well … maybe.| So…| But no.",
    # Quotes and brackets
    '"Stop." he said.| "Go."| She went.',
    '"Where?" he asked.| "There!"| “Here,” she said.',
    "“Stop!” he said.| ‘Why?’| She smiled.",
    "(See above.)| Next [as in 3.]| Last.",
    "«Non.»| «Si.»",
    '"I know." -- he smiled -- "You do."| Then he left.',
    "He said it. (he was wrong.)| And left.",
    "Was it _really._| She wondered.",
    # Tokenised text
    'It rained .| He said : " No . "',
    # Line breaks
    "No stop|\nNext line|\n\n  \r\nLast",
    "Unicode\u2028|separator\u0085|too",
    # Chinese
    "今天天气很好。|我们去公园吧！|你去吗？|好｡|走",
    "他说：“我不去。”|她走了。",
    "“好！”|他说，“走吧。”，然后走了。",
    "（见上。）|下一句。",
    "他说「好。」|然后走了……|后来『他回来了……』|完。",
    "我……|不知道。",
    "等等…还有吗？！|没有！！！|好～",
    "房间不错.|下次再来!|好吗?|好",
    "价格是3.5元。|版本1.2.3发布了。",
    "他说（对。）。|走了。",
    # Japanese
    "「行こう。」と彼は言った。|雨だった。",
    "これは本です。|あれは何ですか？|「ペンだ！」|そうか。",
    "数は３．１４である．|次に進む．",
    "本当？？|うん…そう。",
    # Mixed
    "我用 Python 3.11。|It works.| 很好！|Thanks!",
    "他住在U.S.| 他说。",
    "这是e.g.一个例子。|好。",
    "Emoji ends it!| 😀 Really.| 😀",
    "Действительно ли?| Да.| Нет.",
    "هل هذا؟| نعم.",
]


@pytest.mark.parametrize("case", CASES)
def test_table(case: str):
    expected = [piece.strip() for piece in case.split("|") if piece.strip()]
    assert split_sentences(case.replace("|", "")) == expected


def without_space(text: str) -> str:
    return "".join(text.split())


def assert_sound(text: str):
    found = split_sentences(text)
    assert without_space("".join(found)) == without_space(text)
    for sentence in found:
        assert sentence == sentence.strip() != ""
        assert len(sentence) <= MAX_SENTENCE_CHARACTERS


def test_nothing_is_lost():
    parts = [*".!?…。！？｡．؟।\"'”’)]」_*~ \t\n\r\u3000\xa0\x1c\u200b\ufeff"]
    parts += [
        "a",
        "A",
        "I",
        "Mr",
        "e.g",
        "U.S",
        "No",
        "3",
        "１",
        "好",
        "と",
        "の",
        "😀",
        "é",
        "e\u0301",
        "...",
        "……",
        " ",
        " ",
    ]
    generator = random.Random(0)
    for _ in range(3000):
        assert_sound("".join(generator.choices(parts, k=generator.randrange(40))))


@pytest.mark.parametrize("unit", [".", '"', "a", "a b", " ", "好"])
def test_a_million_characters_of_one_kind(unit: str):
    # Quadratic time would take hours, so that the test ends is the check.
    assert_sound(unit * (1_000_000 // len(unit)))


@pytest.mark.parametrize("unit", ['."', ". ", "A. ", "。”と", "a. A", ". ((((", "x\u3000", "1.1", "e.g. ", "!a", ".\n"])
def test_many_candidates(unit: str):
    assert_sound(unit * (200_000 // len(unit)))


def test_space_between_stop_and_word_is_scanned_once():
    assert split_sentences("One." + " " * 1_000_000 + "Two" + " " * 1_000_000) == ["One.", "Two"]


def test_a_long_sentence_is_cut_at_white_space():
    words = [f"word{i}" for i in range(5000)]
    found = split_sentences(" ".join(words))
    assert len(found) == 5
    assert " ".join(found).split() == words
    found = split_sentences("short " + "x" * 25_000)
    assert [len(sentence) for sentence in found] == [5, 10_000, 10_000, 5_000]


@pytest.mark.parametrize(
    ("file", "shortest_mean", "longest_mean"),
    [("novels/Eliot_Daniel_1876.txt.gz", 100, 130), ("zh-reviews/pos.txt.gz", 20, 40)],
)
def test_real_text(shared_data: pathlib.Path, file: str, shortest_mean: int, longest_mean: int):
    text = gzip.decompress((shared_data / "text" / file).read_bytes()).decode()
    found = split_sentences(text)
    assert without_space("".join(found)) == without_space(text)
    assert shortest_mean < sum(map(len, found)) / len(found) < longest_mean
    # Some lines of the novel are wrapped behind a title.
    assert sum(sentence.endswith(("Mr.", "Mrs.")) for sentence in found) == len(re.findall(r"Mrs?\.\s*\n", text))
