"""One system's checkpoint -> another's: what `jaxbert convert` does."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from jaxbert.config import Pooling
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.weights.configuration import (
    ARCHITECTURES,
    MOST_TEXT_BYTES,
    fitting_architecture,
    is_base,
    stored_groups,
    write_configuration,
)
from jaxbert.weights.embedder import Embedder
from jaxbert.weights.flax_v4 import write_msgpack
from jaxbert.weights.folder import CONFIG, FLAX, GOOGLE_CONFIG, inside, write_json, written_whole
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import Loaded, load
from jaxbert.weights.model_card import model_card
from jaxbert.weights.names import WeightsError, shown
from jaxbert.weights.tensorflow_checkpoint import google_configuration, write_checkpoint
from jaxbert.weights.tokenizer import copy_tokenizer, open_tokenizer
from jaxbert.weights.vocabulary_surgery import Extended, extend_vocabulary, read_words

System = Literal["huggingface", "tensorflow", "flax"]
CHECKPOINT, VOCAB, CARD = "bert_model.ckpt", "vocab.txt", "README.md"


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: pathlib.Path
    architecture: str
    """transformers' class that loads it."""
    fresh: tuple[str, ...]
    """Parameters that were not in the source, and are initialised anew."""
    unread: tuple[str, ...]
    """Names of what the source holds and the target does not."""
    left_out: tuple[str, ...]
    """Heads that were there, and that the class has not; the pooling of an embedder, where the system knows none."""
    added: Mapping[str, tuple[str, ...]]
    """New token -> the pieces that its embedding is the mean of."""
    known: tuple[str, ...]
    """Words that were to be added and are one token already."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: System = "huggingface",
    architecture: str | None = None,
    extend_vocab: str | os.PathLike[str] | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    overwrite: bool = False,
    **request: Any,
) -> Converted:
    """Loads any checkpoint that `load` takes, and writes it as another system's.

    Args:
      to: "huggingface": a folder for transformers (and sentence-transformers, where it is an embedder); "tensorflow": Google's
        bert_model.ckpt, bert_config.json and vocab.txt; "flax": flax_model.msgpack for the Flax classes of transformers 4.
      architecture: transformers' class. None: the one that the source names, or that holds all of its heads.
      extend_vocab: a file with a word on each line; those that are no token yet become one (`extend_vocabulary`).
      pooling: make it an embedder.
      normalize: whether its vectors are scaled to length 1. None: as the embedder that it is, and of a new one yes.
      overwrite: replace a folder that is there.
      request: further arguments of `load`.

    Raises WeightsError in one line.
    """
    _check(to, architecture, pooling)
    target = pathlib.Path(target).absolute()
    loaded = load(source, **request)
    chosen = _architecture(loaded, architecture, request.get("fresh", ()))
    if pooling is not None or normalize is not None:
        loaded = dataclasses.replace(loaded, embedder=_embedder(loaded, pooling, normalize))
    left_out = [group for group in loaded.groups if group not in ARCHITECTURES[chosen][1]]
    if loaded.embedder is not None and to != "huggingface":
        left_out.append("pooling of the embedder")
    extended = None
    with tempfile.TemporaryDirectory() as scratch:
        if extend_vocab is not None:
            extended = _extended(loaded, pathlib.Path(extend_vocab))
            save_tokenizer(extended.tokenizer, scratch, extended.config.max_position_embeddings)
            loaded = dataclasses.replace(
                loaded, config=extended.config, params=extended.params, tokenizer=pathlib.Path(scratch)
            )
        write = {"huggingface": _to_huggingface, "tensorflow": _to_tensorflow, "flax": _to_flax}[to]
        write(loaded, target, chosen, overwrite)
    return Converted(
        folder=target,
        architecture=chosen,
        fresh=loaded.fresh,
        unread=loaded.unread,
        left_out=tuple(left_out),
        added=extended.added if extended else {},
        known=extended.known if extended else (),
    )


def _embedder(loaded: Loaded, pooling: Pooling | None, normalize: bool | None) -> Embedder:
    """The embedder that the model is to be, of the one that it is."""
    before = loaded.embedder
    if before is None and pooling is None:
        raise WeightsError(f"{loaded.source}: is no embedder that normalize would be of: say its pooling too")
    known = before or Embedder(pooling or "mean", normalize=True)
    return dataclasses.replace(
        known,
        pooling=pooling or known.pooling,
        normalize=known.normalize if normalize is None else normalize,
    )


def _check(to: System, architecture: str | None, pooling: Pooling | None) -> None:
    """What can be said of the arguments before anything is read."""
    if to not in get_args(System):
        raise WeightsError(f"there is no system {to!r}: choose one of {', '.join(get_args(System))}")
    if architecture is not None and architecture not in ARCHITECTURES:
        raise WeightsError(f"there is no architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    if pooling is not None and pooling not in get_args(Pooling):
        raise WeightsError(f"pooling is {pooling!r}: choose one of {', '.join(get_args(Pooling))}")
    if pooling is not None and to != "huggingface":
        raise WeightsError(
            f"pooling is for sentence-transformers, which reads huggingface folders: leave it out for {to}"
        )


def _architecture(loaded: Loaded, asked: str | None, fresh: Collection[str]) -> str:
    if asked is None:
        return fitting_architecture(loaded.family, loaded.groups, loaded.architecture, fresh)
    if ARCHITECTURES[asked][0] != loaded.family:
        raise WeightsError(
            f"{loaded.source}: is a {loaded.family} model, and {asked} is none of {loaded.family}'s classes: choose one of "
            + ", ".join(name for name, (family, _) in ARCHITECTURES.items() if family == loaded.family)
        )
    return asked


def _extended(loaded: Loaded, words: pathlib.Path) -> Extended:
    if loaded.tokenizer is None:
        raise WeightsError(
            f"{loaded.source}: came without a tokenizer, so that no word can be added to it: put its files beside the weights"
        )
    return extend_vocabulary(loaded.config, loaded.params, loaded.tokenizer, read_words(words))


def _to_huggingface(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    card = _card(loaded, target.name, architecture)
    arguments = loaded.export_arguments() | {"architecture": architecture, "card": card, "overwrite": overwrite}
    save(target, **arguments)


def _card(loaded: Loaded, name: str, architecture: str) -> str:
    """The source's own model card, with a note of what became of it; where it has none, a new one."""
    is_run = loaded.step is not None
    source = loaded.source if is_run else loaded.source.parent
    # A run has its card in the model that it exported.
    own = (source / "model" if is_run else source) / CARD
    if own.is_file() and own.stat().st_size < MOST_TEXT_BYTES:
        note = f"Converted with jaxbert to a Hugging Face folder for `{architecture}`."
        text = inside(own, own.parent).read_text(encoding="utf8", errors="replace").rstrip()
        return text + ("" if text.endswith(note) else f"\n\n{note}") + "\n"
    return model_card(
        name,
        architecture,
        data=f"Converted from `{source.name}`; what it was trained on is said where that came from.",
        made="converted with jaxbert",
        embedder=loaded.embedder is not None,
        has_tokenizer=loaded.tokenizer is not None,
    )


