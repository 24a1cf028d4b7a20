"""How answers are scored: the official scripts of SQuAD (evaluate-v1.1.py, evaluate-v2.0.py) and CMRC 2018 (cmrc2018_evaluate.py)."""

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What CMRC's script takes out beside spaces.
_CHINESE_PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"

# What its script's tokenizer of Latin text (nltk's word_tokenize) takes for a token of its own, from within what spaces part, but for
# "can|not" and the like. A point is one at the very end, whatever closes after it.
_LATIN_MARK = re.compile(
    r"""(\.{2,}|[;@#$%&?!()\[\]{}<>"«»“‘„”’\u2012-\u2015]|''|,(?!\d)|(?<=[^.])\.(?=[\]\)}>"'»”’\s]*$))"""
)
# Then, where a word ends: elisions and closing quotes; where one begins: opening ones.
_LATIN_ELISION = re.compile(
    r"""(?<=[^'\s])('(?:s|m|d|ll|re|ve)?|n't)(?=\s|$)|(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)"""
)


def squad_scores(found: str, right: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 over words) with the best of the right answers; without one, an empty answer is right."""
    right = right or [""]
    tokens = _squad_normalised(found).split()
    exact = max(_squad_normalised(text).split() == tokens for text in right)
    return float(exact), max(_word_f1(tokens, _squad_normalised(text).split()) for text in right)


def _squad_normalised(text: str) -> str:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))


def _word_f1(found: Sequence[str], right: Sequence[str]) -> float:
    if not found or not right:
        return float(found == right)
    common = sum((collections.Counter(found) & collections.Counter(right)).values())
    return 2 * common / (len(found) + len(right))


def cmrc_scores(found: str, right: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 of the longest common run of segments) with the best of the right answers.

    Segments are single Chinese characters, and the words and marks of what is between them; Chinese punctuation is left out.
    """
    right = right or [""]
    segments = _cmrc_segments(found)
    exact = max(_cmrc_plain(text) == _cmrc_plain(found) for text in right)
    return float(exact), max(_run_f1(segments, _cmrc_segments(text)) for text in right)


def _cmrc_plain(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CHINESE_PUNCTUATION)


def _cmrc_segments(text: str) -> list[str]:
    parts = re.findall(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+", _cmrc_plain(text))
    return [segment for part in parts for segment in _latin_segments(part)]


def _latin_segments(text: str) -> list[str]:
    return _LATIN_ELISION.sub(r" \1\2 ", _LATIN_MARK.sub(r" \1 ", text)).split()


def _run_f1(found: Sequence[str], right: Sequence[str]) -> float:
    if not found or not right:
        return float(found == right)
    longest, before = 0, [0] * (len(right) + 1)
    for one in found:
        row = [0] * (len(right) + 1)
        for n, other in enumerate(right):
            if one == other:
                row[n + 1] = before[n] + 1
                longest = max(longest, row[n + 1])
        before = row
    return 2 * longest / (len(found) + len(right))
