"""Sentences -> token ids, a work unit at a time, as flat arrays: ids, where words start, where sentences and documents end.

A tokenizer that treats every whitespace-separated chunk on its own (BERT's does) meets each distinct chunk once per
process; the rest is a dictionary look-up and one gather, several times the speed of encoding sentence by sentence.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt32
from tokenizers import Tokenizer

from jaxbert.config import UserError
from jaxbert.text.sentences import FIRST_UNSPACED

Segment = Callable[[str], Sequence[str]]
"""Cuts a text into words; their concatenation is the text."""

_MEGABYTE = 1 << 20
_CACHED_CHUNKS = 300_000

# What BERT's normaliser removes and str.split takes for white space: without it both see the same chunks.
_REMOVED_BY_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


class SegmenterError(UserError):
    """A word segmenter that is not there, or whose words do not add up to the text."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a unit's documents, without special tokens. Sentence i is ids[sentence_offsets[i]:sentence_offsets[i + 1]]."""

    ids: UInt32[np.ndarray, " tokens"]
    word_starts: Bool[np.ndarray, " tokens"]
    sentence_offsets: Int[np.ndarray, " sentences_plus_1"]
    """Into ids."""
    document_offsets: Int[np.ndarray, " documents_plus_1"]
    """Into the sentences."""
    origins: Int[np.ndarray, " documents"]
    """The original document that each one is a piece of, as a number."""


def named_segment(name: str) -> Segment | None:
    """The segmenter that `data.segmenter` names: None for the tokenizer's own words. SegmenterError without jieba."""
    if name == "vocabulary":
        return None
    try:
        import jieba
    except ImportError as error:
        raise SegmenterError(
            'data.segmenter "jieba" needs the package jieba: pip install "jaxbert[chinese]"'
        ) from error
    jieba.setLogLevel("WARNING")
    return jieba.lcut


