"""Documents -> sequences of one or two segments, as ranges of the unit's tokens (Devlin et al. 2018, appendix A.2).

The behaviour is that of google-research/bert's create_pretraining_data.py. A sequence is [CLS] A [SEP] or
[CLS] A [SEP] B [SEP]; because sentences lie end to end, A and B are ranges of token positions, and truncation
only moves the ends of a range.

Differs from BERT:
- The short target is drawn for each sequence, not once for each document (a novel is one document).
- Two sentences at least are gathered where the document has them. A sentence that is left alone becomes
  [CLS] A [SEP] without a label; BERT gives it a random B, so that with short documents most pairs are random.
- A random B starts at a sentence of other documents drawn with equal chances, never at a document's first
  sentence: a true B never is one, so the start of B tells nothing.
- Sentences too long for a sequence are cut at word starts instead of truncated.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt8

from jaxbert.text.tokens import Tokens

IS_NEXT, IS_RANDOM, NO_LABEL = 0, 1, 2
"""NSP labels: B follows A; B is random (or A and B are swapped); there is no label."""

MIN_TEXT_TOKENS = 2
"""Shorter sequences are dropped and counted: masking one token would leave nothing to predict it from."""

_Range = tuple[int, int, int, int, int]
"""a_start, a_end, b_start, b_end (token positions), label."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of a unit as ranges of its token positions; B is empty (start = end) where there is none."""

    a_start: Int[np.ndarray, " n"]
    a_end: Int[np.ndarray, " n"]
    b_start: Int[np.ndarray, " n"]
    b_end: Int[np.ndarray, " n"]
    labels: UInt8[np.ndarray, " n"]
    without_donor: int = 0
    """Pairs that were to be random in a unit where no other document has a second segment to give: true nexts."""
    truncated_tokens: int = 0
    """Tokens cut off pairs that were too long; a random B's, which are in sequences of their own, don't count.

    So the tokens of A and of a B that follows it, the truncated and the dropped ones are together the unit's tokens.
    """
    dropped_tokens: int = 0
    """Tokens in sequences shorter than MIN_TEXT_TOKENS, which are left out."""

    def lengths_a(self) -> Int[np.ndarray, " n"]:
        """Tokens of the first segment, with [CLS] and the first [SEP]."""
        return self.a_end - self.a_start + 2

    def lengths_b(self) -> Int[np.ndarray, " n"]:
        """Tokens of the second segment, with the last [SEP]; 0 where there is none."""
        length = self.b_end - self.b_start
        return length + (length > 0)

    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each sequence."""
        return self.lengths_a() + self.lengths_b()

    def pair_counts(self) -> dict[str, int]:
        """How many sequences have each label; `without_donor` are also counted among the nexts."""
        nexts, randoms, none = np.bincount(self.labels, minlength=3).tolist()
        return {"next": nexts, "random": randoms, "none": none, "without_donor": self.without_donor}

    def counts(self) -> dict[str, int]:
        """The pair counts, and the tokens that did not make it into a sequence."""
        lost = {"truncated_tokens": self.truncated_tokens, "dropped_tokens": self.dropped_tokens}
        return self.pair_counts() | lost


def make_pairs(
    tokens: Tokens,
    max_length: int,
    rng: np.random.Generator,
    *,
    second: str,
    random_next_share: float = 0.5,
    short_share: float = 0.1,
) -> Sequences:
    """Cut documents into sentence pairs.

    `second`: "nsp" (B follows A, or with random_next_share comes from another document; the sentences that A then
    leaves over start the next sequence) or "sop" (B follows A, or with random_next_share the two are swapped).
    """
    room = max_length - 3
    tokens = split_long_sentences(tokens, limit=room, least=-(-room // 2))
    cutter = _PairCutter(tokens, room, rng, second == "nsp", random_next_share, short_share)
    ranges = [r for i in range(len(tokens.origins)) for r in cutter.pairs_of(i)]
    pairs = _truncate(_sequences(ranges), room, rng)
    if second == "sop":
        pairs = _swap(pairs)
    return replace(_drop_short(pairs), without_donor=cutter.without_donor)


def make_full_sentences(
    tokens: Tokens, max_length: int, rng: np.random.Generator, *, short_share: float = 0.0, fill: bool = False
) -> Sequences:
    """Fill sequences with whole consecutive sentences of one document, without a second segment or a label.

    This is FULL-SENTENCES of Liu et al. 2019 (section 4.2), except that no sequence crosses a document's end.
    `fill` cuts the last sentence at the last word that fits, and the next sequence starts there: packed rows of long
    documents would otherwise all lack half a sentence, and there would be nothing to put there.
    """
    room = max_length - 2
    tokens = split_long_sentences(tokens, limit=room, least=room)
    draw = _uniforms(rng).__next__
    starts = np.flatnonzero(tokens.word_starts) if fill else tokens.sentence_offsets
    ends_at = [*starts.tolist(), len(tokens.ids)]
    ranges = []
    for first, end in itertools.pairwise(tokens.sentence_offsets[tokens.document_offsets].tolist()):
        while first < end:
            limit = first + _target(room, short_share, draw)
            # The last place to end at that is within the limit; else the first one after `first`, else the limit itself.
            place = bisect_right(ends_at, limit) - 1
            stop = ends_at[place] if ends_at[place] > first else ends_at[place + 1]
            stop = min(stop, first + room, end)
            ranges.append((first, stop, 0, 0, NO_LABEL))
            first = stop
    return _drop_short(_sequences(ranges))


def split_long_sentences(tokens: Tokens, *, limit: int, least: int) -> Tokens:
    """Cut sentences of more than `limit` tokens where words start, into pieces of `least` to `limit` tokens and a rest.

    With least = limit the pieces are as long as they can be, else as short as they may. A word that goes on from
    `least` to `limit` is cut through.
    """
    offsets = tokens.sentence_offsets
    cuts = []
    for sentence in np.flatnonzero(np.diff(offsets) > limit):
        first, end = offsets[sentence : sentence + 2].tolist()
        while end - first > limit:
            if least == limit:
                words = np.flatnonzero(tokens.word_starts[first + 1 : first + limit + 1])
                first += 1 + int(words[-1]) if len(words) else limit
            else:
                words = np.flatnonzero(tokens.word_starts[first + least : first + limit + 1])
                first += least + (int(words[0]) if len(words) else 0)
            cuts.append(first)
    if not cuts:
        return tokens
    finer = np.sort(np.concatenate([offsets, np.array(cuts, np.int64)]))
    # Every sentence has a token, so an offset stands once among the finer ones.
    return replace(
        tokens, sentence_offsets=finer, document_offsets=np.searchsorted(finer, offsets[tokens.document_offsets])
    )


class _Donors:
    """The sentences that can start a random second segment, grouped by the document that they come from."""

    def __init__(self, tokens: Tokens):
        sentences_in = np.diff(tokens.document_offsets)
        document_of = np.repeat(np.arange(len(sentences_in)), sentences_in)
        sentences = np.delete(np.arange(len(document_of)), tokens.document_offsets[:-1][sentences_in > 0])
        document_of = document_of[sentences]
        _, origin = np.unique(tokens.origins, return_inverse=True)
        order = np.argsort(origin[document_of], kind="stable")
        self._sentences = sentences[order].tolist()
        self._ends = tokens.document_offsets[document_of[order] + 1].tolist()
        self._group_of = origin.tolist()
        self._group_starts = np.searchsorted(origin[document_of[order]], np.arange(len(self._group_of) + 1)).tolist()

    def draw(self, document: int, uniform: float) -> tuple[int, int] | None:
        """A sentence of another document and the end of that document, in sentences; None where there is none."""
        group = self._group_of[document]
        start, end = self._group_starts[group], self._group_starts[group + 1]
        others = len(self._sentences) - (end - start)
        if not others:
            return None
        chosen = int(uniform * others)
        chosen += (end - start) if chosen >= start else 0
        return self._sentences[chosen], self._ends[chosen]


class _PairCutter:
    """The walk over a document's sentences that makes its pairs; positions are plain integers, because numpy's are slow one by one."""

    def __init__(
        self,
        tokens: Tokens,
        room: int,
        rng: np.random.Generator,
        random_from_others: bool,
        random_next_share: float,
        short_share: float,
    ):
        self._offsets = tokens.sentence_offsets.tolist()
        self._documents = tokens.document_offsets.tolist()
        self._donors = _Donors(tokens) if random_from_others else None
        self._draw = _uniforms(rng).__next__
        self._room, self._random_next_share, self._short_share = room, random_next_share, short_share
        self.without_donor = 0

    def pairs_of(self, document: int) -> Iterator[_Range]:
        """The document's pairs, before truncation."""
        offsets, draw = self._offsets, self._draw
        sentence, end = self._documents[document], self._documents[document + 1]
        while sentence < end:
            first = offsets[sentence]
            target = _target(self._room, self._short_share, draw)
            stop = min(max(bisect_left(offsets, first + target, sentence + 1, end), sentence + 2), end)
            if stop == sentence + 1:
                yield first, offsets[stop], 0, 0, NO_LABEL
                return
            middle = sentence + 1 + int(draw() * (stop - sentence - 1))
            label = IS_RANDOM if draw() < self._random_next_share else IS_NEXT
            if label == IS_RANDOM and self._donors:
                b = self._random_second(document, target - (offsets[middle] - first))
                if b:
                    yield first, offsets[middle], *b, IS_RANDOM
                    sentence = middle
                    continue
                self.without_donor += 1
                label = IS_NEXT
            yield first, offsets[middle], offsets[middle], offsets[stop], label
            sentence = stop

    def _random_second(self, document: int, target: int) -> tuple[int, int] | None:
        """At least one sentence and, where the donor has them, at least `target` tokens of another document."""
        assert self._donors
        donor = self._donors.draw(document, self._draw())
        if donor is None:
            return None
        sentence, document_end = donor
        stop = bisect_left(self._offsets, self._offsets[sentence] + target, sentence + 1, document_end)
        return self._offsets[sentence], self._offsets[stop]


