"""Entities counted as seqeval 1.2.2 counts them: its numbers for sentences in which much is odd (classification_report, both modes)."""

import pytest

from jaxbert.tasks import entities, metrics

# A letter is a prefix of the type X, a small one of Y, and o the tag O: "BIo" is B-X I-X O.
IOB2 = (
    "BIoBo BbiIo oBIIb bbBIo IIobi oooBi BIiIo".split(),
    "BIoIo Bbioo oBIbi biBIo BIobi oBoBi BIbIo".split(),
)
BIOES = (
    "BIEoS SbeSo oBEsS bebeS BIobe BEiIE".split(),
    "BIEoS Sbeoo oBEse beBES BEobe BEbIE".split(),
)
# (precision, recall, F1, support) of X, of Y, and of all ("micro avg"), to six digits, and the macro F1.
NUMBERS = {
    "iob2 conlleval": (
        (0.8, 0.8, 0.8, 10),
        (0.666667, 0.571429, 0.615385, 7),
        (0.75, 0.705882, 0.727273, 17),
        0.707692,
    ),
    "iob2 strict": ((0.625, 0.714286, 0.666667, 7), (0.4, 0.4, 0.4, 5), (0.538462, 0.583333, 0.56, 12), 0.533333),
    "bioes conlleval": (
        (0.888889, 0.8, 0.842105, 10),
        (0.833333, 0.833333, 0.833333, 6),
        (0.866667, 0.8125, 0.83871, 16),
        0.837719,
    ),
    "bioes strict": ((0.75, 0.75, 0.75, 8), (1.0, 0.8, 0.888889, 5), (0.833333, 0.769231, 0.8, 13), 0.819444),
}


def tags_of(letters: str) -> list[str]:
    return ["O" if letter == "o" else f"{letter.upper()}-{'X' if letter.isupper() else 'Y'}" for letter in letters]


def counted(gold: list[str], predicted: list[str], strict: bool, closed: bool) -> list[metrics.Counts]:
    right, found = (
        {
            (number, span)
            for number, letters in enumerate(sentences)
            for span in entities.spans(tags_of(letters), strict=strict, closed=closed)
        }
        for sentences in (gold, predicted)
    )
    kinds = [{one for one in some if one[1].type == kind} for kind in "XY" for some in (right & found, found, right)]
    return [metrics.Counts(*map(len, kinds[:3])), metrics.Counts(*map(len, kinds[3:]))]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_seqevals(name: str):
    scheme, reading = name.split()
    gold, predicted = IOB2 if scheme == "iob2" else BIOES
    counts = counted(gold, predicted, reading == "strict", reading == "strict" and scheme == "bioes")
    *expected, macro = NUMBERS[name]
    for one, numbers in zip([*counts, metrics.together(counts)], expected, strict=True):
        assert (one.precision, one.recall, one.f1, one.gold) == pytest.approx(numbers, abs=1e-6)
    assert metrics.macro_f1(counts) == pytest.approx(macro, abs=1e-6)
