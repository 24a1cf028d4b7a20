"""Span answering: SQuAD's files, windows, the decoding of made-up logits, and the loss beside torch's."""

import dataclasses
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest
import torch
from made_task_encoders import byte_level, encoder_of, outputs_of, parameters_of, placed, wordpiece
from tokenizers import Tokenizer

from jaxbert.data.labelled import read_records
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ExamplesConfig, SpanConfig
from jaxbert.tasks.span import Answer, Answered, BoundSpanAnswering, Question, SpanAnswering
from jaxbert.text.wordpiece import SPECIAL, bert_tokenizer

SMALL = SpanConfig(stride=4, max_question_length=8, n_best=5, max_answer_length=4)


MOVED = "have no answer that begins where their file says"


def asked(question: str, context: str, *answers: str) -> Question:
    """With answers where they first stand."""
    found = [(text, context.index(text)) for text in answers]
    record = Record({"question": question, "context": context, "answers": found}, "train.jsonl:1")
    return SpanAnswering(SpanConfig()).parse(record)


def bind(
    tokenizer: Tokenizer, max_length: int = 24, may_be_empty: bool = False, settings: SpanConfig = SMALL, **changed
) -> BoundSpanAnswering:
    task = SpanAnswering(dataclasses.replace(settings, **changed))
    train = [asked("q", "context")] if may_be_empty else [asked("q", "context", "context")]
    return task.bind(task.labels(train), train, encoder_of(tokenizer, max_length))


def letters() -> Tokenizer:
    """A piece for each word of one letter."""
    return wordpiece("who", "what")


# Files.


def squad(path: pathlib.Path, *questions: dict, context: str = "Ada saw Paris. Paris saw Ada.") -> list[Question]:
    content = {
        "version": "v2.0",
        "data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }
    path.write_text(json.dumps(content), encoding="utf8")
    task = SpanAnswering(SpanConfig())
    return [
        task.parse(record)
        for record in read_records(str(path), ExamplesConfig(), lambda place, reason: pytest.fail(f"{place} {reason}"))
    ]


def test_squad_1_and_2(tmp_path: pathlib.Path):
    first, second, third = squad(
        tmp_path / "dev.json",
        {
            "id": "1",
            "question": " Who saw Paris? ",
            "answers": [
                {"text": text, "answer_start": start} for text, start in (("Ada", 0), ("Ada", 0), ("Paris", 15))
            ],
        },
        # What might be an answer to an impossible question is none.
        {
            "id": "2",
            "question": "Who saw Rome?",
            "is_impossible": True,
            "answers": [],
            "plausible_answers": [{"text": "Ada", "answer_start": 0}],
        },
        {"id": "3", "question": "Who?", "is_impossible": False, "answers": [{"text": "Ada", "answer_start": 25}]},
    )
    assert (first.identity, first.question) == ("1", "Who saw Paris?")
    assert first.answers == (("Ada", 0), ("Paris", 15))
    assert (second.answers, second.context) == ((), "Ada saw Paris. Paris saw Ada.")
    assert third.answers == (("Ada", 25),)


@pytest.mark.parametrize(
    ("text", "start", "place"),
    [
        ("Paris", 8, 8),
        ("Paris", 15, 15),
        # Off, and it stands once, twice, not at all.
        ("Paris saw", 14, 15),
        ("Paris", 9, None),
        ("Rome", 8, None),
        ("Ada saw", -1, 0),
        ("Ada.", 1000, 25),
    ],
)
def test_where_an_answer_stands(tmp_path: pathlib.Path, text: str, start: int, place: int | None):
    answers = [{"text": text, "answer_start": start}]
    (question,) = squad(tmp_path / "dev.json", {"id": "1", "question": "q", "answers": answers})
    assert question.answers == ((text, place),)
    found = [odd.split(":")[0] for odd in SpanAnswering(SpanConfig()).oddities(question)]
    missing = "have no answer that stands in their context, or stands there once"
    assert found == ([missing] if place is None else [] if place == start else [MOVED])


def test_an_answer_that_is_right_somewhere_is_not_odd(tmp_path: pathlib.Path):
    wrong = [("Rome", 8), ("Paris saw", 14)]
    answers = [{"text": text, "answer_start": start} for text, start in (*wrong, ("Paris", 8))]
    (question,) = squad(tmp_path / "dev.json", {"id": "1", "question": "q", "answers": answers})
    assert list(SpanAnswering(SpanConfig()).oddities(question)) == []


def test_a_stride_that_a_short_model_has_no_room_for_is_said():
    no_room = "which leaves no room in sequences of 24 tokens"
    long_question = bind(letters(), stride=4, max_question_length=13)
    assert long_question.warnings == [f"task.max_question_length is 13, {no_room}: it is 12"]
    assert (bind(letters(), stride=4).stride, bind(letters(), stride=4).warnings) == (4, [])
    # 24 tokens, of which 8 are the question's and 3 special.
    far = bind(letters(), stride=13)
    assert (far.stride, far.warnings) == (6, [f"task.stride is 13, {no_room}: it is 6"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": " "}, "question is empty"),
        ({"context": ""}, "context is empty"),
        ({"context": None}, "context is None"),
        ({"answers": [["Ada"]]}, "is no answer"),
        ({"answers": [["Ada", "0"]]}, "is no answer"),
        ({"answers": [[0, "Ada"]]}, "is no answer"),
        ({"answers": [["", 0]]}, "is no answer"),
        ({"answers": [{"text": "Ada"}]}, "is no answer"),
        ({"answers": [None]}, "is no answer"),
        # No list at all.
        ({"answers": 3}, "answer"),
        # As long as each other the lists must be.
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "answers are {'text'"),
        ({"answers": {"text": ["Ada"]}}, "answers are {'text'"),
        ({"answers": {"text": ["Ada"], "answer_start": ["0"]}}, "is no answer"),
        ({"answers": {}}, "answers are {}"),
        ({"answers": None}, "answer"),
    ],
)
def test_bad_questions_are_told(values, message: str):
    whole = {"question": "Who?", "context": "Ada saw Paris.", "answers": [["Ada", 0]]}
    with pytest.raises(BadRecordError, match=message):
        SpanAnswering(SpanConfig()).parse(Record(whole | values, "a:1"))


