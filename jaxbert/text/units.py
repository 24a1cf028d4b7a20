"""Work units: some documents of one split in, their rows at every length of the run out, independent of all other units.

`process_unit` is a pure function of the unit and the settings, so units may run anywhere and in any order: in this
process, in local ones (`workers.py`), or under a runner such as Apache Beam.
"""

import functools
import hashlib
import heapq
import json
import pathlib
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from tokenizers import Tokenizer

from jaxbert.config import DataConfig
from jaxbert.text.corpus import Document
from jaxbert.text.instances import Sequences, make_full_sentences, make_pairs
from jaxbert.text.packing import pack
from jaxbert.text.rows import FORMAT_VERSION, RowLayout, RowsError, atomic_file, fill_rows
from jaxbert.text.sentences import split_sentences
from jaxbert.text.tokens import SentenceTokenizer, Tokens, named_segment, tokenise
from jaxbert.text.vocabulary import Vocabulary

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")

NUM_SAMPLES = 200
"""Held-out sentences kept as text for the report's examples, of SAMPLE_WORDS words each."""
SAMPLE_WORDS = range(8, 41)


@dataclass(frozen=True)
class UnitSettings:
    """All that decides a unit's rows, beside its documents."""

    tokenizer_json: str
    vocabulary: Vocabulary
    data: DataConfig
    lengths: tuple[int, ...]
    seed: int

    def layout(self, max_length: int) -> RowLayout:
        """The shape of the rows at a length."""
        return RowLayout(max_length, self.data.sequences_per_row(max_length), self.vocabulary.size)

    @functools.cached_property
    def digest(self) -> bytes:
        """Of everything here that changes rows."""
        d = self.data
        room = tuple(d.sequences_per_row(length) for length in self.lengths)
        said = (FORMAT_VERSION, d.pairs, d.random_next_share, d.short_share, room, d.packing, d.passes)
        text = repr((*said, d.segmenter, self.lengths, self.seed)) + self.tokenizer_json
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Unit:
    """Documents of one split that are worked on together: random second segments come from the same unit."""

    split: Split
    index: int
    texts: tuple[str, ...]
    origins: tuple[int, ...]
    """The original document that each text is a piece of, as a number within the unit."""

    def file_name(self, settings: UnitSettings) -> str:
        """A name that no other content and no other settings have."""
        digest = hashlib.blake2b(settings.digest, digest_size=12)
        digest.update(repr(self.origins).encode())
        for text in self.texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        return f"{self.split}-{self.index:06d}-{digest.hexdigest()}.npz"


@dataclass(frozen=True)
class UnitResult:
    """What a unit became."""

    rows: dict[int, Shaped[np.ndarray, " rows"]]
    """max_length -> records of RowLayout.dtype."""
    counts: dict[int, dict[str, int]]
    """max_length -> pairs by kind, and truncated and dropped tokens, over all passes."""
    num_documents: int
    """Original documents; one that is spread over units counts in each."""
    samples: list[str]
    """Held-out sentences."""


class UnitCutter:
    """Cuts a stream of documents into units of at least target_bytes of UTF-8 and two original documents each.

    One unending document ends its unit at four times the size all the same.
    """

    def __init__(self, split: Split, target_bytes: float):
        self._split: Split = split
        self._target_bytes = target_bytes
        self.num_units: int = 0
        self._start()

    def _start(self) -> None:
        self._texts: list[str] = []
        self._origins: list[int] = []
        self._numbers: dict[str, int] = {}
        self._bytes = 0

    def add(self, document: Document) -> Unit | None:
        """Take a document; returns the unit that it completes."""
        self._texts.append(document.text)
        self._origins.append(self._numbers.setdefault(document.identity, len(self._numbers)))
        self._bytes += len(document.text.encode())
        enough = self._bytes >= self._target_bytes and len(self._numbers) >= 2
        return self.finish() if enough or self._bytes >= 4 * self._target_bytes else None

    def finish(self) -> Unit | None:
        """The unit of what is left, if anything is."""
        if not self._texts:
            return None
        unit = Unit(self._split, self.num_units, tuple(self._texts), tuple(self._origins))
        self.num_units += 1
        self._start()
        return unit


