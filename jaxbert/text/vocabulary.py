"""Tokenizers: learn one (wordpiece.py), load an existing one, save it as a Hugging Face folder; what its ids mean.

transformers is not needed to write the folder that it loads.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from tokenizers import Tokenizer, models, normalizers

from jaxbert.text.byte_level import byte_level_tokenizer
from jaxbert.text.wordpiece import SPECIAL, VocabularyError, bert_tokenizer, train_tokenizer

__all__ = [
    "Vocabulary",
    "VocabularyError",
    "fingerprint",
    "is_byte_level",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]

# By role: BERT's name, RoBERTa's name.
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
# What tokenizer_config.json may say, of those that are read.
_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "trim_offsets")
# The files of a tokenizer are a few megabytes.
_MOST_BYTES = 256_000_000
# Share of pieces with capital letters from which a vocab.txt is taken for a cased one: bert-base-cased has over 30 %.
_CASED_SHARE = 0.01
_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the ids of a tokenizer mean."""

    size: int
    """Ids, from 0; one above the largest."""
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    """Ids that are no text, ascending: special tokens and unused places. Never masked, never a random replacement."""
    lowercase: bool
    """Whether the tokenizer lower-cases text."""
    continuing_ids: tuple[int, ...] | None = dataclasses.field(repr=False)
    """Ids of pieces that continue a word, ascending. None: this kind of tokenizer does not say."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Reads a tokenizer. Raises VocabularyError when a token for padding, unknown, [CLS], [SEP] or [MASK] is missing."""
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        ids = {}
        for role, names in _NAMES.items():
            found = [pieces[name] for name in names if name in pieces]
            if not found:
                raise VocabularyError(f"the tokenizer has no {' or '.join(names)} token")
            ids[f"{role}_id"] = found[0]
        added = tokenizer.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        special |= set(ids.values()) | {index for piece, index in pieces.items() if _UNUSED.fullmatch(piece)}
        state = json.loads(tokenizer.to_str())
        return cls(
            size=max(pieces.values()) + 1,
            **ids,
            special_ids=tuple(sorted(special)),
            lowercase=any(
                part.get("lowercase", part["type"] == "Lowercase")
                for part in _parts(state["normalizer"], "normalizers")
            ),
            continuing_ids=_continuing_ids(state, pieces, special | added.keys()),
        )

    def continuation_table(self) -> Bool[np.ndarray, " size"]:
        """Returns bool [size]: True where a piece continues the word of the piece before it. Special ids are False.

        Byte-level pieces without a leading space count as continuing, so the first piece of a text does too: callers
        mark it a start. Raises VocabularyError for a tokenizer whose pieces do not show it.
        """
        if self.continuing_ids is None:
            raise VocabularyError(
                "this kind of tokenizer does not show which pieces continue a word: use WordPiece, byte-level BPE or Unigram"
            )
        table = np.zeros(self.size, dtype=bool)
        table[list(self.continuing_ids)] = True
        return table