def test_rows_may_have_answers_of_either_form():
    task = SpanAnswering(SpanConfig())
    row = {"question": "Who?", "context": "Ada saw Paris."}
    squads, lists = {"text": "Ada", "answer_start": 0}, {"text": ["Ada"], "answer_start": [0]}
    for answers in ([["Ada", 0]], [("Ada", 0)], [{"text": "Ada", "start": 0}], [squads], squads, lists):
        assert task.parse(Record({**row, "answers": answers}, "a:1")).answers == (("Ada", 0),)
    assert task.parse(Record({**row, "answers": {"text": [], "answer_start": []}}, "a:1")).answers == ()
    assert task.parse(Record({**row, "impossible": True}, "a:1")).answers == ()


@pytest.mark.parametrize("name", ["question", "context", "answers"])
def test_the_columns_that_are_wanted_are_named(name: str):
    row = {"question": "Who?", "context": "Ada saw Paris.", "answers": []}
    row = {("other" if key == name else key): value for key, value in row.items()}
    there = ", ".join(map(repr, row))
    wanted = (
        f"^a:1: has no column '{name}': name the columns 'question', 'context' and 'answers', which are now {there}$"
    )
    with pytest.raises(ExamplesError, match=wanted):
        SpanAnswering(SpanConfig()).parse(Record(row, "a:1"))
    with pytest.raises(BadRecordError, match=f"^has no '{name}'$"):
        SpanAnswering(SpanConfig()).parse(Record(row, "a:1", own_columns=True))


@pytest.mark.parametrize(
    ("answers", "characters", "odd"),
    [
        (("北京", "3 月", "12"), False, True),
        (("北京", "3 月", "12"), True, False),
        (("Peking", "12", "北京"), False, False),
        (("Paris",), False, False),
        ((), False, False),
    ],
)
def test_chinese_that_is_scored_as_english_is_odd(answers: tuple[str, ...], characters: bool, odd: bool):
    train = [asked("q", f"{answer} 在", answer) for answer in answers] + [asked("q", "没有")]
    bound = SpanAnswering(SpanConfig(characters=characters)).bind(
        ("LABEL_0", "LABEL_1"), train, encoder_of(letters(), 512)
    )
    assert [warning.split(",")[0] for warning in bound.warnings] == ["most answers of data.train are Chinese"] * odd
    assert bound.configuration() == {"no_answer_is_possible": True}


# Windows.

