"""The words of a running text, and which of a tokenizer's pieces is the first of each."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

from tokenizers import Encoding

# It parts words as a space does, though Unicode calls it a format character.
_ZERO_WIDTH_SPACE = "\u200b"


def _marks() -> str:
    """Ranges of the characters that are no word of their own: marks, joiners, soft hyphens, variation selectors."""
    planes = (*range(0x20000), *range(0xE0000, 0xE1000))
    codes = [code for code in planes if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf")]
    codes.remove(ord(_ZERO_WIDTH_SPACE))
    runs = (list(run) for _, run in itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0]))
    return "".join(f"{chr(run[0][1])}-{chr(run[-1][1])}" for run in runs)


# A word of a running text: letters, digits, or one character of anything else that is seen, each with the marks behind it (Unicode
# Standard Annex 29, rule WB4). Where no spaces part words, every character is one: Chinese, Japanese and Korean; Thai, Lao, Burmese, Khmer.
_CJK = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\U00020000-\U0003134f\u3040-\u30ff"
_ALONE = rf"{_CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# A pictograph with its skin, and those that joiners make one (WB3c, WB4); two regional indicators are a flag (WB15, WB16).
_PICTOGRAPH, _SKIN = (
    "[\u00a9\u00ae\u203c-\u2bff\u3030\u303d\U0001f000-\U0001f1e5\U0001f200-\U0001faff]",
    "\U0001f3fb-\U0001f3ff",
)
_FLAG = "[\U0001f1e6-\U0001f1ff]"
_LETTER, _MARK = rf"[^\W\d_{_ALONE}]", f"[{_marks()}]"
_WORD = re.compile(
    rf"(?:{_FLAG}{{2}}|{_PICTOGRAPH}[{_marks()}{_SKIN}]*(?:(?<=\u200d){_PICTOGRAPH}[{_marks()}{_SKIN}]*)*|[{_ALONE}]|{_LETTER}+(?:{_MARK}+{_LETTER}*)*|\d+(?:{_MARK}+\d*)*|[^\w\s{_ZERO_WIDTH_SPACE}]|_){_MARK}*"
)


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
