"""Entities and their tags: IOB1, IOB2 and BIOES, read and written, and which tag may follow which."""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxbert.tasks.words import words_of

Scheme = Literal["iob2", "iob1", "bioes"]
OUTSIDE = "O"


class Span(NamedTuple):
    """An entity: words (or characters) `start` to `end` - 1, and its type."""

    start: int
    end: int
    type: str


def spans(tags: Sequence[str], strict: bool = False, closed: bool = False) -> list[Span]:
    """The entities in tags of any scheme, as the CoNLL-2000 evaluation reads them (conlleval.pl).

    An entity begins at B- and S-, and wherever the type changes; it ends at E- and S-, and before what does not go on with it.
    `strict`: only at B- and S-, so that I- and E- without a beginning are none. `closed`: of BIOES, only with an end too.
    """
    found: list[Span] = []
    open_type: str | None = None
    start = 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        begins = prefix in ("B", "S") or (prefix in ("I", "E") and kind != open_type and not strict)
        goes_on = prefix in ("I", "E") and kind == open_type
        if open_type is not None and not goes_on:
            if not closed:
                found.append(Span(start, place, open_type))
            open_type = None
        if begins:
            start, open_type = place, kind
        if prefix in ("E", "S") and open_type is not None:
            found.append(Span(start, place + 1, open_type))
            open_type = None
    return found


def tags(entities: Sequence[Span], length: int, scheme: Scheme) -> list[str]:
    """The inverse of `spans`: a tag for each of `length` words. Entities must not overlap."""
    found = [OUTSIDE] * length
    last_end, last_type = -1, None
    for start, end, kind in sorted(entities):
        inner = [f"I-{kind}"] * (end - start)
        if scheme == "iob2" or (scheme == "iob1" and start == last_end and kind == last_type):
            inner[0] = f"B-{kind}"
        elif scheme == "bioes":
            inner[0], inner[-1] = f"B-{kind}", f"E-{kind}"
            if end - start == 1:
                inner = [f"S-{kind}"]
        found[start:end] = inner
        last_end, last_type = end, kind
    return found


def tagged_words(text: str, entities: Sequence[Span], scheme: Scheme) -> list[tuple[str, str]]:
    """(word, tag) of each word of a running text. Entities are in characters, of whole words, and do not overlap."""
    words = words_of(text)
    first, last = ({words[n][side]: n for n in range(len(words))} for side in (0, 1))
    found = [Span(first[start], last[end] + 1, kind) for start, end, kind in entities]
    return [(text[start:end], tag) for (start, end), tag in zip(words, tags(found, len(words), scheme), strict=True)]


def are_of_entities(tags: Collection[str]) -> bool:
    """Whether tags are those of a scheme, and not each word's own (parts of speech)."""
    return any(tag.startswith(("B-", "I-", "S-")) for tag in tags)


def fault(tag: str, scheme: Scheme) -> str | None:
    """Why a tag is none of the scheme."""
    prefixes = "BIES" if scheme == "bioes" else "BI"
    prefix, dash, kind = tag.partition("-")
    if tag == OUTSIDE or (dash and kind and len(prefix) == 1 and prefix in prefixes):
        return None
    return f"{tag!r} is no tag of {scheme.upper()}: it has O and {', '.join(f'{p}-TYPE' for p in prefixes)}"


def tag_set(types: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """The tags that a model chooses from: those of IOB2, or of BIOES."""
    prefixes = "BIES" if scheme == "bioes" else "BI"
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in prefixes))


def transitions(names: Sequence[str]) -> tuple[Bool[np.ndarray, "C C"], Bool[np.ndarray, " C"], Bool[np.ndarray, " C"]]:
    """(which tag may follow which, which may be first, which may be last) of a `tag_set`; everything of other tags.

    An entity of a type without B- (of some models in IOB1) may begin with I-.
    """
    closing = any(name.startswith("E-") for name in names)

    def may_follow(before: str, after: str) -> bool:
        prefix, _, kind = after.partition("-")
        before_prefix, _, before_kind = before.partition("-")
        inside = closing and before_prefix in ("B", "I") and bool(before_kind)
        if kind and prefix in ("I", "E") and f"B-{kind}" in names:
            return before_prefix in ("B", "I") and before_kind == kind
        return not inside

    table = np.array([[may_follow(before, after) for after in names] for before in names])
    first = np.array([may_follow(OUTSIDE, name) for name in names])
    last = np.array([may_follow(name, OUTSIDE) for name in names])
    return table, first, last


def best_path(
    scores: Float[np.ndarray, "n C"],
    allowed: tuple[Bool[np.ndarray, "C C"], Bool[np.ndarray, " C"], Bool[np.ndarray, " C"]],
) -> list[int]:
    """The tags of highest total score among the legal sequences (Viterbi). `allowed`: as from `transitions`."""
    follow, first, last = (np.where(table, 0.0, -np.inf) for table in allowed)
    if not len(scores):
        return []
    total, back = scores[0] + first, []
    for row in scores[1:]:
        candidates = total[:, None] + follow
        back.append(candidates.argmax(0))
        total = candidates.max(0) + row
    path = [int((total + last).argmax())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return path[::-1]