CONTEXT = " ".join("abcdefghijklmnopqrstuvwxyz0123456789" * 2)
CHINESE = "二零零八年，北京举办了奥运会。姚明是中国的旗手，刘翔退出了比赛。"
ACCENTS = "Rene\u0301 🙂 met A\u030angstro\u0308m (and co.) in Zürich 👩‍👩‍👧 on  \t 3 May 1901, so they say."


def characters(text: str) -> Tokenizer:
    """Chinese: a piece for each character."""
    return bert_tokenizer({piece: n for n, piece in enumerate(dict.fromkeys([*SPECIAL, *text]))}, True)


@pytest.mark.parametrize(
    ("tokenizer", "context", "answers"),
    [
        (letters(), CONTEXT, ("a", "b c", "y z 0 1", "8 9")),
        (byte_level(), CONTEXT, ("a", "b c", "y z")),
        (characters(CHINESE), CHINESE, ("二零零八年", "北京", "姚明", "比赛", "。")),
        (byte_level(*["北京", "姚明"] * 9), CHINESE, ("北京", "姚明")),
        (wordpiece("zurich", "rene", "may", "1901"), ACCENTS, ("Rene\u0301", "3 May", "Zürich", "co", "A\u030ang")),
        (byte_level(*[ACCENTS] * 9), ACCENTS, ("Rene\u0301", "🙂", "Zürich", "👩‍👩‍👧", "3 May 1901")),
    ],
)
def test_every_answer_is_whole_in_a_window(tokenizer: Tokenizer, context: str, answers: tuple[str, ...]):
    questions = [asked("who?", context, answer) for answer in answers]
    # Windows repeat 10 tokens, as many as the longest of these answers.
    bound = bind(tokenizer, stride=10)
    features = bound.features(questions)
    assert all(len(feature.input_ids) <= 24 for feature in features)
    assert sorted({feature.example for feature in features}) == list(range(len(answers)))
    assert [feature.example for feature in features] == sorted(feature.example for feature in features)
    for n, answer in enumerate(answers):
        windows = [feature for feature in features if feature.example == n]
        assert len(windows) > 1
        spans = [feature.positions["span"] for feature in windows]
        texts = [
            context[feature.host["offsets"][start][0] : feature.host["offsets"][end][1]]
            for feature, (start, end) in zip(windows, spans, strict=True)
            if (start, end) != (0, 0)
        ]
        # To the whole pieces that the answer is in; WordPiece drops marks at their ends.
        assert texts, answer
        assert set(texts) <= {answer, answer.rstrip("\u0301"), "A\u030angstro\u0308m"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a b", [(3, 4), (0, 0)]),
        # Whole in both, cut at the end of the first, cut at the start of the second.
        ("q r s t", [(19, 22), (3, 6)]),
        ("t u", [(0, 0), (6, 7)]),
        ("p q", [(18, 19), (0, 0)]),
        ("o p q r s t u", [(0, 0), (0, 0)]),
    ],
)
def test_an_answer_that_a_window_cuts_is_none_there(answer: str, expected: list[tuple[int, int]]):
    """[CLS] who [SEP] and the letters from a to t; then, 4 of them once more, from q on."""
    features = bind(letters()).features([asked("who", "a b c d e f g h i j k l m n o p q r s t u v w", answer)])
    assert [feature.positions["span"] for feature in features] == expected


def test_windows_overlap_and_have_every_token_of_the_context_and_the_question():
    bound, question = bind(letters(), stride=6), asked("what who", CONTEXT, "a")
    features = bound.features([question])
    whole = bound.encoder.tokenizer.encode("what who", CONTEXT)
    read: list[tuple[int, int]] = []
    for feature in features:
        assert feature.input_ids[:4] == whole.ids[:4]
        assert feature.token_type_ids == [0] * 4 + [1] * (len(feature.input_ids) - 4)
        inside = np.flatnonzero(feature.host["inside"])
        # Between question and last [SEP].
        assert inside.tolist() == list(range(4, len(feature.input_ids) - 1))
        read.append((feature.host["offsets"][inside[0]][0], feature.host["offsets"][inside[-1]][1]))
    # A letter and a space are two characters: windows repeat 6 tokens, and the last one ends where the context does.
    assert (read[0][0], read[-1][1]) == (0, len(CONTEXT))
    assert all(before[1] - after[0] == 2 * 6 - 1 for before, after in itertools.pairwise(read))


