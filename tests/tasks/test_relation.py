"""Relations: entities in texts, their markers, the official score, and the model."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
from made_task_encoders import byte_level, encoder_of, outputs_of, parameters_of, placed, wordpiece

from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import RelationConfig
from jaxbert.model.bert import BertEncoder
from jaxbert.tasks.pairs import Pair, marked, without_tags
from jaxbert.tasks.relation import BoundRelation, Related, Relation
from jaxbert.weights import huggingface
from jaxbert.weights.load import load

LABELS = ("Other", "Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)")


def tagged(text: str, label: Any = "Other") -> Pair:
    return Relation(RelationConfig()).parse(Record({"text": text, "label": label}, "train.tsv:1"))


def spanned(text: str, spans: object) -> Pair:
    record = Record({"text": text, "label": "Other", "spans": spans}, "train.jsonl:1")
    return Relation(RelationConfig(spans="spans")).parse(record)


def bind(tokenizer, max_length: int = 64) -> BoundRelation:
    return Relation(RelationConfig()).bind(LABELS, [], encoder_of(tokenizer, max_length))


# Texts.


@pytest.mark.parametrize(
    ("text", "plain", "first", "second", "with_markers"),
    [
        (
            "The <e1> audits </e1> were about <e2> waste </e2>.",
            "The audits were about waste .",
            "audits",
            "waste",
            "The @ audits @ were about # waste # .",
        ),
        (
            "The <e1>audits</e1> of <e2>waste</e2>",
            "The audits of waste",
            "audits",
            "waste",
            "The @ audits @ of # waste #",
        ),
        ("<e1> Rain </e1> made <e2> mud </e2>", "Rain made mud", "Rain", "mud", "@ Rain @ made # mud #"),
        # The second entity stands first.
        ("<e2> Mud </e2> from <e1> rain </e1> .", "Mud from rain .", "rain", "Mud", "# Mud # from @ rain @ ."),
        ("a <e1> big dog </e1> , <e2> it </e2>", "a big dog , it", "big dog", "it", "a @ big dog @ , # it #"),
        ("<e1> 雨 </e1>造成<e2>泥</e2>。", "雨 造成泥。", "雨", "泥", "@ 雨 @ 造成# 泥 #。"),
        ("x<e1>a</e1><e2>b</e2>y", "xaby", "a", "b", "x@ a @# b #y"),
        # Tags next to each other: the space between them is one.
        ("<e1> school </e1> <e2> master </e2>", "school master", "school", "master", "@ school @ # master #"),
        ("The <e1> same </e1> and the <e2> same </e2>", "The same and the same", "same", "same", None),
    ],
)
def test_tags_become_markers(text: str, plain: str, first: str, second: str, with_markers: str | None):
    pair = tagged(text)
    assert pair.text == plain
    assert [pair.text[start:end] for start, end in (pair.first, pair.second)] == [first, second]
    found, starts = marked(pair)
    assert with_markers in (None, found)
    assert [found[start] for start in starts] == ["@", "#"]
    assert [found[start + 2 :].startswith(name) for start, name in zip(starts, (first, second), strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <e1> b </e1> c", "has no <e2>"),
        ("a <e1> b c <e2> d </e2>", "has no </e1>"),
        ("a b </e1> c <e2> d </e2>", "has no <e1>"),
        ("no tags", "has no <e1>"),
        ("<e1> a </e1> <e1> b </e1> <e2> c </e2>", "has <e1> twice"),
        ("<e1> a </e1> <e2> c </e2> d </e2>", "has </e2> twice"),
        ("<e1> a <e2> b </e1> c </e2>", "both overlap"),
        ("<e1> a <e2> b </e2> c </e1>", "both overlap"),
        ("<e1></e1> a <e2> b </e2>", "is empty"),
        ("<e1> </e1> a <e2> b </e2>", "is empty"),
        ("</e1> a <e1> <e2> b </e2>", "is empty"),
    ],
)
def test_bad_tags_are_told(text: str, message: str):
    with pytest.raises(BadRecordError, match=message):
        without_tags(text)


def test_spans_in_characters():
    pair = spanned("Mud from rain.", [[9, 13], [0, 3]])
    assert (pair.first, pair.second) == ((9, 13), (0, 3))
    assert marked(pair) == ("# Mud # from @ rain @.", (13, 0))
    # Next to each other.
    assert marked(spanned("泥雨", [[0, 1], [1, 2]])) == ("@ 泥 @# 雨 #", (0, 5))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (None, "spans None is not"),
        ([[0, 3]], "is not"),
        ([[0, 3], [4]], "is not"),
        ([[0, 3], [4, "x"]], "is not"),
        ([[0, 3], [4, None]], "is not"),
        ([[0.9, 3.2], [9, 13]], "is not"),
        ([["0", "3"], [9, 13]], "is not"),
        ([[0, 3], [False, True]], "is not"),
        ([[0, 3], [9, 15]], "not in its text of 14 characters"),
        ([[-1, 3], [9, 13]], "not in its text"),
        ([[3, 3], [9, 13]], "not in its text"),
        ([[0, 9], [8, 13]], "overlap"),
        ([[0, 3], [0, 3]], "overlap"),
        ([[0, 13], [4, 8]], "overlap"),
    ],
)
def test_bad_spans_are_told(spans, message: str):
    with pytest.raises(BadRecordError, match=message):
        spanned("Mud from rain.", spans)


def test_missing_columns_and_labels_are_told():
    task = Relation(RelationConfig())
    with pytest.raises(ExamplesError, match=r"has no column 'text': set task.text to one of 'sentence'"):
        task.parse(Record({"sentence": "x"}, "a:1"))
    for label in (" ", None, ["Other"]):
        with pytest.raises(BadRecordError, match=r"label is .*, and no class"):
            tagged("<e1> a </e1> <e2> b </e2>", label)
    with pytest.raises(
        ExamplesError, match=r"data.train and data.dev have 1 relations \(Other\): there must be at least two"
    ):
        task.labels([tagged("<e1> a </e1> <e2> b </e2>")])
    with pytest.raises(ExamplesError, match=r"label 'Cause' is none of the task's \("):
        bind(wordpiece()).features([tagged("<e1> a </e1> <e2> b </e2>", "Cause")])
    with pytest.raises(BadRecordError, match=r"label 'Cause' is not one of task.labels \(Other, Effect\)"):
        Relation(RelationConfig(labels=("Other", "Effect"))).parse(
            Record({"text": "<e1> a </e1> <e2> b </e2>", "label": "Cause"}, "a:1")
        )


# Markers.

FILLER = "rain and mud "


def markers_read(bound: BoundRelation, pairs: list[Pair]) -> list[str]:
    """The pieces that the positions of a batch point at, example by example."""
    features = bound.features(pairs)
    assert all(len(feature.input_ids) <= bound.encoder.max_length for feature in features)
    batch = placed(features)
    places = batch.arrays["entities"][batch.rows, batch.slots]
    ids = batch.arrays["input_ids"][batch.rows[:, None], places]
    # Markers belong to the sequence that they are read for.
    assert (batch.arrays["sequence_ids"][batch.rows[:, None], places] == batch.slots[:, None] + 1).all()
    pieces = {
        n: " ".join(bound.encoder.tokenizer.id_to_token(one) for one in ids[i]) for i, n in enumerate(batch.features)
    }
    return [pieces[n].replace("Ġ", "") for n in range(len(pairs))]


@pytest.mark.parametrize(
    "tokenizer", [wordpiece("rain", "mud", "made"), byte_level(FILLER * 9)], ids=["words", "bytes"]
)
def test_positions_point_at_markers_in_packed_rows(tokenizer):
    pairs = [
        tagged("<e1> rain </e1> made <e2> mud </e2>"),
        tagged("so <e2> mud </e2>, by <e1> rain </e1>!"),
        # The text has markers of its own.
        tagged("me @ home # <e1> rain </e1> @ # and <e2> mud </e2> @"),
        tagged("the<e1>rain</e1>(<e2>mud</e2>)"),
        tagged("é中🙂 <e1> rain </e1> é中 <e2> mud </e2>"),
    ]
    bound = bind(tokenizer)
    assert placed(bound.features(pairs)).arrays["real"].sum(1).max() > 1
    assert markers_read(bound, pairs) == ["@ #"] * len(pairs)
    for pair, feature in zip(pairs, bound.features(pairs), strict=True):
        text, starts = marked(pair)
        encoding = tokenizer.encode(text)
        assert feature.input_ids == encoding.ids
        assert list(feature.positions["entities"]) == [encoding.char_to_token(start) for start in starts]


@pytest.mark.parametrize(
    "tokenizer", [wordpiece("rain", "mud", "made", "and"), byte_level(FILLER * 9)], ids=["words", "bytes"]
)
@pytest.mark.parametrize("before", [0, 3, 30])
@pytest.mark.parametrize("between", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 30])
def test_of_a_long_text_the_part_around_the_entities_is_read(tokenizer, before: int, between: int, after: int):
    text = f"{FILLER * before}<e1> rain </e1> {FILLER * between} <e2> mud </e2> {FILLER * after}"
    turned = text.replace("e1>", "e3>").replace("e2>", "e1>").replace("e3>", "e2>")
    pairs = [tagged(text), tagged(turned)]
    bound = bind(tokenizer, 24)
    assert markers_read(bound, pairs) == ["@ #"] * 2
    first, last = tokenizer.encode("").ids
    for feature in bound.features(pairs):
        assert (feature.input_ids[0], feature.input_ids[-1]) == (first, last)
        # Nothing is left out while there is room.
        assert len(feature.input_ids) == min(len(tokenizer.encode(marked(pairs[feature.example])[0])), 24)


def as_read(bound: BoundRelation, pair: Pair) -> str:
    (feature,) = bound.features([pair])
    assert len(feature.input_ids) <= bound.encoder.max_length
    return " ".join(bound.encoder.tokenizer.id_to_token(one) for one in feature.input_ids[1:-1])


@pytest.mark.parametrize(
    "tokenizer", [wordpiece("rain", "mud", "made", "and"), byte_level(FILLER * 9)], ids=["words", "bytes"]
)
@pytest.mark.parametrize("sides", [(0, 0), (3, 0), (30, 30)])
@pytest.mark.parametrize("between", [4, 6, 8, 30])
def test_of_entities_too_far_apart_the_part_around_each_is_read(tokenizer, sides: tuple[int, int], between: int):
    before, after = (FILLER * n for n in sides)
    text = f"{before}<e1> rain </e1> {FILLER * between} <e2> mud </e2> {after}"
    pairs = [tagged(text), tagged(text.replace("e1>", "e3>").replace("e2>", "e1>").replace("e3>", "e2>"))]
    bound = bind(tokenizer, 24)
    assert markers_read(bound, pairs) == ["@ #"] * 2
    for pair, markers in zip(pairs, ("@#", "#@"), strict=True):
        read = " ".join(as_read(bound, pair).replace("Ġ", "").split())
        for entity, marker in zip(("rain", "mud"), markers, strict=True):
            assert f"{marker} {entity} {marker}" in read


def test_the_beginning_of_long_entities_is_read():
    bound = bind(wordpiece("rain", "mud", "and"), 12)
    for between in ("", "and", "and " * 40):
        read = as_read(bound, tagged(f"<e1> {'rain ' * 40} </e1> {between} <e2> {'mud ' * 40} </e2>"))
        assert read == "@ rain rain rain rain # mud mud mud mud"
    # Of 10 tokens a half is that of a long one, and nothing between them is left out.
    read = as_read(bound, tagged(f"a <e1> rain </e1> and <e2> {'mud ' * 40} </e2> b"))
    assert read == "a @ rain @ and # mud mud mud mud"


@pytest.mark.parametrize("max_length", [8, 9, 13, 24])
def test_a_part_of_any_text_has_both_beginnings(max_length: int):
    draw, bound = np.random.default_rng(0), bind(wordpiece("rain", "mud"), max_length)
    for _ in range(50):
        a, b, c, d, e = ("x " * int(n) for n in draw.choice([0, 1, 2, 3, 5, 8, 30], 5))
        pair = tagged(f"{a}<e1> rain {b}</e1> {c}<e2> mud {d}</e2> {e}")
        text, _ = marked(pair)
        read, whole = as_read(bound, pair), bound.encoder.tokenizer.encode(text, add_special_tokens=False)
        assert "@ rain" in read
        assert "# mud" in read
        assert len(read.split()) == min(len(whole), max_length - 2)


def test_entities_too_far_apart_are_counted():
    train = [tagged(f"<e1> rain </e1> {FILLER * n} <e2> mud </e2> {FILLER * 30}") for n in (0, 2, 8, 30)]
    task, tokenizer = Relation(RelationConfig()), wordpiece("rain", "mud", "and")
    assert task.bind(LABELS, train, encoder_of(tokenizer, 24)).warnings == [
        "2 of 4 training examples have entities further apart than data.max_length (24) has room for: what stands between them is "
        "left out; raise it"
    ]
    assert task.bind(LABELS, train, encoder_of(tokenizer, 256)).warnings == []


@pytest.mark.parametrize(
    ("other", "labels", "odd"),
    [
        ("Other", ("no_relation", "per:title"), True),
        ("no_relation", ("no_relation", "per:title"), False),
        ("Other", LABELS, False),
        ("Cause-Effect", LABELS[1:], False),
        # There is none.
        ("", ("a", "b"), False),
    ],
)
def test_a_relation_to_leave_out_that_no_label_is_is_odd(other: str, labels: tuple[str, ...], odd: bool):
    bound = Relation(RelationConfig(other=other)).bind(labels, [], encoder_of(wordpiece()))
    assert (
        bound.warnings
        == [
            "task.other is 'Other', and none of the relations is that (no_relation, per:title): macro_f1 and micro_f1 count all of them; "
            'set it to the one that says that there is no relation, or to ""'
        ]
        * odd
    )


def test_a_relation_may_be_a_number():
    assert tagged("<e1> a </e1> <e2> b </e2>", 3).label == "3"


# The official score: semeval2010_task8_scorer-v1.2.pl, (9+1)-way with directionality.


def measures(gold: str, found: str, labels: tuple[str, ...] = ()) -> dict[str, float]:
    """Of labels in short: "A>" is A(e1,e2), "A<" A(e2,e1), "O" the other relation."""

    def label(short: str) -> str:
        return "Other" if short == "O" else short[0] + {">": "(e1,e2)", "<": "(e2,e1)"}[short[1]]

    pairs = [Pair("a b", (0, 1), (2, 3), label(one)) for one in gold.split()]
    related = [Related(label(one), np.ones(3) / 3) for one in found.split()]
    return bind(wordpiece()).score(pairs, related)


@pytest.mark.parametrize(
    ("gold", "found", "macro", "micro", "accuracy"),
    [
        ("A> A< B> O", "A> A< B> O", 1, 1, 1),
        ("A> B>", "B> A>", 0, 0, 0),
        # A wrong direction is one more of the relation, and not right: A has 1 of 2 found and of 2 gold.
        ("A> A< B>", "A> A> B>", (1 / 2 + 1) / 2, 2 / 3, 2 / 3),
        ("A> A>", "A< A<", 0, 0, 0),
        # The other relation counts as what is missed (A: 1 of 1 found, of 2 gold), or wrongly found (B: 1 of 2, of 1).
        ("A> A> O B>", "A> O B> B>", (2 / 3 + 2 / 3) / 2, 2 * 2 / (3 + 3), 1 / 2),
        ("O O A>", "O O A>", 1, 1, 1),
        # Both directions are one relation, and weigh as one.
        ("A> A> A< B>", "A> A> O B>", (2 * 2 / (2 + 3) + 1) / 2, 2 * 3 / (3 + 4), 3 / 4),
        # A relation that is never found has 0.
        ("A> B> C>", "A> B> O", 2 / 3, 2 * 2 / (2 + 3), 2 / 3),
        # What the key has not is to the scorer like the other relation: it is no relation of the mean.
        ("A> A> O", "A> B> B<", 2 / 3, 2 / 3, 1 / 3),
    ],
)
def test_scores_made_by_hand(gold: str, found: str, macro: float, micro: float, accuracy: float):
    expected = {"macro_f1": macro, "micro_f1": micro, "accuracy": accuracy}
    assert measures(gold, found) == pytest.approx(expected)


def official(gold: list[str], found: list[str]) -> tuple[float, float]:
    """Macro and micro F1 in the steps and the names of the Perl script."""
    matrix: dict[tuple[str, str], int] = {}
    proposed: dict[str, int] = {}
    answers: dict[str, int] = {}
    for label_answer, label_proposed in zip(gold, found, strict=True):
        answer, proposal = (re.sub(r"\(e[12],e[12]\)$", "", label) for label in (label_answer, label_proposed))
        column = "WRONG_DIR" if label_proposed != label_answer and proposal == answer else proposal
        matrix[column, answer] = matrix.get((column, answer), 0) + 1
        proposed[column] = proposed.get(column, 0) + 1
        answers[answer] = answers.get(answer, 0) + 1
    answers.pop("Other", None)
    f1s, totals = [], np.zeros(3)
    for answer, count in answers.items():
        right = matrix.get((answer, answer), 0)
        taken = proposed.get(answer, 0) + matrix.get(("WRONG_DIR", answer), 0)
        precision, recall = right / taken if taken else 0, right / count
        f1s.append(2 * precision * recall / (precision + recall) if right else 0)
        totals += right, taken, count
    right, taken, count = totals
    return float(np.mean(f1s)), float(2 * (right / taken) * (right / count) / (right / taken + right / count))


def test_the_official_score_of_perturbed_gold_answers(shared_data: pathlib.Path):
    folder = shared_data / "labelled" / "semeval2010-task8"
    labels = (folder / "label.txt").read_text().split()
    key = [line.split("\t")[1] for line in (folder / "eval" / "answer_keys.txt").read_text().splitlines()]
    rows = [line.split("\t") for line in (folder / "test.tsv").read_text().splitlines()]
    pairs = [tagged(text, label) for label, text in rows]
    assert [pair.label for pair in pairs] == key
    found = []
    for n, label in enumerate(key):
        if n % 7 == 0:
            label = label.translate(str.maketrans("12", "21"))
        elif n % 5 == 1:
            label = "Other"
        elif n % 11 == 2:
            label = labels[(labels.index(label) + 3) % len(labels)]
        found.append(label)
    bound = Relation(RelationConfig()).bind(tuple(labels), [], encoder_of(wordpiece()))
    scores = np.ones(len(labels)) / len(labels)
    related = [Related(label, scores) for label in found]
    measured = bound.score(pairs, related)
    assert (measured["macro_f1"], measured["micro_f1"]) == pytest.approx(official(key, found))
    # What the Perl script printed.
    assert f"{100 * measured['macro_f1']:.2f} {100 * measured['micro_f1']:.2f}" == "67.99 68.49"
    assert measured["accuracy"] == pytest.approx(1850 / 2717)
    table, each = bound.tables(pairs, related)
    assert ["Cause-Effect", f"{198 / 263:.3f}", f"{198 / 328:.3f}", "0.670", "328"] in [list(row) for row in table.rows]
    assert [row[0] for row in each.rows] == labels
    # A set that has not every relation, as the dev rows of a small split: 67.70 and 68.29 by the Perl script.
    some = [n for n, label in enumerate(key) if not label.startswith("Member-Collection")]
    measured = bound.score([pairs[n] for n in some], [related[n] for n in some])
    assert f"{100 * measured['macro_f1']:.2f} {100 * measured['micro_f1']:.2f}" == "67.70 68.29"


# The model.

PAIRS = [
    tagged("<e1> rain </e1> made <e2> mud </e2>", "Cause-Effect(e1,e2)"),
    tagged("the <e2> mud </e2> was from <e1> rain </e1> of may", "Cause-Effect(e2,e1)"),
    tagged("<e1> a </e1> and <e2> b </e2>"),
]


def test_logits_are_the_head_over_both_markers_and_the_loss_is_torch_cross_entropy():
    bound = bind(wordpiece("rain", "made", "mud"))
    params = parameters_of(bound)
    features = bound.features(PAIRS)
    batch = placed(features)

    @jax.jit
    def compute(params, arrays):
        tokens = [arrays[name] for name in ("input_ids", "token_type_ids", "sequence_ids", "position_ids")]
        hidden = BertEncoder(bound.encoder.config).apply({"params": params["encoder"]}, *tokens)
        logits = bound.apply(params, arrays, None)
        return hidden, logits, bound.sums(logits, arrays)

    hidden, logits, sums = jax.tree.map(np.asarray, compute(params, batch.arrays))
    head = params["relation"]["dense"]
    assert head["kernel"].shape == (2 * 16, 3)
    gold = np.array([LABELS.index(pair.label) for pair in PAIRS])
    for n, row, slot, start in zip(batch.features, batch.rows, batch.slots, batch.starts, strict=True):
        first, second = (hidden[row, start + place] for place in features[n].positions["entities"])
        expected = np.concatenate([first, second]) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[row, slot], expected, atol=1e-5)
    real = torch.tensor(logits[batch.rows, batch.slots])
    assert real.std() > 0.05
    expected = torch.nn.CrossEntropyLoss(reduction="sum")(real, torch.tensor(gold[batch.features]))
    assert sums["label_loss"] == pytest.approx((expected.item(), 3), rel=1e-5)
    assert float(bound.weights(batch.arrays)["label_loss"]) == 3


def test_pairs_that_share_a_row_are_read_as_if_alone():
    bound = bind(wordpiece("rain", "made", "mud"))
    params = parameters_of(bound)
    features = bound.features(PAIRS)
    together = outputs_of(bound, params, features)
    alone = [outputs_of(bound, params, [feature])[0] for feature in features]
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    decoded = bound.decode(PAIRS, features, together)
    assert [one.label for one in decoded] == [LABELS[found["scores"].argmax()] for found in together]


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra"])
def test_the_relation_head_is_saved_and_loaded_again(family: str, tmp_path: pathlib.Path):
    encoder = encoder_of(wordpiece("rain"))
    types = 0 if family == "DistilBert" else 2
    config = dataclasses.replace(encoder.config, type_vocab_size=types)
    bound = Relation(RelationConfig()).bind(LABELS, [], encoder._replace(config=config))
    params = parameters_of(bound)
    folder = huggingface.save(
        tmp_path / "model",
        config,
        params,
        architecture=f"{family}{bound.architecture}",
        labels=len(LABELS),
        unused_positions=2 if "Roberta" in family else 0,
        extra=bound.configuration(),
    )
    loaded = load(folder)
    assert loaded.groups == ("relation",)
    assert (loaded.labels, loaded.fresh, loaded.unread) == (len(LABELS), (), ())
    assert loaded.architecture == f"{family}ForRelationClassification"
    assert loaded.extra["id2label"] == {str(n): label for n, label in enumerate(LABELS)}
    assert loaded.extra["entity_markers"] == ["@", "#"]
    # Rows of the word table that no token has are not kept.
    tables = (loaded.params, params)
    for tree in tables:
        tree["encoder"]["embeddings"]["word"]["embedding"] = tree["encoder"]["embeddings"]["word"]["embedding"][
            : config.vocab_size
        ]
    jax.tree.map(np.testing.assert_array_equal, *tables)
