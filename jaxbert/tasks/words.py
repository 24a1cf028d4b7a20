"""The words of a running text, and which of a tokenizer's pieces is the first of each."""

import re
from collections.abc import Sequence

from tokenizers import Encoding

# A word of a running text: letters, digits, or one character of anything else that is seen; CJK characters are words each.
_CJK = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\U00020000-\U0003134f\u3040-\u30ff"
_WORD = re.compile(rf"[{_CJK}]|(?:[^\W\d_{_CJK}][\u0300-\u036f]*)+|\d+|[^\w\s]|_")


def words_of(text: str) -> tuple[tuple[int, int], ...]:
    """(start, end) in characters of the words of a running text."""
    return tuple((match.start(), match.end()) for match in _WORD.finditer(text))


def first_pieces(encoding: Encoding, words: Sequence[tuple[int, int]]) -> tuple[dict[int, int], dict[int, int]]:
    """Of this window: place of a token -> the word that it is the first piece of; word -> the word whose piece it is a part of."""
    found: dict[int, int] = {}
    within: dict[int, int] = {}
    word, taken = 0, -1
    for place, (start, end) in enumerate(encoding.offsets):
        if encoding.special_tokens_mask[place]:
            continue
        while word < len(words) and words[word][1] <= start:
            word += 1
        # A window may begin within a word: that word's first piece is in the window before. Pieces may be bytes of one character.
        if word < len(words) and start <= words[word][0] < end and word > taken:
            found[place] = taken = word
            # A piece may be several words: "R2D2", a flag.
            while taken + 1 < len(words) and words[taken + 1][0] < end:
                taken += 1
                within[taken] = word
    return found, within