class SentenceTokenizer:
    """Tokenises sentences in batches; special tokens that stand in the text are text.

    `continuation` is Vocabulary.continuation_table. With `segment`, a token that starts inside one of its words
    (and not at its start) also continues a word; only then character offsets are made, at about a third of the speed.
    """

    def __init__(self, tokenizer: Tokenizer, continuation: Bool[np.ndarray, " vocab"], segment: Segment | None = None):
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._continuation = continuation
        self._segment = segment
        # Byte-level BPE's pieces show whether a space stood before them.
        self._sees_spaces = self._ids("a") != self._ids(" a")
        self._chunks = (
            _Chunks(self._tokenizer) if segment is None and _chunks_are_independent(self._tokenizer) else None
        )

    def __call__(
        self, sentences: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"], Int[np.ndarray, " sentences"]]:
        """Token ids and word starts of all sentences, end to end, and the number of tokens in each (0 is possible)."""
        if self._chunks is not None:
            ids, counts = self._chunks.encode(sentences)
            return ids, ~self._continuation[ids], counts
        parts = [self._encode(batch) for batch in _batches(sentences, _MEGABYTE)]
        empty = (np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(0, np.int64))
        ids, starts, counts = (np.concatenate(columns) for columns in zip(empty, *parts, strict=True))
        return ids, starts, counts

    def as_written(self, sentences: Sequence[str]) -> Sequence[str]:
        """A document's sentences with the space that stood before each but the first, where this tokenizer sees it.

        Scripts from the CJK radicals on put none between sentences.
        """
        if not self._sees_spaces:
            return sentences
        spaced = [a[-1] < FIRST_UNSPACED and b[0] < FIRST_UNSPACED for a, b in itertools.pairwise(sentences)]
        return [*sentences[:1], *(" " * space + s for space, s in zip(spaced, sentences[1:], strict=True))]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._segment is None:
            ids, counts = _flatten(
                [e.ids for e in self._tokenizer.encode_batch_fast(list(sentences), add_special_tokens=False)]
            )
            return ids, ~self._continuation[ids], counts
        encodings = self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        ids, counts = _flatten([e.ids for e in encodings])
        inside = [_inside_words(e.offsets, s, self._segment) for e, s in zip(encodings, sentences, strict=True)]
        return ids, ~(self._continuation[ids] | np.concatenate([np.zeros(0, bool), *inside])), counts


def tokenise(documents: Sequence[Sequence[str]], origins: Sequence[int], tokenizer: SentenceTokenizer) -> Tokens:
    """Tokenise documents given as lists of sentences; sentences without a token are left out."""
    sentences = list(itertools.chain.from_iterable(map(tokenizer.as_written, documents)))
    ids, word_starts, counts = tokenizer(sentences)
    sentences_before = np.concatenate([[0], np.cumsum([len(d) for d in documents], dtype=np.int64)]).astype(np.int64)
    kept_before = np.concatenate([[0], np.cumsum(counts > 0)]).astype(np.int64)
    sentence_offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    # A byte-level piece without a space before it counts as continuing, even at the start of a text.
    word_starts[sentence_offsets[:-1]] = True
    return Tokens(ids, word_starts, sentence_offsets, kept_before[sentences_before], np.asarray(origins, np.int64))


def gather_ranges(starts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """The indices start, start + 1, ... of `counts` each, end to end."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


class _Chunks(dict[str, int]):
    """Whitespace-separated chunks seen so far -> their number, and the tokens of each."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._ids = np.zeros(0, np.uint32)
        self._starts = self._counts = np.zeros(0, np.int64)

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self)
        return number

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if len(self) > _CACHED_CHUNKS:
            self._forget()
        parts = [self._encode(batch) for batch in _batches(sentences, 4 * _MEGABYTE)]
        ids, counts = zip((np.zeros(0, np.uint32), np.zeros(0, np.int64)), *parts, strict=True)
        return np.concatenate(ids), np.concatenate(counts)

    def _encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        chunks: list[str] = []
        ends = []
        for sentence in sentences:
            chunks += _REMOVED_BY_BERT.sub("", sentence).split()
            ends.append(len(chunks))
        known = len(self)
        numbers = np.fromiter(map(self.__getitem__, chunks), np.int64, len(chunks))
        self._learn(list(itertools.islice(self, known, None)))
        counts = self._counts[numbers]
        tokens_before = np.concatenate([[0], np.cumsum(counts)])
        return self._ids[gather_ranges(self._starts[numbers], counts)], np.diff(tokens_before[ends], prepend=0)

    def _learn(self, chunks: list[str]) -> None:
        for batch in _batches(chunks, _MEGABYTE):
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids, counts = _flatten([e.ids for e in encodings])
            self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(counts) - counts])
            self._counts = np.concatenate([self._counts, counts])
            self._ids = np.concatenate([self._ids, ids])


def _chunks_are_independent(tokenizer: Tokenizer) -> bool:
    """Whether white space always separates tokens: BERT's normaliser and pre-tokeniser, no added token but special ones."""
    state = json.loads(tokenizer.to_str())
    normalizer, splitter = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and splitter.get("type") == "BertPreTokenizer"
        and all(token["special"] for token in state["added_tokens"])
    )


def _batches(texts: Sequence[str], characters: int) -> list[list[str]]:
    """Runs of texts of about so many characters: what bounds the memory of their encodings."""
    batches: list[list[str]] = []
    room = 0
    for text in texts:
        if room <= 0:
            batches.append([])
            room = characters
        batches[-1].append(text)
        room -= len(text)
    return batches


def _flatten(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(itertools.chain.from_iterable(lists), np.uint32, int(counts.sum())), counts


def _inside_words(offsets: list[tuple[int, int]], text: str, segment: Segment) -> np.ndarray:
    """For each token whether it starts inside one of the segmenter's words."""
    words = segment(text) if text else []
    if sum(map(len, words)) != len(text):
        raise SegmenterError(f"the segmenter's words do not add up to the text: {text[:60]!r}")
    starts_word = np.zeros(len(text) + 1, bool)
    starts_word[np.cumsum([0, *map(len, words)])] = True
    return ~starts_word[np.array([start for start, _ in offsets], np.int64)]
