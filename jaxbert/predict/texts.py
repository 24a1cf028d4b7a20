"""Texts -> token ids, cut or in windows where they are longer than the model reads."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from tokenizers import Encoding, Tokenizer

from jaxbert.config import UserError
from jaxbert.text.vocabulary import Vocabulary, VocabularyError, load_tokenizer
from jaxbert.weights.folder import is_cased

Text = str | tuple[str, str]
LongTexts = Literal["truncate", "window"]
T = TypeVar("T")

WINDOW_OVERLAP = 0.25
"""Share of a window that the next one repeats, so that a token near an edge is seen with its surroundings once."""


class PredictError(UserError):
    """A text or a model that cannot serve what was asked."""


class TextError(PredictError):
    """One of several texts cannot be served: `number` from 0, and `what` is wrong with it."""

    def __init__(self, number: int, what: str):
        super().__init__(f"text {number} {what}")
        self.number: int = number
        self.what: str = what


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A text as the model reads it: one window, or several where it is too long for one."""

    windows: tuple[Encoding, ...]
    truncated: bool
    """Whether tokens were left out."""


class TextEncoder:
    """A tokenizer that knows how much its model reads."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, long_texts: LongTexts):
        self.tokenizer: Tokenizer = tokenizer
        self.max_length: int = max_length
        self.long_texts: LongTexts = long_texts
        self.vocabulary: Vocabulary = Vocabulary.of(tokenizer)

    def encode(self, texts: Sequence[Text], *, with_offsets: bool = False) -> list[Encoded]:
        """The windows of each text or pair of texts, special tokens included. Offsets in characters, where asked for.

        A pair that is too long loses tokens from the end of the longer one, whatever `long_texts` says.
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
            first.truncate(min(len(first), longest if len(first) > len(second) else room - longest))
            second.truncate(room - len(first))
            return Encoded((self.tokenizer.post_process(first, second),), True)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        window = self.long_texts == "window"
        encoding.truncate(room, stride=int(room * WINDOW_OVERLAP) if window else 0)
        parts = (encoding, *encoding.overflowing) if window else (encoding,)
        return Encoded(tuple(self.tokenizer.post_process(part) for part in parts), not window)


def open_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a folder, without truncation and padding.

    Raises PredictError for one that is damaged or that has no special tokens.
    """
    vocab_txt = folder / "vocab.txt"
    if not vocab_txt.is_file() and not (folder / "tokenizer.json").is_file():
        return _through_transformers(folder)
    try:
        return load_tokenizer(folder, lowercase=not (vocab_txt.is_file() and is_cased(vocab_txt)))
    except VocabularyError as error:
        raise PredictError(f"{error}: get the tokenizer that belongs to the weights") from None


def _through_transformers(folder: pathlib.Path) -> Tokenizer:
    """A tokenizer in files that transformers knows how to put together (merges.txt, sentencepiece.bpe.model)."""
    import transformers

    try:
        made: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(made.backend_tokenizer.to_str())
    except Exception as error:  # whatever its many classes raise
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise PredictError(f"{folder}: transformers cannot open its tokenizer ({text}): add a tokenizer.json") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _bad_text(texts: Sequence[Any], error: Exception) -> PredictError:
    for number, text in enumerate(texts):
        for part in text if isinstance(text, tuple) else (text,):
            if not isinstance(part, str):
                return TextError(number, f"is of the type {type(part).__name__}: texts are str")
            try:
                part.encode()
            except UnicodeEncodeError:
                return TextError(number, "has a lone surrogate, which is no character: leave it out")
    return PredictError(f"the tokenizer refuses the texts: {str(error).splitlines()[0]}")
