"""Texts with two entities: out of their tags, with markers around them, and the tokens of that which are read.

The markers are tokens that every vocabulary has, "@" around the first entity and "#" around the second (Zhou & Chen 2022).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding

from jaxbert.data.records import BadRecordError

_TAG = re.compile(r"\s*</?e[12]>\s*")
SIGNS = ("@", "#")
"""The marker of the first entity, and that of the second."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text with two entities, and how they are related."""

    text: str
    first: tuple[int, int]
    second: tuple[int, int]
    """(start, end) in characters."""
    label: str


def without_tags(text: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """ "a <e1> b </e1> c" -> the text without its tags, and both entities. Raises BadRecordError where a tag is missing or twice."""
    plain, places, done = "", {}, 0
    for match in _TAG.finditer(text):
        plain += text[done : match.start()]
        name, done = match.group().strip(), match.end()
        if name in places:
            raise BadRecordError(f"has {name} twice")
        # The space that stood around a tag, or around two, stands once.
        spaced = match.group() != name and plain and not plain[-1].isspace() and done < len(text)
        if name[1] == "/":
            places[name] = len(plain.rstrip())
        plain += " " if spaced else ""
        places.setdefault(name, len(plain))
    plain += text[done:]
    missing = [name for name in ("<e1>", "</e1>", "<e2>", "</e2>") if name not in places]
    if missing:
        raise BadRecordError(f"has no {missing[0]}")
    first, second = (places["<e1>"], places["</e1>"]), (places["<e2>"], places["</e2>"])
    if first[0] >= first[1] or second[0] >= second[1] or (first[0] < second[1] and second[0] < first[1]):
        raise BadRecordError("has an entity that is empty, or both overlap")
    return plain, first, second


def with_spans(text: str, spans: Any) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """A text and both entities, [[start, end], [start, end]] in characters. Raises BadRecordError where that is not what they are."""
    try:
        (a, b), (c, d) = spans
        if not all(type(place) is int for place in (a, b, c, d)):
            raise TypeError
    except (TypeError, ValueError):
        raise BadRecordError(f"{spans!r} is not [[start, end], [start, end]]") from None
    if not (0 <= a < b <= len(text) and 0 <= c < d <= len(text)) or (a < d and c < b):
        raise BadRecordError(f"{spans!r} overlap, or are not in its text of {len(text)} characters")
    return text, (a, b), (c, d)


def marked(example: Pair) -> tuple[str, tuple[int, int]]:
    """The text with markers around its entities, and where the first marker of each is."""
    text, starts = "", [0, 0]
    done = 0
    for (start, end), number in sorted(((example.first, 0), (example.second, 1))):
        text += example.text[done:start]
        starts[number] = len(text)
        text += f"{SIGNS[number]} {example.text[start:end]} {SIGNS[number]}"
        done = end
    return text + example.text[done:], (starts[0], starts[1])


def _token_at(encoding: Encoding, character: int) -> int:
    """The first token that ends behind a character."""
    return next((n for n, (_, end) in enumerate(encoding.offsets) if end > character), len(encoding) - 1)


def in_tokens(example: Pair, encoding: Encoding, starts: tuple[int, int]) -> list[tuple[int, int]]:
    """First and last + 1 token of each entity with its markers. `starts`: as from `marked`."""
    return [
        # Around an entity are two markers and two spaces.
        (_token_at(encoding, start), _token_at(encoding, start + last - first + 3) + 1)
        for start, (first, last) in zip(starts, (example.first, example.second), strict=True)
    ]


def around(spans: Sequence[tuple[int, int]], length: int, room: int) -> list[int]:
    """The tokens that are read, in order: all, a run around both spans, or, where these are too far apart, one around each."""
    if length <= room:
        return list(range(length))
    (low, low_end), (high, high_end) = sorted(spans)
    # An entity that is too long has its beginning read.
    half = room // 2
    high_end = min(high_end, high + half)
    if high_end - low <= room:
        first = _begin(low, high_end, room, length)
        return list(range(first, first + room))
    size = room - half
    left = _begin(low, min(low_end, low + size), size, length)
    right = max(_begin(high, high_end, half, length), left + size)
    return [*range(left, left + size), *range(right, right + half)]


def _begin(start: int, end: int, size: int, length: int) -> int:
    """Where a run of `size` tokens of `length` begins that has those from `start` to `end` - 1 in its middle."""
    return min(max((start + end - size) // 2, 0), length - size)
