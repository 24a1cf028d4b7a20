"""Tags and entities: both readings, there and back in the three schemes, legal sequences, Viterbi."""

import itertools
import re

import numpy as np
import pytest

from jaxbert.tasks import entities
from jaxbert.tasks.entities import Span

# Capital letters are the tags of the type X, small ones those of Y: "BIo" would be B-X I-X O.
TAG = {letter: f"{letter}-X" for letter in "BIES"} | {letter.lower(): f"{letter}-Y" for letter in "BIES"} | {"o": "O"}


def tags_of(letters: str) -> list[str]:
    return [TAG[letter] for letter in letters]


def spans_of(text: str) -> list[Span]:
    """ "X02 Y34" """
    return [Span(int(one[1]), int(one[2]), one[0]) for one in text.split()]


@pytest.mark.parametrize(
    ("letters", "lenient", "strict"),
    [
        ("", "", ""),
        ("ooo", "", ""),
        ("BIoB", "X02 X34", "X02 X34"),
        ("BB", "X01 X12", "X01 X12"),
        ("BIBIo", "X02 X24", "X02 X24"),
        ("Bbb", "X01 Y12 Y23", "X01 Y12 Y23"),
        # I- without B-: at the start, behind O, behind another type.
        ("IIo", "X02", ""),
        ("oBoI", "X12 X34", "X12"),
        ("Bii", "X01 Y13", "X01"),
        ("Ii", "X01 Y12", ""),
        ("IB", "X01 X12", "X12"),
        ("IiI", "X01 Y12 X23", ""),
        # BIOES, whole and broken.
        ("SS", "X01 X12", "X01 X12"),
        ("BIEs", "X03 Y34", "X03 Y34"),
        ("BEBE", "X02 X24", "X02 X24"),
        ("BEE", "X02 X23", "X02"),
        ("EI", "X01 X12", ""),
        ("SIE", "X01 X13", "X01"),
        ("SE", "X01 X12", "X01"),
        ("oEo", "X12", ""),
    ],
)
def test_entities_of_tags(letters: str, lenient: str, strict: str):
    assert entities.spans(tags_of(letters)) == spans_of(lenient)
    assert entities.spans(tags_of(letters), strict=True) == spans_of(strict)


def test_a_type_may_have_a_dash():
    assert entities.spans(["B-time-of-day", "I-time-of-day", "I-time"]) == [(0, 2, "time-of-day"), (2, 3, "time")]


def by_rules(tags: list[str]) -> list[Span]:
    """conlleval.pl's startOfChunk and endOfChunk, pair by pair, as seqeval's get_entities has them."""
    ends = {"BB", "BS", "BO", "IB", "IS", "IO", *("".join(pair) for pair in itertools.product("ES", "BIESO"))}
    starts = {"EE", "EI", "SE", "SI", "OE", "OI", *("".join(pair) for pair in itertools.product("BIESO", "BS"))}
    found, begin, before, before_kind = [], 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = tag[0], tag[2:]
        other = before_kind != kind
        if before + prefix in ends or (before != "O" and other):
            found.append(Span(begin, place, before_kind))
        if before + prefix in starts or (prefix != "O" and other):
            begin = place
        before, before_kind = prefix, kind
    return found


def test_every_short_sequence_is_read_as_conlleval_reads_it():
    for length in range(5):
        for letters in itertools.product(TAG, repeat=length):
            tags = tags_of("".join(letters))
            assert entities.spans(tags) == by_rules(tags), tags


def test_strict_entities_of_iob2_are_a_beginning_and_what_goes_on_with_it():
    for length in range(6):
        for letters in map("".join, itertools.product("BIbio", repeat=length)):
            expected = [
                Span(m.start(), m.end(), "X" if m[0][0] == "B" else "Y") for m in re.finditer("BI*|bi*", letters)
            ]
            assert entities.spans(tags_of(letters), strict=True) == expected, letters


@pytest.mark.parametrize(
    ("found", "iob1", "iob2", "bioes"),
    [
        ("", "ooooo", "ooooo", "ooooo"),
        ("X02 Y45", "IIooi", "BIoob", "BEoos"),
        # Next to each other, of one type: only there has IOB1 a B-.
        ("X02 X24", "IIBIo", "BIBIo", "BEBEo"),
        ("X01 X12 X23", "IBBoo", "BBBoo", "SSSoo"),
        ("X02 Y24", "IIiio", "BIbio", "BEbeo"),
        ("X01 X23", "IoIoo", "BoBoo", "SoSoo"),
        ("Y05", "iiiii", "biiii", "biiie"),
    ],
)
def test_tags_of_entities(found: str, iob1: str, iob2: str, bioes: str):
    spans = spans_of(found)
    for scheme, letters in {"iob1": iob1, "iob2": iob2, "bioes": bioes}.items():
        # In any order.
        tags = entities.tags(spans[::-1], 5, scheme)
        assert tags == tags_of(letters)
        assert entities.spans(tags) == spans
        assert all(entities.fault(tag, scheme) is None for tag in tags)


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_any_entities_come_back(scheme):
    generator = np.random.default_rng(0)
    for _ in range(200):
        edges = np.flatnonzero(generator.random(12) < 0.6).tolist()
        spans = [
            Span(start, end, str(generator.choice(["X", "Y"])))
            for start, end in itertools.pairwise(edges)
            if generator.random() < 0.7
        ]
        assert entities.spans(entities.tags(spans, 12, scheme)) == spans