def _to_tensorflow(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    if loaded.family != "bert":
        raise WeightsError(f"google-research/bert has no {loaded.family} models: convert to huggingface or flax")
    groups = stored_groups(architecture, loaded.groups)
    if "mlm" in groups and not loaded.config.tie_word_embeddings:
        raise WeightsError(
            f"{loaded.source}: its decoder is a table of its own, which google-research/bert has not: convert to huggingface or "
            "flax, or to the encoder alone with architecture BertModel"
        )
    if loaded.tokenizer is None or not (loaded.tokenizer / VOCAB).is_file():
        raise WeightsError(
            f"{loaded.source}: has no {VOCAB} beside it, which is all the tokenizer that Google's code knows"
        )
    _check_said_by_vocabulary(loaded.tokenizer)
    with written_whole(target, overwrite) as folder:
        write_json(folder / GOOGLE_CONFIG, google_configuration(loaded.layout))
        write_checkpoint(folder / CHECKPOINT, loaded.params, loaded.layout, groups)
        shutil.copyfile(inside(loaded.tokenizer / VOCAB, loaded.tokenizer), folder / VOCAB)


def _check_said_by_vocabulary(tokenizer: pathlib.Path) -> None:
    """Google's code reads a vocab.txt and nothing else: tokens that are found before a text is split into words are lost on it."""
    added = open_tokenizer(tokenizer).get_added_tokens_decoder().values()
    beside = [token.content for token in added if not token.special]
    if beside:
        raise WeightsError(
            f"{shown(repr(beside[0]))} is no single word to BERT's tokenizer, and vocab.txt has no other tokens: "
            "take it out of the words, or convert to huggingface"
        )


def _to_flax(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    values = write_configuration(loaded.layout, architecture, loaded.extra)
    groups = stored_groups(architecture, loaded.groups)
    with written_whole(target, overwrite) as folder:
        write_json(folder / CONFIG, values)
        write_msgpack(folder / FLAX, loaded.params, loaded.layout, groups, loaded.carried, is_base(architecture))
        if loaded.tokenizer is not None:
            copy_tokenizer(loaded.tokenizer, folder, loaded.config.max_position_embeddings)
