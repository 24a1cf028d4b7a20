"""Cuts text into sentences: English and other spaced scripts, Chinese and Japanese, in linear time.

One regular expression finds every run of full stops; a cheap check, the most frequent case first, says whether a sentence
ends there. Where a full stop is ambiguous ("the U.S. Army", "the U.S. He") the next word decides, by a list of words that
begin sentences far more often than they follow an abbreviation.
"""

import re

MAX_SENTENCE_CHARACTERS = 10_000
"""A longer sentence (a table, a log, a line without stops) is cut, at white space where there is any."""

_FULL_WIDTH_STOPS = frozenset("。！？｡")
_STOPS = ".!?…。！？｡．؟।॥"
_CLOSERS = "\"'”’)]}»›」』）】》〉］｝〗〕＂＇_*~～"
_OPENERS = "\"'“‘([{«‹„‚「『（【《〈［｛〖〔¿¡_*"
# Everything after the first class may be empty and nothing is given back, so a match never fails and time is linear.
_STOP = re.compile(rf"[{_STOPS}]++[{re.escape(_CLOSERS)}]*+\s*+")
_NEXT_WORD = re.compile(rf"(?:[-–—]{{1,3}}\s?)?[{re.escape(_OPENERS)}]{{0,4}}((?:[^\W\d_]|['’]){{0,16}})")
_ACRONYM = re.compile(r"(?:[^\W\d_]{1,2}\.-?)+[^\W\d_]{1,2}")
_LIST_NUMBER = re.compile(r"(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})(?:\.\d{1,3})*")
_ROMAN_NUMBER = re.compile(r"[IVXLC]+")
_CUT = re.compile(rf"\S.{{0,{MAX_SENTENCE_CHARACTERS - 1}}}(?=\s|\Z)|\S.{{{MAX_SENTENCE_CHARACTERS - 1}}}", re.DOTALL)
# With its full stops inside; a word that is longer is none.
_LONGEST_ABBREVIATION = 12

# Before a name: never the last word of a sentence.
_TITLES = frozenset(
    "mr mrs ms mx dr prof rev fr gen col capt cpt cmdr lt sgt cpl maj adm brig hon messrs mme mlle gov sen rep pres supt "
    "atty insp".split()
)
_NEVER_LAST = frozenset("e.g i.e eg ie cf viz vs v ca approx incl excl resp esp".split())
# The last word only where one of _STARTERS follows, like acronyms and initials.
_SELDOM_LAST = frozenset(
    "st mt ft ave blvd rd inc ltd co corp bros jr sr esq dept univ assn al ed eds trans ph.d b.sc m.sc".split()
)
# Inside a sentence before a number ("No. 5", "Jan. 3"), an ordinary word otherwise ("He said no. Then").
_BEFORE_NUMBER = frozenset(
    "no nos nr fig figs vol vols p pp ch chap sec sect eq eqs art ref refs tab op para pt ver est c jan feb mar apr jun "
    "jul aug sep sept oct nov dec".split()
)
_STARTERS = frozenset(
    "a after all although an and another are as at because before besides both but by can could did does during each "
    "even finally first for from had has have he her here his how however i if in instead is it its later many "
    "meanwhile moreover my nevertheless not now of often on once one only or our perhaps she should since so some soon "
    "still such than that the their then there therefore these they this those though through thus to today together "
    "until was we were what when where whether which while who why with would yes yet you your it's he's she's that's "
    "there's they're i'm i've i'll we're we've you're don't didn't".split()
)
# What goes on behind a quotation that has a full stop of its own: Japanese particles, and punctuation anywhere.
_PARTICLES = frozenset("とっをがはの")
_CONTINUING = frozenset("，、；：,;:·—–-" + _STOPS)
# From here on characters are those of scripts that put no space between sentences (and emoji).
FIRST_UNSPACED = "\u2e80"


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text in order, without white space at their ends.

    A line break ends a sentence. None is empty, none is longer than MAX_SENTENCE_CHARACTERS, and no character but white
    space is lost. Takes time linear in the text, whatever it holds.
    """
    sentences: list[str] = []
    for raw_line in text.splitlines():
        line = raw_line.strip()
        if not line:
            continue
        start, last, length = 0, 0, len(line)
        for match in _STOP.finditer(line):
            stop, end = match.span()
            if end < length and _ends(line, start, stop, end):
                sentences.append(line[start:end].rstrip())
                start, last = end, start
        tail = line[start:]
        if start and not tail.strip(_CLOSERS):
            # Tokenised text: a closing quote that stands apart belongs to the sentence before it.
            sentences[-1] = line[last:]
        else:
            sentences.append(tail)
    if max(map(len, sentences), default=0) > MAX_SENTENCE_CHARACTERS:
        return [piece.rstrip() for sentence in sentences for piece in _CUT.findall(sentence)]
    return sentences


def _ends(line: str, start: int, stop: int, end: int) -> bool:
    """Whether the sentence from `start` ends with the stops at `stop`, their closing marks and the white space to `end`."""
    mark, following = line[stop], line[end]
    if not line[end - 1].isspace():
        # A number, a domain name, or a script without spaces; the first two are the frequent ones.
        return (mark in _FULL_WIDTH_STOPS or following >= FIRST_UNSPACED) and _ends_unspaced(line, start, stop, end)
    if mark in _FULL_WIDTH_STOPS:
        return True
    if following.islower():
        return False
    next_word = None if following.isupper() else _NEXT_WORD.match(line, end)
    if next_word and next_word[1][:1].islower():
        return False
    if mark != "." or line[stop + 1] in _STOPS:
        return True
    return not _is_abbreviation(line, start, stop, end)


def _is_abbreviation(line: str, start: int, stop: int, end: int) -> bool:
    """Whether the single full stop at `stop` belongs to the word before it, so that the sentence goes on at `end`."""
    before = line[max(start, stop - _LONGEST_ABBREVIATION - 1) : stop].rsplit(None, 1)
    if not before or line[stop - 1].isspace():
        return False
    word = before[-1].lstrip(_OPENERS)
    lower = word.lower()
    if lower in _TITLES:
        return word[0].isupper()
    if lower in _NEVER_LAST and not word.isupper():
        return True
    if stop - len(before[-1]) == start and _LIST_NUMBER.fullmatch(word):
        return True
    if lower in _BEFORE_NUMBER and line[end].isdigit():
        return True
    is_seldom_last = lower in _SELDOM_LAST or (len(word) == 1 and word.isupper()) or _ACRONYM.fullmatch(word)
    if not is_seldom_last and lower not in _BEFORE_NUMBER:
        return False
    next_word = _NEXT_WORD.match(line, end)
    following = next_word[1] if next_word else ""
    if not is_seldom_last:
        return word[0].isupper() and lower != "no" and _ROMAN_NUMBER.fullmatch(following) is not None
    is_initial = len(following) == 1 and line[end + 1 : end + 2] == "."
    return is_initial or following.replace("’", "'").lower() not in _STARTERS


def _ends_unspaced(line: str, start: int, stop: int, end: int) -> bool:
    """As _ends, without white space behind the stops: as Chinese and Japanese are written."""
    following = line[end]
    if following in _CONTINUING:
        return False
    is_closed = line[end - 1] in _CLOSERS
    if is_closed and following in _PARTICLES:
        return False
    if is_closed or line[stop] in "!?" or line[stop + 1] in _STOPS or line[stop] in _FULL_WIDTH_STOPS:
        return True
    # One "." or "…" between two characters: a full stop unless it is part of a number.
    return line[stop] in ".．" and line[max(start, stop - 1)] >= FIRST_UNSPACED and not following.isdigit()
