"""BERT's WordPiece tokenizer: built from its pieces, or learnt from text, the same in every process.

Normaliser, pre-tokeniser and post-processor are BERT's (Devlin et al. 2018, section 3; google-research/bert
tokenization.py), by the tokenizers library.
"""

import collections
import logging
import re
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxbert.config import UserError, VocabularyConfig

_LOG = logging.getLogger(__name__)

RESERVED = ("[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first pieces of a vocabulary that is learnt, at the ids of BERT's uncased one: 0, 1 to 99, 100, 101, 102, 103."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PREFIX = "##"
# Words above 100 characters are [UNK] to BERT, and the trainer's time is quadratic in a word's length: longer runs than
# this (base64, DNA) are not learnt from. Scripts without spaces are exempt.
_LONGEST_RUN = 1000
_LONG_RUN = re.compile(rf"[^\s\u2e80-\U0003ffff]{{{_LONGEST_RUN},}}")
_BLOCK_CHARACTERS = 1 << 18


class VocabularyError(UserError):
    """A vocabulary that cannot be learnt or used; its text is one line and names the file."""


def bert_tokenizer(
    pieces: dict[str, int], lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> Tokenizer:
    """BERT's tokenizer over these pieces; without a post-processor while [CLS] and [SEP] are not among them."""
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    special = sorted((name for name in SPECIAL if name in pieces), key=pieces.__getitem__)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if "[CLS]" in pieces and "[SEP]" in pieces:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])],
        )
    return tokenizer


def train_tokenizer(texts: Iterable[str], config: VocabularyConfig, warn: bool = True) -> Tokenizer:
    """Learns a WordPiece vocabulary from the first `config.sample_megabytes` of `texts` (in UTF-8) and returns its tokenizer.

    Ids: RESERVED, then the characters, then their continuing forms, then the pieces in the order learnt. There are exactly
    `config.size`, or fewer, with a warning in the log, where the text has no more that are seen `config.min_frequency`
    times. The characters are the `config.alphabet_limit` most frequent ones, fewer where `config.size` has no room. The
    result depends on the text alone, neither on the process nor on the number of threads.

    The sample is a prefix: texts that are sorted by source should come interleaved. It is held in memory compressed,
    about 0.4 bytes a byte. Raises VocabularyError when there is no text. `warn`: fewer pieces than `config.size` are worth a word.
    """
    sample, counts = _read_sample(texts, config.sample_megabytes * 1_000_000)
    # Without special tokens: where the text mentions them, they are learnt from as the words that they look like.
    lowercase = config.lowercase is not False
    tokenizer = bert_tokenizer({}, lowercase)
    alphabet = _choose_alphabet(tokenizer, counts, config)
    if not alphabet:
        raise VocabularyError(
            f"no character is seen data.vocabulary.min_frequency ({config.min_frequency}) times in the text"
        )
    # The library numbers continuing characters in the order of a randomly seeded hash map and breaks ties between pairs
    # by these numbers, so two trainings differ; as special tokens they get their numbers here. The alphabet's limit has
    # random ties too, so the alphabet comes from here and the limit only keeps others out.
    continuing = [_PREFIX + character for character, continues in sorted(alphabet.items()) if continues]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        show_progress=False,
        special_tokens=[*RESERVED, *sorted(alphabet), *continuing],
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
    )
    tokenizer.train_from_iterator(_lines(sample), trainer)
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    if warn and len(pieces) < config.size:
        _LOG.warning(
            "the vocabulary has %d pieces, not data.vocabulary.size (%d): the text has no more pieces that are seen %d times",
            len(pieces),
            config.size,
            config.min_frequency,
        )
    # The trainer's special tokens, a character each, would be found inside words: only the pieces are kept.
    return bert_tokenizer(pieces, lowercase)


def _read_sample(texts: Iterable[str], limit_bytes: int) -> tuple[list[bytes], dict[str, int]]:
    """The first `limit_bytes` of the texts in compressed blocks of lines, and how often each character is in them."""
    blocks: list[bytes] = []
    counts = np.zeros(0x110000, dtype=np.int64)
    room = limit_bytes
    for block in _blocks(texts):
        encoded = block.encode()
        if len(encoded) > room:
            encoded = encoded[:room]
            block = encoded.decode(errors="ignore")
        room -= len(encoded)
        codes = np.frombuffer(block.encode("utf-32-le"), dtype=np.uint32)
        spaces = np.flatnonzero(codes <= ord(" "))
        if np.diff(spaces, prepend=-1, append=len(codes)).max() > _LONGEST_RUN:
            block = _LONG_RUN.sub(" ", block)
            codes = np.frombuffer(block.encode("utf-32-le"), dtype=np.uint32)
        found = np.bincount(codes)
        counts[: len(found)] += found
        blocks.append(zlib.compress(block.encode(), 1))
        if room == 0:
            break
    return blocks, {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The texts, a line break between two, in blocks of about _BLOCK_CHARACTERS; a longer text is cut anywhere."""
    parts: list[str] = []
    characters = 0
    for text in texts:
        for first in range(0, len(text), _BLOCK_CHARACTERS):
            part = text[first : first + _BLOCK_CHARACTERS]
            parts.append(part)
            characters += len(part)
            if characters >= _BLOCK_CHARACTERS:
                yield "\n".join(parts)
                parts, characters = [], 0
    if parts:
        yield "\n".join(parts)


def _lines(blocks: list[bytes]) -> Iterator[str]:
    for block in blocks:
        yield from zlib.decompress(block).decode().split("\n")


def _choose_alphabet(tokenizer: Tokenizer, counts: dict[str, int], config: VocabularyConfig) -> dict[str, bool]:
    """The characters to learn, and whether each can continue a word (punctuation and CJK characters are words alone).

    A character that can gets both forms, seen or not: then no word of known characters is [UNK].
    """
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    normalized: collections.Counter[str] = collections.Counter()
    for raw, count in counts.items():
        for character in normalize(raw):
            if not character.isspace():
                normalized[character] += count
    frequent = [character for character, count in normalized.items() if count >= config.min_frequency]
    frequent.sort(key=lambda character: (-normalized[character], character))
    frequent = frequent[: config.alphabet_limit]
    alphabet: dict[str, bool] = {}
    room = config.size - len(RESERVED)
    for character in frequent:
        continues = len(split(normalize(f"a{character}a"))) == 1
        if room >= 1 + continues:
            alphabet[character] = continues
            room -= 1 + continues
    if len(alphabet) < len(frequent):
        _LOG.warning(
            "data.vocabulary.size (%d) has no room for %d of %d characters: they become [UNK]",
            config.size,
            len(frequent) - len(alphabet),
            len(frequent),
        )
    return alphabet
