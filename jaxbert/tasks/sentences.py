"""Sentences with tagged words, from CoNLL's columns or a text with its spans: what a tagger learns from."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import TaggingConfig
from jaxbert.tasks import entities
from jaxbert.tasks.entities import Span
from jaxbert.tasks.task import column, text_in
from jaxbert.tasks.words import words_of


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A text with its words, and the entities in it."""

    text: str
    words: tuple[tuple[int, int], ...]
    """(start, end) in characters."""
    tags: tuple[str, ...]
    """One for each word, in the scheme of the model."""
    entities: tuple[Span, ...]
    """In characters, as conlleval reads the tags."""
    strict: tuple[Span, ...]
    """In characters, as strict IOB2 or BIOES reads them."""


def sentence_in(record: Record, settings: TaggingConfig) -> Sentence:
    """A sentence of CoNLL's columns, or a text with its spans. Raises BadRecordError and ExamplesError as `Task.parse` does."""
    if "columns" in record.values:
        return _from_columns(record.values["columns"], settings)
    text = text_in(record, settings.text, "task.text")
    if settings.scheme == "words":
        raise ExamplesError(f'{record.place}: task.scheme "words" needs a file with a word and its tag on each line')
    found = {_span(text, span, settings) for span in _listed(column(record, settings.spans, "task.spans"))}
    return _sentence(text, words_of(text), found, settings)


def _from_columns(columns: Sequence[Sequence[str]], settings: TaggingConfig) -> Sentence:
    width = len(columns[0])
    if not (-width <= settings.tag_column < width and -width <= settings.word_column < width) or width < 2:
        raise BadRecordError(
            f"has {width} columns: task.word-column {settings.word_column} or task.tag-column {settings.tag_column} is none"
        )
    if settings.word_column % width == settings.tag_column % width:
        raise BadRecordError(
            f"has {width} columns: task.word-column {settings.word_column} and task.tag-column {settings.tag_column} are one"
        )
    words = [line[settings.word_column] for line in columns]
    found = [line[settings.tag_column] for line in columns]
    text, places = " ".join(words), []
    for word in words:
        start = places[-1][1] + 1 if places else 0
        places.append((start, start + len(word)))
    if settings.scheme == "words":
        return Sentence(text, tuple(places), tuple(found), (), ())
    for number, (word, tag) in enumerate(zip(words, found, strict=True), 1):
        if fault := entities.fault(tag, settings.scheme):
            raise BadRecordError(f"word {number} of this sentence, {word!r}: {fault}")
    # IOB1 begins an entity with I-.
    strict = entities.spans(found, strict=settings.scheme != "iob1", closed=settings.scheme == "bioes")
    return _tagged(text, tuple(places), entities.spans(found), strict, settings)


def _span(text: str, span: Any, settings: TaggingConfig) -> Span:
    if isinstance(span, Mapping):
        values = [span.get("start"), span.get("end"), span.get("label", span.get("type"))]
    else:
        values = list(span) if isinstance(span, list | tuple) else [span]
    if len(values) != 3 or not all(type(v) is int for v in values[:2]) or not isinstance(values[2], str):
        raise BadRecordError(f"{span!r} is no span: [start, end, type] is one")
    start, end, kind = values
    if not kind.strip():
        raise BadRecordError(f"{span!r} has an empty type")
    end += settings.inclusive_ends
    if not 0 <= start < end <= len(text):
        raise BadRecordError(f"the span {start} to {end} is not in its text of {len(text)} characters")
    return Span(start, end, kind)


def _sentence(
    text: str, words: tuple[tuple[int, int], ...], found: Iterable[Span], settings: TaggingConfig
) -> Sentence:
    """With entities in characters: each has the words that it touches. Of those that overlap, the outer one, or the first, is learnt."""
    over: list[Span] = []
    for start, end, kind in sorted(found, key=lambda span: (span.start, -span.end, span.type)):
        inside = [n for n, (first, last) in enumerate(words) if first < end and start < last]
        if inside and not (over and over[-1].end > inside[0]):
            over.append(Span(inside[0], inside[-1] + 1, kind))
    tags = tuple(entities.tags(over, len(words), tag_scheme(settings)))
    return Sentence(text, words, tags, tuple(sorted(found)), tuple(sorted(found)))


def _tagged(
    text: str,
    words: tuple[tuple[int, int], ...],
    found: Sequence[Span],
    strict: Sequence[Span],
    settings: TaggingConfig,
) -> Sentence:
    """With entities in words."""
    return Sentence(
        text,
        words,
        tuple(entities.tags(found, len(words), tag_scheme(settings))),
        in_characters(found, words),
        in_characters(strict, words),
    )


def tag_scheme(settings: TaggingConfig) -> entities.Scheme:
    """The scheme of the model's tags."""
    return settings.tags or ("bioes" if settings.scheme == "bioes" else "iob2")


def in_characters(found: Sequence[Span], words: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """Entities in words -> in characters."""
    return tuple(Span(words[start][0], words[end - 1][1], kind) for start, end, kind in found)


def _listed(value: Any) -> list[Any]:
    """Spans as a list; CLUENER has type -> name -> [[start, end]]."""
    if isinstance(value, Mapping):
        try:
            return [[*place, kind] for kind, names in value.items() for places in names.values() for place in places]
        except (AttributeError, TypeError):
            raise BadRecordError(f"{value!r} is no span: type -> name -> [[start, end]] has them") from None
    if not isinstance(value, list | tuple):
        raise BadRecordError(f"{value!r} is no list of spans")
    return list(value)
