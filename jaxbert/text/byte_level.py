"""Byte-level BPE tokenizers (GPT-2's, RoBERTa's) from the two files that they were published as."""

import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from jaxbert.text.wordpiece import VocabularyError

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# The files of a tokenizer are a few megabytes.
_MOST_BYTES = 64_000_000
# Special tokens and unused places are made by no merge; they are few.
_MOST_UNMADE = 0.05


def byte_level_tokenizer(
    vocabulary: pathlib.Path, merges: pathlib.Path, add_prefix_space: bool = False, trim_offsets: bool = True
) -> Tokenizer:
    """RoBERTa's tokenizer from its vocab.json and merges.txt, as transformers puts it together (tokenization_roberta.py).

    Raises VocabularyError, with a file's name, for files that are missing, damaged, or without RoBERTa's special tokens.
    """
    for file in (vocabulary, merges):
        if not file.is_file():
            raise VocabularyError(f"{file}: no such file, and {vocabulary.name} and {merges.name} belong together")
        if file.stat().st_size > _MOST_BYTES:
            raise VocabularyError(f"{file}: {file.stat().st_size} bytes are no tokenizer's")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), fuse_unk=False))
    except Exception as error:  # the library raises no narrower class
        raise VocabularyError(
            f"{vocabulary}: is no byte-level BPE together with {merges.name}: {str(error).splitlines()[0]}"
        ) from None
    ids = tokenizer.get_vocab()
    missing = [token for token in _SPECIAL if token not in ids]
    if missing:
        raise VocabularyError(f"{vocabulary}: has no {', '.join(missing)}: not a RoBERTa vocabulary")
    made = _merged(merges)
    unmade = sum(len(piece) > 1 and piece not in made for piece in ids)
    if unmade > _MOST_UNMADE * len(ids):
        raise VocabularyError(
            f"{merges}: {unmade:,} of the {len(ids):,} pieces in {vocabulary.name} are made by no line of it: it is cut short, or "
            "another one's"
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets, add_prefix_space
    )
    # The space before a mask belongs to it.
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in _SPECIAL])
    return tokenizer


def _merged(merges: pathlib.Path) -> set[str]:
    """What the lines of a merges.txt make: "a b" is "ab"."""
    lines = merges.read_text(encoding="utf8").splitlines()
    return {line.replace(" ", "", 1) for line in lines if not line.startswith("#version")}