def _target(room: int, short_share: float, draw: Callable[[], float]) -> int:
    """Text tokens to gather: all there is room for or, with probability short_share, a uniform number from 2 on."""
    return 2 + int(draw() * (room - 1)) if draw() < short_share else room


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    # Plain floats, many at a time: one call into numpy for each draw would dominate.
    while True:
        yield from rng.random(1024).tolist()


def _sequences(ranges: list[_Range]) -> Sequences:
    columns = np.array(ranges, np.int64).reshape(-1, 5).T
    return Sequences(*columns[:4], labels=columns[4].astype(np.uint8))


def _truncate(pairs: Sequences, room: int, rng: np.random.Generator) -> Sequences:
    """Take tokens, one by one, off the longer segment (B when equal), each from its front or its back by a coin toss.

    In closed form: first the difference, then the rest in turns beginning with B; of k tokens off a segment
    Binomial(k, 1/2) are from its front.
    """
    a, b = pairs.a_end - pairs.a_start, pairs.b_end - pairs.b_start
    excess = np.maximum(a + b - room, 0)
    level = np.minimum(np.abs(a - b), excess)
    rest = excess - level
    off_a = np.where(a > b, level, 0) + rest // 2
    off_b = np.where(a > b, 0, level) + (rest + 1) // 2
    front_a, front_b = rng.binomial(off_a, 0.5), rng.binomial(off_b, 0.5)
    return replace(
        pairs,
        a_start=pairs.a_start + front_a,
        a_end=pairs.a_end - (off_a - front_a),
        b_start=pairs.b_start + front_b,
        b_end=pairs.b_end - (off_b - front_b),
        truncated_tokens=int(off_a.sum() + off_b[pairs.b_start == pairs.a_end].sum()),
    )


def _swap(pairs: Sequences) -> Sequences:
    swapped = pairs.labels == IS_RANDOM
    a_start, b_start = (
        np.where(swapped, x, y) for x, y in ((pairs.b_start, pairs.a_start), (pairs.a_start, pairs.b_start))
    )
    a_end, b_end = (np.where(swapped, x, y) for x, y in ((pairs.b_end, pairs.a_end), (pairs.a_end, pairs.b_end)))
    return replace(pairs, a_start=a_start, a_end=a_end, b_start=b_start, b_end=b_end)


def _drop_short(sequences: Sequences) -> Sequences:
    s = sequences
    text = s.a_end - s.a_start + s.b_end - s.b_start
    keep = text >= MIN_TEXT_TOKENS
    return replace(
        s,
        a_start=s.a_start[keep],
        a_end=s.a_end[keep],
        b_start=s.b_start[keep],
        b_end=s.b_end[keep],
        labels=s.labels[keep],
        dropped_tokens=int(text[~keep].sum()),
    )
