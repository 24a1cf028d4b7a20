"""Texts -> token ids, cut or in windows where they are longer than the model reads."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenizers import Encoding, Tokenizer

from jaxbert.config import UserError
from jaxbert.text.vocabulary import Vocabulary
from jaxbert.weights import tokenizer

Text = str | tuple[str, str]
LongTexts = Literal["truncate", "window"]

WINDOW_OVERLAP = 0.25
"""Share of a window that the next one repeats, so that a token near an edge is seen with its surroundings once."""


class PredictError(UserError):
    """A text or a model that cannot serve what was asked."""


class TextError(PredictError):
    """Some of several texts cannot be served. `faults`: number of each, from 0, and what is wrong with it."""

    def __init__(self, faults: Mapping[int, str], noun: str = "text"):
        self.faults: Mapping[int, str] = faults
        first = min(faults)
        others = f" ({len(faults) - 1} more {noun}s cannot be served)" if len(faults) > 1 else ""
        super().__init__(f"{noun} {first} {faults[first]}{others}")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A text as the model reads it: one window, or several where it is too long for one."""

    windows: tuple[Encoding, ...]
    truncated: bool
    """Whether tokens were left out."""


class TextEncoder:
    """A tokenizer that knows how much its model reads."""

    def __init__(self, opened: Tokenizer, max_length: int, long_texts: LongTexts):
        self.tokenizer: Tokenizer = opened
        self.max_length: int = max_length
        self.long_texts: LongTexts = long_texts
        self.vocabulary: Vocabulary = Vocabulary.of(opened)

    def encode(self, texts: Sequence[Text], *, with_offsets: bool = False) -> list[Encoded]:
        """The windows of each text or pair of texts, special tokens included. Offsets in characters, where asked for.

        A pair that is too long loses tokens from the longer one until both are equally long: from their ends, or, where
        `long_texts` is "window", from the start of the first, so that what is read is around where they meet.
        Raises PredictError for what is no text.
        """
        encode_batch = self.tokenizer.encode_batch if with_offsets else self.tokenizer.encode_batch_fast
        try:
            encodings = encode_batch(list(texts))
        except (TypeError, UnicodeEncodeError, ValueError) as error:
            raise _bad_text(texts, error) from None
        return [
            Encoded((encoding,), False) if len(encoding) <= self.max_length else self._shorten(text)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _shorten(self, text: Text) -> Encoded:
        pair = isinstance(text, tuple)
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair)
        if room < 1 + pair:
            raise PredictError(f"max_length {self.max_length} leaves no room beside the special tokens: raise it")
        if isinstance(text, tuple):
            first, second = (self.tokenizer.encode(part, add_special_tokens=False) for part in text)
            # The longer one gives, until both are equally long.
            least, half = min(len(first), len(second)), room // 2
            longest = room - least if least < half else room - half
            first_length = min(len(first), longest if len(first) > len(second) else room - longest)
            first = _cut(first, first_length, "left" if self.long_texts == "window" else "right")
            second = _cut(second, room - first_length, "right")
            return Encoded((self.tokenizer.post_process(first, second),), True)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        window = self.long_texts == "window"
        encoding.truncate(room, stride=int(room * WINDOW_OVERLAP) if window else 0)
        parts = (encoding, *encoding.overflowing) if window else (encoding,)
        return Encoded(tuple(self.tokenizer.post_process(part) for part in parts), not window)


def _cut(encoding: Encoding, length: int, direction: str) -> Encoding:
    """The first or ("left") the last tokens. What is cut off is dropped too: of a pair, it would come back in every combination."""
    encoding.truncate(length, direction=direction)
    state: Any = json.loads(encoding.__getstate__())
    kept = Encoding()
    kept.__setstate__(json.dumps(state | {"overflowing": []}).encode())
    return kept


def open_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a folder, without truncation and padding; transformers opens SentencePiece's.

    Raises WeightsError or PredictError for one that is damaged or that has no special tokens.
    """
    if any((folder / name).is_file() for name in tokenizer.OPENED):
        return tokenizer.open_tokenizer(folder)
    return _through_transformers(folder)


def _through_transformers(folder: pathlib.Path) -> Tokenizer:
    """A tokenizer in a file that transformers knows how to convert (sentencepiece.bpe.model)."""
    import transformers

    try:
        made: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        opened = Tokenizer.from_str(made.backend_tokenizer.to_str())
    except Exception as error:  # whatever its many classes raise
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise PredictError(f"{folder}: transformers cannot open its tokenizer ({text}): add a tokenizer.json") from None
    opened.no_truncation()
    opened.no_padding()
    return opened


def _bad_text(texts: Sequence[Any], error: Exception) -> PredictError:
    faults = {number: fault for number, text in enumerate(texts) if (fault := fault_of(text))}
    if faults:
        return TextError(faults)
    return PredictError(f"the tokenizer refuses the texts: {str(error).splitlines()[0]}")


def fault_of(text: Any) -> str | None:
    """Why a text, or a pair, is none."""
    for part in text if isinstance(text, tuple) else (text,):
        if not isinstance(part, str):
            return f"is of the type {type(part).__name__}: texts are str"
        try:
            part.encode()
        except UnicodeEncodeError:
            return "has a lone surrogate, which is no character: leave it out"
    return None