@pytest.mark.parametrize(
    ("tag", "schemes"),
    [
        ("O", "iob1 iob2 bioes"),
        ("B-X", "iob1 iob2 bioes"),
        ("I-time-of-day", "iob1 iob2 bioes"),
        ("S-X", "bioes"),
        ("E-X", "bioes"),
        ("B", ""),
        ("B-", ""),
        ("-X", ""),
        ("BI-X", ""),
        ("o", ""),
        ("NN", ""),
        ("L-X", ""),
        ("", ""),
    ],
)
def test_tags_of_no_scheme_are_told(tag: str, schemes: str):
    known = [s for s in ("iob1", "iob2", "bioes") if entities.fault(tag, s) is None]
    assert known == schemes.split()


def test_what_is_wrong_with_a_tag_names_the_scheme():
    assert entities.fault("NN", "bioes") == "'NN' is no tag of BIOES: it has O and B-TYPE, I-TYPE, E-TYPE, S-TYPE"


@pytest.mark.parametrize(("scheme", "size"), [("iob2", 5), ("bioes", 9)])
def test_legal_sequences_are_those_that_entities_are_written_as(scheme, size: int):
    """A sequence is legal where reading it and writing it again gives the same."""
    names = entities.tag_set(("X", "Y"), scheme)
    assert len(set(names)) == size
    assert names[0] == "O"
    follow, first, last = entities.transitions(names)
    for length in range(1, 5):
        for ids in itertools.product(range(size), repeat=length):
            legal = first[ids[0]] and last[ids[-1]] and all(follow[pair] for pair in itertools.pairwise(ids))
            tags = [names[i] for i in ids]
            assert legal == (entities.tags(entities.spans(tags), length, scheme) == tags), tags


def test_other_tags_may_follow_as_they_like():
    for table in entities.transitions(("NN", "VB", "IN-X")):
        assert table.all()


@pytest.mark.parametrize("scheme", ["iob2", "bioes"])
def test_the_best_path_is_the_best_of_all_legal_ones(scheme):
    generator = np.random.default_rng(1)
    names = entities.tag_set(("X", "Y"), scheme)
    follow, first, last = allowed = entities.transitions(names)
    changed = 0
    for number in range(60):
        length = 1 + number % 4
        scores = generator.normal(size=(length, len(names)))
        best = max(
            (
                ids
                for ids in itertools.product(range(len(names)), repeat=length)
                if first[ids[0]] and last[ids[-1]] and all(follow[pair] for pair in itertools.pairwise(ids))
            ),
            key=lambda ids: scores[np.arange(len(ids)), ids].sum(),
        )
        found = entities.best_path(scores, allowed)
        assert found == list(best)
        changed += found != scores.argmax(1).tolist()
    # Else nothing was tested.
    assert changed > 20


def test_no_words_have_no_tags():
    assert entities.best_path(np.zeros((0, 5)), entities.transitions(entities.tag_set(("X", "Y"), "iob2"))) == []


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [("iob1", "I-A I-A B-A I-B O"), ("iob2", "B-A I-A B-A B-B O"), ("bioes", "B-A E-A S-A S-B O")],
)
def test_words_of_a_text_have_tags(scheme, tags: str):
    text, words = "Ada Lee, 北!", ["Ada", "Lee", ",", "北", "!"]
    spans = [entities.Span(0, 7, "A"), entities.Span(7, 8, "A"), entities.Span(9, 10, "B")]
    assert entities.tagged_words(text, spans, scheme) == list(zip(words, tags.split(), strict=True))


def test_tags_of_entities_are_told_from_those_of_words():
    assert all(map(entities.are_of_entities, [("O", "B-x", "I-x"), ("I-x", "O"), ("S-x", "E-x")]))
    assert not any(map(entities.are_of_entities, [("NOUN", "VERB"), (), ("O",)]))


def test_an_entity_of_a_type_without_b_may_begin_with_i():
    """Of some models that were trained on IOB1."""
    names = ("O", "I-X", "B-Y", "I-Y")
    sure = np.log(np.array([[0.1, 0.8, 0.05, 0.05], [0.1, 0.05, 0.05, 0.8]]))
    assert [names[i] for i in entities.best_path(sure, entities.transitions(names))] == ["I-X", "O"]
