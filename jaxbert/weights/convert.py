"""One system's checkpoint -> another's: what `jaxbert convert` does."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.weights.assemble import Layout
from jaxbert.weights.configuration import ARCHITECTURES, fitting_architecture, write_configuration
from jaxbert.weights.embedder import Embedder, Pooling
from jaxbert.weights.flax_v4 import write_msgpack
from jaxbert.weights.folder import CONFIG, FLAX, GOOGLE_CONFIG, copy_tokenizer, inside, write_json, written_whole
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import Loaded, load
from jaxbert.weights.model_card import model_card
from jaxbert.weights.names import WeightsError
from jaxbert.weights.tensorflow_checkpoint import google_configuration, write_checkpoint
from jaxbert.weights.vocabulary_surgery import extend_vocabulary, read_words

System = Literal["huggingface", "tensorflow", "flax"]
CHECKPOINT, VOCAB = "bert_model.ckpt", "vocab.txt"


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
    normalize: bool = True,
    overwrite: bool = False,
    **request: Any,
) -> Converted:
    """Loads any checkpoint that `load` takes, and writes it as another system's.

    Args:
      to: "huggingface": a folder for transformers (and sentence-transformers, where it is an embedder); "tensorflow": Google's
        bert_model.ckpt, bert_config.json and vocab.txt; "flax": flax_model.msgpack for the Flax classes of transformers 4.
      architecture: transformers' class. None: the one that the source names, or that holds all of its heads.
      extend_vocab: a file with a word on each line; those that are no token yet become one (`extend_vocabulary`).
      pooling, normalize: make it an embedder.
      overwrite: replace a folder that is there.
      request: further arguments of `load`.

    Raises WeightsError in one line.
    """
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
    target = pathlib.Path(target).absolute()
    loaded = load(source, **request)
    if architecture is not None and ARCHITECTURES[architecture][0] != loaded.family:
        raise WeightsError(
            f"{source}: is a {loaded.family} model, and {architecture} is none of {loaded.family}'s classes"
        )
    chosen = architecture or fitting_architecture(
        loaded.family, loaded.groups, loaded.architecture, request.get("fresh", ())
    )
    if pooling is not None:
        embedder = dataclasses.replace(loaded.embedder or Embedder(pooling), pooling=pooling, normalize=normalize)
        loaded = dataclasses.replace(loaded, embedder=embedder)
    added: Mapping[str, tuple[str, ...]] = {}
    known: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as scratch:
        if extend_vocab is not None:
            if loaded.tokenizer is None:
                raise WeightsError(f"{source}: came without a tokenizer, so that no word can be added to it")
            extended = extend_vocabulary(
                loaded.config, loaded.params, loaded.tokenizer, read_words(pathlib.Path(extend_vocab))
            )
            added, known = extended.added, extended.known
            if to == "tensorflow" and extended.beside_vocabulary:
                raise WeightsError(
                    f"{extended.beside_vocabulary[0]!r} is no single word to BERT's tokenizer, and vocab.txt has no other "
                    "tokens: take it out of the words, or convert to huggingface"
                )
            save_tokenizer(extended.tokenizer, scratch, extended.config.max_position_embeddings)
            loaded = dataclasses.replace(
                loaded, config=extended.config, params=extended.params, tokenizer=pathlib.Path(scratch)
            )
        write = {"huggingface": _to_huggingface, "tensorflow": _to_tensorflow, "flax": _to_flax}[to]
        write(loaded, target, chosen, overwrite)
    left_out = tuple(group for group in loaded.groups if group not in ARCHITECTURES[chosen][1])
    if loaded.embedder is not None and to != "huggingface":
        left_out = (*left_out, "pooling of the embedder")
    return Converted(target, chosen, loaded.fresh, loaded.unread, left_out, added, known)


def _to_huggingface(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    card = model_card(
        target.name,
        architecture,
        data=f"Converted by jaxbert from `{loaded.source.name}`; what it was trained on is said where that came from.",
        embedder=loaded.embedder is not None,
        has_tokenizer=loaded.tokenizer is not None,
    )
    arguments = loaded.export_arguments() | {"architecture": architecture, "card": card, "overwrite": overwrite}
    save(target, **arguments)


def _to_tensorflow(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    if loaded.family != "bert":
        raise WeightsError(f"google-research/bert has no {loaded.family} models: convert to huggingface or flax")
    if loaded.tokenizer is None or not (loaded.tokenizer / VOCAB).is_file():
        raise WeightsError(
            f"{loaded.source}: has no {VOCAB} beside it, which is all the tokenizer that Google's code knows"
        )
    layout = _layout(loaded)
    with written_whole(target, overwrite) as folder:
        write_json(folder / GOOGLE_CONFIG, google_configuration(layout))
        write_checkpoint(folder / CHECKPOINT, loaded.params, layout, _groups(loaded, architecture))
        shutil.copyfile(inside(loaded.tokenizer / VOCAB, loaded.tokenizer), folder / VOCAB)


def _to_flax(loaded: Loaded, target: pathlib.Path, architecture: str, overwrite: bool) -> None:
    layout = _layout(loaded)
    values = write_configuration(layout, architecture, loaded.extra)
    base_alone = architecture.endswith("Model")
    with written_whole(target, overwrite) as folder:
        write_json(folder / CONFIG, values)
        groups = _groups(loaded, architecture)
        write_msgpack(folder / FLAX, loaded.params, layout, groups, carried=loaded.carried, base_alone=base_alone)
        if loaded.tokenizer is not None:
            copy_tokenizer(loaded.tokenizer, folder, loaded.config.max_position_embeddings)


def _layout(loaded: Loaded) -> Layout:
    return Layout(loaded.config, loaded.family, loaded.labels, loaded.unused_positions)


def _groups(loaded: Loaded, architecture: str) -> Sequence[str]:
    """The groups of the class; the pooler of an encoder's own class may be missing."""
    groups = ARCHITECTURES[architecture][1]
    return [group for group in groups if group in loaded.groups or groups != ("pooler",)]