def load_tokenizer(path: str | pathlib.Path, lowercase: bool | None = None) -> Tokenizer:
    """Loads a vocab.txt, a tokenizer.json or a Hugging Face tokenizer folder; truncation and padding are taken out.

    A folder may hold a tokenizer.json, a vocab.txt, or RoBERTa's vocab.json and merges.txt.
    `lowercase` is for a vocab.txt alone (a folder's tokenizer_config.json goes first), a tokenizer.json says it itself.
    None: lower-casing, unless the vocabulary has pieces with capitals.
    Raises VocabularyError, with the file's name, for a file that is missing, damaged or has no [MASK] or other special token.
    """
    path = pathlib.Path(path)
    file = _tokenizer_file(path) if path.is_dir() else path
    options: dict[str, bool] = {}
    if path.is_dir() and file.name != "tokenizer.json":
        options = _options(path / "tokenizer_config.json")
        if (path / "added_tokens.json").is_file() and _read_json(path / "added_tokens.json").keys() - {*SPECIAL}:
            raise VocabularyError(f"{path}: has an added_tokens.json, whose tokens need a tokenizer.json")
    if file.name == "vocab.json":
        flags = {key: options[key] for key in ("add_prefix_space", "trim_offsets") if key in options}
        tokenizer = byte_level_tokenizer(file, file.with_name("merges.txt"), **flags)
    elif file.suffix == ".json":
        tokenizer = _tokenizer_from_json(file)
    else:
        pieces = _read_vocab(file)
        tokenizer = bert_tokenizer(
            pieces,
            lowercase=options.get("do_lower_case", not _is_cased(pieces) if lowercase is None else lowercase),
            strip_accents=options.get("strip_accents"),
            split_chinese=options.get("tokenize_chinese_chars", True),
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        Vocabulary.of(tokenizer)
    except VocabularyError as error:
        raise VocabularyError(f"{file}: {error}") from None
    return tokenizer


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether it is GPT-2's kind, which sees a word in a text together with the space before it."""
    state = json.loads(tokenizer.to_str())
    return any(part["type"] == "ByteLevel" for part in _parts(state["pre_tokenizer"], "pretokenizers"))


def save_tokenizer(tokenizer: Tokenizer, directory: str | pathlib.Path, max_length: int) -> None:
    """Writes a folder that `transformers.AutoTokenizer` loads and that encodes identically; `max_length` is in tokens."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(tokenizer)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = {f"{role}_token": tokenizer.id_to_token(getattr(vocabulary, f"{role}_id")) for role in _NAMES}
    config: dict[str, Any] = {"model_max_length": max_length, **tokens}
    bert = _bert_options(tokenizer)
    if bert is not None:
        config |= {"tokenizer_class": "BertTokenizer", **bert}
    else:
        # The class that takes everything from tokenizer.json; BertTokenizer would rebuild it as BERT's.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", tokens)
    if isinstance(tokenizer.model, models.WordPiece):
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        by_id = sorted(pieces, key=pieces.__getitem__)
        (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece in by_id), encoding="utf-8", newline="\n")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a sha256, in hex, of all that decides how the tokenizer encodes; truncation and padding are left out."""
    state = json.loads(tokenizer.to_str())
    del state["truncation"], state["padding"]
    return hashlib.sha256(json.dumps(state, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tokenizer_file(folder: pathlib.Path) -> pathlib.Path:
    for name in ("tokenizer.json", "vocab.txt", "vocab.json"):
        if (folder / name).is_file():
            return folder / name
    raise VocabularyError(f"{folder}: the folder has no tokenizer.json, vocab.txt or vocab.json")


def _options(file: pathlib.Path) -> dict[str, bool]:
    """What a tokenizer_config.json, where there is one, says of how text is split; null is as if it said nothing."""
    values = _read_json(file) if file.is_file() else {}
    found = {name: values[name] for name in _FLAGS if values.get(name) is not None}
    wrong = [name for name, value in found.items() if not isinstance(value, bool)]
    if wrong:
        raise VocabularyError(f"{file}: {wrong[0]} is {found[wrong[0]]!r}, and neither true nor false")
    return found


def _is_cased(pieces: Mapping[str, int]) -> bool:
    """Whether the text that a vocab.txt was learnt from kept its capitals."""
    capital = sum(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    return capital > _CASED_SHARE * len(pieces)


def _bert_options(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The options with which transformers' BertTokenizer is this tokenizer; None where it cannot be."""
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return None
    options = (normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars)
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    if fingerprint(bert_tokenizer(pieces, *options)) != fingerprint(tokenizer):
        return None
    return dict(zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), options, strict=True))


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a serialised normaliser, pre-tokeniser or decoder that may be missing or a sequence (under `key`)."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [part for member in component[key] for part in _parts(member, key)]


def _continuing_ids(state: dict[str, Any], pieces: dict[str, int], no_text: set[int]) -> tuple[int, ...] | None:
    """Vocabulary.continuing_ids from a tokenizer's serialisation."""
    model = state["model"]
    prefix = model.get("continuing_subword_prefix")
    if model["type"] == "WordLevel":
        return ()
    if prefix:
        return tuple(sorted(i for piece, i in pieces.items() if piece.startswith(prefix) and i not in no_text))
    mark = None
    if model["type"] in ("BPE", "Unigram") and not model.get("end_of_word_suffix"):
        splits, changes = _parts(state["pre_tokenizer"], "pretokenizers"), _parts(state["normalizer"], "normalizers")
        # GPT-2's byte alphabet writes a space as the first character, SentencePiece as the second.
        mark = "Ġ" if any(part["type"] == "ByteLevel" for part in splits) else None
        for part in splits:
            mark = part["replacement"] if part["type"] == "Metaspace" else mark
        if any(part["type"] == "Replace" and part["content"] == "▁" for part in changes):
            mark = "▁"
    if mark is None:
        return None
    return tuple(sorted(i for piece, i in pieces.items() if not piece.startswith(mark) and i not in no_text))


def _read_text(file: pathlib.Path) -> str:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise VocabularyError(f"{file}: {file.stat().st_size} bytes are no tokenizer's")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VocabularyError(f"{file}: no such file or folder (data.vocabulary.path)") from None
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{file}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise VocabularyError(f"{file}: cannot be read: {error.strerror}") from None


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise VocabularyError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise VocabularyError(f"{file}: not a JSON object")
    return content


def _read_vocab(file: pathlib.Path) -> dict[str, int]:
    """The pieces of a vocab.txt, one a line; the line number from 0 is the id."""
    lines = _read_text(file).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise VocabularyError(f"{file}: the file is empty")
    pieces: dict[str, int] = {}
    for index, piece in enumerate(lines):
        if not piece:
            raise VocabularyError(f"{file}: line {index + 1} is blank")
        if piece in pieces:
            raise VocabularyError(f"{file}: line {index + 1} repeats {piece!r} of line {pieces[piece] + 1}")
        pieces[piece] = index
    missing = [name for name in SPECIAL if name not in pieces]
    if missing:
        raise VocabularyError(f"{file}: no line has {', '.join(missing)}: not a BERT vocabulary")
    return pieces


def _tokenizer_from_json(file: pathlib.Path) -> Tokenizer:
    content = _read_json(file)
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises no narrower class
        raise VocabularyError(
            f"{file}: not a tokenizer of the tokenizers library: {str(error).splitlines()[0]}"
        ) from None


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