def test_long_questions_are_cut_and_leave_room():
    bound = bind(letters())
    (feature, *_) = bound.features([asked("a b c d e f g h i j k l m n o p q r s t u v w x y z", CONTEXT, "z")])
    (same, *_) = bound.features([asked("a b c d e f g h", CONTEXT, "z")])
    assert feature.input_ids == same.input_ids
    assert feature.host["inside"].sum() == 24 - 8 - 3


def test_no_answer_points_at_the_first_token_and_an_answer_that_is_nowhere_weighs_nothing():
    lost = Question("1", "who", "a b c", (("x", None),))
    none, found, second = (
        asked("who", "a b c"),
        asked("who", "a b c", "b"),
        Question("2", "who", "a b", (("x", None), ("b", 2))),
    )
    features = bind(letters()).features([none, lost, found, second])
    assert [feature.positions["span"] for feature in features] == [(0, 0), (0, 0), (4, 4), (4, 4)]
    assert [feature.values["weight"] for feature in features] == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("answer", ["b ", " b", " b c ", "b\u200b"])
def test_spaces_around_an_answer_do_not_make_it_none(answer: str):
    """SQuAD has such answers; the tokenizer has no token for their ends."""
    (feature,) = bind(letters()).features([asked("who", "a b c b\u200b d", answer)])
    first, last = feature.positions["span"]
    assert first >= 3
    assert feature.host["inside"][[first, last]].all()
    assert (
        answer.strip(" \u200b")
        in "a b c b\u200b d"[feature.host["offsets"][first][0] : feature.host["offsets"][last][1]]
    )


@pytest.mark.parametrize(
    ("name", "vocabulary", "step"),
    [("squad-v1.1/dev-v1.1.json", "bert-base-uncased", 20), ("cmrc2018/cmrc2018_trial.json", "bert-base-chinese", 1)],
)
def test_real_answers_are_in_windows(shared_data: pathlib.Path, name: str, vocabulary: str, step: int):
    """All that are shorter than what two windows share."""
    lines = (shared_data / "vocab" / f"{vocabulary}-vocab.txt").read_text(encoding="utf8").splitlines()
    tokenizer = bert_tokenizer({piece: n for n, piece in enumerate(lines)}, True)
    task, questions = SpanAnswering(SpanConfig()), []
    records = read_records(
        str(shared_data / "labelled" / name), ExamplesConfig(), lambda place, reason: pytest.fail(place)
    )
    for record in itertools.islice(records, 0, None, step):
        # Two questions of the Chinese file are empty.
        if record.values["question"].strip():
            questions.append(task.parse(record))
    assert len(questions) > 500
    bound = task.bind(("LABEL_0", "LABEL_1"), questions, encoder_of(tokenizer, 384))
    found: dict[int, set[str]] = {}
    for feature in bound.features(questions):
        start, end = feature.positions["span"]
        if start:
            offsets = feature.host["offsets"]
            text = questions[feature.example].context[offsets[start][0] : offsets[end][1]]
            found.setdefault(feature.example, set()).add(text)
    short = [n for n, one in enumerate(questions) if min(len(text) for text, _ in one.answers) < 100]
    assert [questions[n].answers for n in short if n not in found] == []
    # The others are a part of a word, of which there is the whole one's token.
    exact = sum(not found[n].isdisjoint({text for text, _ in questions[n].answers}) for n in short if n in found)
    assert exact > 0.98 * len(short)


# Decoding.


def logits(feature, starts: dict[int, float], ends: dict[int, float], rest: float = -9.0) -> dict[str, np.ndarray]:
    found = {name: np.full(len(feature.input_ids), rest, np.float32) for name in ("start", "end")}
    for name, some in (("start", starts), ("end", ends)):
        for place, value in some.items():
            found[name][place] = value
    return found


def decoded(
    bound: BoundSpanAnswering, question: Question, starts: dict[int, float], ends: dict[int, float]
) -> Answered:
    (feature,) = bound.features([question])
    (found,) = bound.decode([question], [feature], [logits(feature, starts, ends)])
    return found


# [CLS] who [SEP] a b c d e f [SEP]: a is at 3, f at 8.
QUESTION = asked("who", "a b c d e f", "b")


