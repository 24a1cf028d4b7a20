"""New tokens for an old model: each gets the mean of the pieces that it was written in so far."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer, models, normalizers

from jaxbert.config import ModelConfig
from jaxbert.text.vocabulary import Vocabulary, is_byte_level
from jaxbert.weights.names import OVER_VOCABULARY, WeightsError, shown
from jaxbert.weights.tokenizer import open_tokenizer
from jaxbert.weights.tree import Params, from_tree, to_tree

_FIRST_CJK = "\u2e80"


@dataclasses.dataclass(frozen=True)
class Extended:
    """A model with more tokens."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    added: Mapping[str, tuple[str, ...]]
    """New token -> the pieces whose embeddings its own is the mean of; none: of the whole table."""
    known: tuple[str, ...]
    """Words that are one token already."""


def read_words(path: pathlib.Path) -> list[str]:
    """The words in a file, one a line, each once. Raises WeightsError for a file that cannot be read, or has none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}): name a UTF-8 file with a word on each line") from None
    words = list(dict.fromkeys(word for line in lines if (word := line.strip())))
    if not words:
        raise WeightsError(f"{path}: has no words: put one on each line")
    return words


def extend_vocabulary(
    config: ModelConfig, params: Mapping[str, Any], folder: pathlib.Path, words: Sequence[str]
) -> Extended:
    """The model with a token for each word that is not one, behind the tokens that it has.

    The row of a new token in the word table, and its bias in the MLM head, is the mean over its pieces; [UNK] is left out
    of it, and a word of nothing else gets the mean of the whole table.
    A word that the tokenizer leaves whole becomes a piece of its WordPiece vocabulary, and words that begin with it may be
    written with it. Any other ("New York", Chinese words) is added as transformers adds tokens.

    Raises WeightsError where the tokenizer and the table are of different sizes, because ids would lie on each other's rows.
    """
    tokenizer = open_tokenizer(folder)
    vocabulary = Vocabulary.of(tokenizer)
    if vocabulary.size > (config.vocab_size or 0):
        raise WeightsError(
            f"{folder}: has {vocabulary.size} tokens and the model {config.vocab_size} embeddings: take the tokenizer that belongs to it"
        )
    pieces, known = _pieces(tokenizer, vocabulary, words)
    extended = _with_tokens(tokenizer, list(pieces), vocabulary.size)
    ids = {word: extended.encode(word, add_special_tokens=False).ids for word in pieces}
    split = [word for word in pieces if len(ids[word]) != 1 or ids[word][0] < vocabulary.size]
    if split:
        raise WeightsError(
            f"{shown(repr(split[0]))} cannot be made one token of this tokenizer: take it out of the words"
        )
    # A table may have rows that no token used so far: they are taken first.
    size = max(config.vocab_size or 0, Vocabulary.of(extended).size)
    arrays = from_tree(params, config)
    for path in arrays.keys() & {*OVER_VOCABULARY}:
        old = arrays[path]
        arrays[path] = np.zeros((size, *old.shape[1:]), np.float32)
        arrays[path][: len(old)] = old
        for word, encoding in pieces.items():
            arrays[path][ids[word][0]] = _mean(old[: vocabulary.size], encoding.ids, vocabulary.unk_id)
    new = dataclasses.replace(config, vocab_size=size)
    unknown = tokenizer.id_to_token(vocabulary.unk_id)
    added = {word: tuple(piece for piece in encoding.tokens if piece != unknown) for word, encoding in pieces.items()}
    return Extended(new, to_tree(arrays, new), extended, added, known)


def _pieces(
    tokenizer: Tokenizer, vocabulary: Vocabulary, words: Sequence[str]
) -> tuple[dict[str, Encoding], tuple[str, ...]]:
    """What each word is written in, and the words that are one token already."""
    space = " " if is_byte_level(tokenizer) else ""
    pieces, known = {}, []
    for word in words:
        encoding = tokenizer.encode(space + word if _has_spaces_around(word) else word, add_special_tokens=False)
        bare = tokenizer.encode(word, add_special_tokens=False)
        if any(len(one) == 1 and one.ids[0] != vocabulary.unk_id for one in (encoding, bare)):
            known.append(word)
        elif not encoding.ids:
            raise WeightsError(f"{shown(repr(word))} is nothing to this tokenizer: take it out of the words")
        else:
            pieces[word] = encoding
    return pieces, tuple(known)


def _mean(table: np.ndarray, ids: Sequence[int], unknown: int) -> np.ndarray:
    rows = table[[index for index in ids if index != unknown]]
    return (rows if len(rows) else table).mean(0, dtype=np.float64).astype(np.float32)


def _with_tokens(tokenizer: Tokenizer, words: Sequence[str], size: int) -> Tokenizer:
    """The tokenizer with a token for each word, behind the `size` ids that it has."""
    state = json.loads(tokenizer.to_str())
    others = list(words)
    if isinstance(tokenizer.model, models.WordPiece) and isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        whole = {word: _whole_word(tokenizer, word) for word in words}
        new = dict.fromkeys(piece for piece in whole.values() if piece)
        state["model"]["vocab"] |= {piece: size + i for i, piece in enumerate(new)}
        others = [word for word in words if not whole[word]]
    extended = Tokenizer.from_str(json.dumps(state))
    takes_space = is_byte_level(tokenizer)
    extended.add_tokens([_added(word, takes_space) for word in others])
    return extended


def _whole_word(tokenizer: Tokenizer, word: str) -> str | None:
    """The word as WordPiece would look it up; None where the pre-tokeniser splits it, or it is too long to be looked up."""
    parts = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word))
    longest = tokenizer.model.max_input_chars_per_word
    return parts[0][0] if len(parts) == 1 and len(parts[0][0]) <= longest else None


def _has_spaces_around(word: str) -> bool:
    """Whether it is written in a script whose words have spaces between them."""
    return not any(character >= _FIRST_CJK for character in word)


def _added(word: str, takes_space: bool) -> AddedToken:
    # BERT's normaliser puts spaces around Chinese characters, so these are looked for in the text as it is.
    spaced = _has_spaces_around(word)
    return AddedToken(word, single_word=spaced, normalized=spaced, lstrip=takes_space and spaced)