def process_unit(unit: Unit, settings: UnitSettings) -> UnitResult:
    """Make the unit's rows; the result depends on the arguments alone.

    Randomness is keyed by (seed, split, pass, unit index, length). A held-out unit is cut into sequences once,
    whatever data.passes says: more of the same text would only make evaluation dearer.
    """
    tokenizer = _sentence_tokenizer(settings.tokenizer_json, settings.vocabulary, settings.data.segmenter)
    documents = [split_sentences(text) for text in unit.texts]
    tokens = tokenise(documents, unit.origins, tokenizer)
    rows, counts = {}, {}
    for length in settings.lengths:
        parts, total = [], Counter()
        for number in range(settings.data.passes if unit.split == "train" else 1):
            key = (settings.seed, SPLITS.index(unit.split), number, unit.index, length)
            sequences = _cut(tokens, length, settings.data, np.random.default_rng(np.random.SeedSequence(key)))
            parts.append(_rows(tokens, sequences, settings, length))
            total.update(sequences.counts())
        rows[length], counts[length] = np.concatenate(parts), dict(total)
    samples = _samples(documents, settings, tokenizer) if unit.split == "heldout" else []
    return UnitResult(rows, counts, len(set(unit.origins)), samples)


def _cut(tokens: Tokens, max_length: int, data: DataConfig, rng: np.random.Generator) -> Sequences:
    if data.pairs == "none":
        return make_full_sentences(tokens, max_length, rng, short_share=data.short_share, fill=data.packing)
    return make_pairs(
        tokens,
        max_length,
        rng,
        second=data.pairs,
        random_next_share=data.random_next_share,
        short_share=data.short_share,
    )


def _rows(tokens: Tokens, sequences: Sequences, settings: UnitSettings, max_length: int) -> Shaped[np.ndarray, " rows"]:
    layout, vocabulary = settings.layout(max_length), settings.vocabulary
    lengths = sequences.lengths()
    row_of = pack(lengths, max_length, layout.max_sequences) if settings.data.packing else np.arange(len(lengths))
    ids = {"pad_id": vocabulary.pad_id, "cls_id": vocabulary.cls_id, "sep_id": vocabulary.sep_id}
    return fill_rows(tokens, sequences, row_of, layout, **ids)


# One tokenizer a process: its memory of chunks is what makes the units after the first fast.
@functools.lru_cache(maxsize=1)
def _sentence_tokenizer(tokenizer_json: str, vocabulary: Vocabulary, segmenter: str) -> SentenceTokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    return SentenceTokenizer(tokenizer, vocabulary.continuation_table(), named_segment(segmenter))


def _samples(documents: Sequence[Sequence[str]], settings: UnitSettings, tokenizer: SentenceTokenizer) -> list[str]:
    fitting = {s for sentences in documents for s in sentences if SAMPLE_WORDS.start <= len(s) <= 300}
    # Some of those that are looked at have too few or too many words.
    candidates = smallest_by_hash(fitting, 4 * NUM_SAMPLES, settings.seed)
    ids, word_starts, counts = tokenizer(candidates)
    ends = np.cumsum(counts)
    kept = []
    for sentence, first, end in zip(candidates, ends - counts, ends, strict=True):
        if int(word_starts[first:end].sum()) in SAMPLE_WORDS and settings.vocabulary.unk_id not in ids[first:end]:
            kept.append(sentence)
    return kept[:NUM_SAMPLES]


def smallest_by_hash(sentences: set[str], count: int, seed: int) -> list[str]:
    """A sample that depends on the sentences and the seed, and neither on their order nor on how they were divided."""
    key = str(seed).encode()
    hashed = ((hashlib.blake2b(s.encode(), digest_size=8, key=key).digest(), s) for s in sentences)
    return [sentence for _, sentence in heapq.nsmallest(count, hashed)]


def save_unit(result: UnitResult, path: pathlib.Path) -> None:
    """Write a result under its name, complete or not at all."""
    described = {
        "counts": {str(length): counts for length, counts in result.counts.items()},
        "num_documents": result.num_documents,
        "samples": result.samples,
    }
    arrays: dict[str, Any] = {f"rows-{length}": rows.view(np.uint8) for length, rows in result.rows.items()}
    arrays["described"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def load_unit(path: pathlib.Path, settings: UnitSettings) -> UnitResult:
    """Read a result. RowsError where the file is damaged (each array carries a check sum)."""
    try:
        with np.load(path) as stored:
            described: dict[str, Any] = json.loads(stored["described"].tobytes())
            rows = {n: stored[f"rows-{n}"].view(settings.layout(n).dtype) for n in settings.lengths}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RowsError(f"{path}: damaged ({error}): delete it and run again, the other units are kept") from error
    counts = {int(length): counts for length, counts in described["counts"].items()}
    return UnitResult(rows, counts, described["num_documents"], described["samples"])


def run_unit(unit: Unit, settings: UnitSettings, folder: pathlib.Path) -> None:
    """Process a unit and save its result in the folder."""
    save_unit(process_unit(unit, settings), folder / unit.file_name(settings))