@pytest.mark.parametrize(
    ("starts", "ends", "text"),
    [
        ({4: 5.0}, {6: 5.0}, "b c d"),
        ({4: 5.0}, {4: 5.0}, "b"),
        # An end before its start is none.
        ({6: 5.0, 4: 3.0}, {5: 5.0}, "b c"),
        # Nor is an answer of more than 4 tokens.
        ({3: 5.0, 4: 3.0}, {7: 5.0}, "b c d e"),
        ({3: 5.0}, {6: 4.0, 7: 5.0}, "a b c d"),
        # Outside the context there is no answer: [CLS], question, [SEP].
        ({0: 9.0, 1: 9.0, 2: 9.0, 9: 9.0, 5: 1.0}, {0: 9.0, 1: 9.0, 2: 9.0, 9: 9.0, 5: 1.0}, "c"),
    ],
)
def test_the_best_span(starts: dict[int, float], ends: dict[int, float], text: str):
    found = decoded(bind(letters()), QUESTION, starts, ends)
    assert found.answer.text == text == QUESTION.context[found.answer.start : found.answer.end]
    assert found.answer == found.candidates[0]


def test_candidates_are_the_best_ones_and_their_probabilities():
    found = decoded(bind(letters(), n_best=3), QUESTION, {3: 4.0, 5: 3.0}, {5: 2.0, 6: 1.0})
    assert [one.text for one in found.candidates] == ["a b c", "a b c d", "c"]
    # Ties go to the first. Logits are summed: 6, 5, 5.
    chances = np.exp([6, 5, 5]) / np.exp([6, 5, 5]).sum()
    assert [one.score for one in found.candidates] == pytest.approx(chances.tolist())
    assert found.null_margin == pytest.approx(-18 - 6)


def test_every_span_is_tried_beside_brute_force():
    bound = bind(letters(), n_best=50, max_answer_length=3)
    generator = np.random.default_rng(0)
    for _ in range(20):
        start, end = generator.normal(size=(2, 10)).astype(np.float32)
        (feature,) = bound.features([QUESTION])
        (found,) = bound.decode([QUESTION], [feature], [{"start": start, "end": end}])
        scores = {(i, j): start[i] + end[j] for i in range(3, 9) for j in range(i, min(i + 3, 9))}
        order = sorted(scores, key=lambda span: -scores[span])
        assert [one.text for one in found.candidates] == [
            " ".join("a b c d e f".split()[i - 3 : j - 2]) for i, j in order
        ]
        assert sum(one.score for one in found.candidates) == pytest.approx(1)


def test_of_a_span_in_two_windows_the_better_score_counts_and_no_answer_needs_every_window():
    bound, question = bind(letters(), may_be_empty=True, stride=10), asked("who", CONTEXT[:45], "k")
    features = bound.features([question])
    assert len(features) == 2
    starts = {one: feature.host["offsets"][:, 0].tolist() for one, feature in enumerate(features)}
    # "k" is at character 20, in both.
    first, second = starts[0].index(20), starts[1].index(20)
    outputs = [logits(features[0], {first: 1.0, 0: 9.0}, {first: 1.0, 0: 9.0})]
    outputs.append(logits(features[1], {second: 3.0, 0: 1.0}, {second: 3.0, 0: 1.0}))
    (found,) = bound.decode([question], features, outputs)
    assert found.answer.text == "k"
    # 1 + 1 is the least score of no answer, 3 + 3 the best of "k".
    assert found.null_margin == pytest.approx(2 - 6)
    assert [one.text for one in found.candidates].count("k") == 1


@pytest.mark.parametrize(
    ("empty", "threshold", "may_be_empty", "text"),
    [
        (4.0, 0.0, True, "b"),
        (6.5, 0.0, True, ""),
        # As good is not better.
        (6.0, 0.0, True, "b"),
        (6.5, 1.0, True, "b"),
        (7.5, 1.0, True, ""),
        (5.5, -1.0, True, ""),
        (4.5, -1.0, True, "b"),
        # Where every question of the training files has an answer.
        (99.0, 0.0, False, "b"),
    ],
)
def test_no_answer_has_to_be_better_by_the_threshold(empty: float, threshold: float, may_be_empty: bool, text: str):
    bound = bind(letters(), may_be_empty=may_be_empty, null_threshold=threshold)
    found = decoded(bound, QUESTION, {4: 3.0, 0: empty / 2}, {4: 3.0, 0: empty / 2})
    assert found.answer.text == text
    assert found.null_margin == pytest.approx(empty - 6)
    # The best answers are there all the same.
    assert found.candidates[0].text == "b"
    if may_be_empty:
        chance = math.exp(empty if not text else 6) / (math.exp(empty) + math.exp(6))
        assert found.answer.score == pytest.approx(chance, rel=1e-3)


