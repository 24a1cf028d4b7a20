"""The tokenizer's files beside weights: whether they fit the model, and how they are opened and copied."""

import pathlib
import shutil

from tokenizers import Tokenizer

from jaxbert.text.vocabulary import VocabularyError, load_tokenizer, save_tokenizer
from jaxbert.weights.configuration import MOST_TEXT_BYTES, read_json
from jaxbert.weights.folder import inside
from jaxbert.weights.names import WeightsError, shown

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)
OPENED = ("tokenizer.json", "vocab.txt", "vocab.json")
"""What `open_tokenizer` reads, the first that is there."""
# Any of these makes a tokenizer.
_ENOUGH = (*OPENED, "sentencepiece.bpe.model")


def find_tokenizer(folder: pathlib.Path, vocab_size: int) -> pathlib.Path | None:
    """The folder itself, where it holds a tokenizer.

    Raises WeightsError for a tokenizer with more tokens than the model has embeddings, and for a damaged one.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    for file in files:
        inside(file, folder)
    names = {file.name for file in files}
    if not names & {*_ENOUGH}:
        return None
    if not names & {*_ENOUGH} - {"vocab.json"} and "merges.txt" not in names:
        raise WeightsError(f"{folder / 'vocab.json'}: has no merges.txt beside it: get the folder again")
    # All of them: an export copies each, and other systems read another than we do.
    for source in (name for name in OPENED if name in names):
        tokens = _count(folder / source)
        if tokens > vocab_size:
            raise WeightsError(
                f"{folder / source}: has {tokens} tokens and the model {vocab_size} embeddings: "
                "take the tokenizer that belongs to the weights"
            )
    return folder


def open_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a folder, without truncation and padding.

    Raises WeightsError for one that is damaged, has no special tokens, or is of a kind that is not read here.
    """
    try:
        return load_tokenizer(folder)
    except VocabularyError as error:
        raise WeightsError(
            f"{error}: take the tokenizer that belongs to the weights, as a {_ENOUGH[0]}, which transformers writes: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path, max_length: int) -> None:
    """Copies a tokenizer's files; one that is a vocab.txt alone becomes a folder that `transformers.AutoTokenizer` loads."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {*names} & {*_ENOUGH}:
        raise WeightsError(f"{source}: holds no tokenizer ({', '.join(_ENOUGH)}): name the folder that does")
    if names == ["vocab.txt"]:
        save_tokenizer(load_tokenizer(source / "vocab.txt"), target, max_length)
        return
    for name in names:
        shutil.copyfile(inside(source / name, source), target / name)


def _count(file: pathlib.Path) -> int:
    """The largest id and one, of one of OPENED."""
    if file.name == "vocab.txt":
        return len(_lines(file))
    state = read_json(file)
    if file.name == "vocab.json":
        return max((n for n in state.values() if isinstance(n, int)), default=-1) + 1
    try:
        vocab, added = state["model"]["vocab"], state.get("added_tokens") or []
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        ids += [token["id"] for token in added]
        return max(ids, default=-1) + 1
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{file}: is no tokenizer ({shown(error)}): get the file again") from None


def _lines(path: pathlib.Path) -> list[str]:
    try:
        if path.stat().st_size > MOST_TEXT_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size} bytes are no vocabulary: get the file again")
        return path.read_text(encoding="utf8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({str(error).splitlines()[0]}): get the file again") from None