def perfect(features) -> list[dict[str, np.ndarray]]:
    return [logits(f, {f.positions["span"][0]: 9.0}, {f.positions["span"][1]: 9.0}) for f in features]


@pytest.mark.parametrize(
    ("tokenizer", "context", "answers"),
    [
        (characters(CHINESE), CHINESE, ("二零零八年", "北京", "姚明", "比赛", "。", "，刘")),
        (byte_level(), CHINESE, ("北京",)),
        (byte_level(*["北京", "姚明"] * 9), CHINESE, ("北京", "姚明")),
        (wordpiece("zurich", "rene", "1901"), ACCENTS, ("A\u030angstro\u0308m", "(and co.)", "Zürich", "3 May 1901,")),
        (
            byte_level(*[ACCENTS] * 9),
            ACCENTS,
            ("Rene\u0301", "🙂", "A\u030angstro\u0308m (", "Zürich", "👩‍👩‍👧", "3 May 1901"),
        ),
    ],
)
def test_answers_are_exactly_pieces_of_the_context(tokenizer: Tokenizer, context: str, answers: tuple[str, ...]):
    bound = bind(tokenizer, 48, stride=20, max_answer_length=20)
    questions = [asked("who?", context, answer) for answer in answers]
    features = bound.features(questions)
    found = bound.decode(questions, features, perfect(features))
    assert [one.answer.text for one in found] == list(answers)
    assert [context[one.answer.start : one.answer.end] for one in found] == list(answers)
    assert bound.score(questions, found) == {"exact_match": 1.0, "f1": 1.0}


# Measures.


def said(text: str, score: float = 0.5) -> Answered:
    return Answered(Answer(text, 0, len(text), score), (), 0.0)


def test_measures_are_means_over_questions():
    questions = [asked("w", "a cat sat", "cat"), asked("w", "dog here", "dog here"), asked("w", "none")]
    found = [said("the cat"), said("dog"), said("none", 0.9)]
    bound = bind(letters())
    assert bound.metric == "f1"
    assert bound.score(questions, found) == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 2 / 3 + 0) / 3})
    mistakes = bound.mistakes(questions, found)
    assert [(one.gold, one.predicted, one.loss) for one in mistakes] == [
        ("dog here", "dog", 0.5),
        ("(none)", "none", 0.9),
    ]
    assert bound.score([questions[2]], [said("")]) == {"exact_match": 1.0, "f1": 1.0}


def test_chinese_is_scored_by_characters_where_that_is_asked_for():
    questions, found = [asked("谁", "北京大学", "北京大学")], [said("北京")]
    assert bind(letters(), characters=True).score(questions, found) == pytest.approx(
        {"exact_match": 0, "f1": 2 * 2 / 6}
    )
    assert bind(letters()).score(questions, found) == {"exact_match": 0, "f1": 0}


# The model.


def test_the_loss_of_sequences_that_share_rows_is_torch_cross_entropy_of_each_alone():
    bound = bind(letters(), 32)
    params = parameters_of(bound)
    questions = [
        asked("who", "a b c d", "b c"),
        asked("what", "x y z", "z"),
        asked("who", "none of it"),
        Question("4", "who", "a b", (("x", None),)),
    ]
    features = bound.features(questions)
    batch = placed(features)
    assert batch.arrays["input_ids"].shape[0] < len(features)
    sums = jax.jit(lambda params, batch: bound.forward(params, batch, None))(params, batch.arrays)
    expected = []
    for feature, together in zip(features, outputs_of(bound, params, features), strict=True):
        (alone,) = outputs_of(bound, params, [feature])
        for name in ("start", "end"):
            np.testing.assert_allclose(together[name], alone[name], atol=1e-4)
        # transformers' loss of one sequence without padding.
        sides = zip((alone["start"], alone["end"]), feature.positions["span"], strict=True)
        losses = [torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(int(y))) for x, y in sides]
        expected.append((losses[0] + losses[1]).item() / 2)
    total, weight = sums["span_loss"]
    # The answer of the last one stands nowhere.
    assert (float(total), float(weight)) == pytest.approx((sum(expected[:3]), 3), rel=1e-5)
    assert min(expected) > 0.01
    assert float(bound.weights(batch.arrays)["span_loss"]) == 3
