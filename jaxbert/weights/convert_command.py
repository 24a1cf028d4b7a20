"""`jaxbert convert`: its options, and what it says when it is done."""

import dataclasses
from typing import Annotated

import tyro

from jaxbert.config import Pooling
from jaxbert.weights.convert import System, convert
from jaxbert.weights.names import shown
from jaxbert.weights.tree import GROUPS

_FRESH = f"Heads that are made new where the source has none: {', '.join(GROUPS[1:])}."


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Write a checkpoint as another system's."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A Hugging Face folder, Google's TensorFlow checkpoint, a folder with flax_model.msgpack, a jaxbert run, or a name on the hub."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The folder to write."""
    to: System = "huggingface"
    """huggingface: for transformers; tensorflow: Google's bert_model.ckpt; flax: flax_model.msgpack of transformers 4."""
    architecture: str | None = None
    """transformers' class, as BertForMaskedLM. None: what the source names, or the one that holds all of its heads."""
    extend_vocab: str | None = None
    """File with a word on each line: those that are no token yet become one, embedded as the mean of their pieces."""
    pooling: Pooling | None = None
    """Make it an embedder for sentence-transformers: cls, mean or max."""
    normalize: bool | None = None
    """Embedder: scale vectors to length 1. None: as the embedder that it is, and of a new one yes."""
    heads: tuple[str, ...] | None = None
    """Heads to take beside the encoder; none after --heads: the encoder alone. None: all that are there."""
    fresh: Annotated[tuple[str, ...], tyro.conf.arg(help=_FRESH)] = ()
    base: str | None = None
    """Adapters: the model that they are for. None: the one that they name."""
    allow_missing: tuple[str, ...] = ()
    """Patterns of torch names that may be missing; they are made new."""
    allow_unexpected: tuple[str, ...] = ()
    """Patterns of torch names that may be left unread."""
    overwrite: bool = False
    """Replace a folder that is there."""


def run(options: ConvertOptions) -> None:
    """Convert, and print what became of it."""
    arguments = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    converted = convert(arguments.pop("source"), arguments.pop("target"), **arguments)
    lists = {
        "made new, at random": converted.fresh,
        "left unread": converted.unread,
        "left out": converted.left_out,
        "tokens already": converted.known,
    }
    for what, names in lists.items():
        if names:
            print(f"{what}: {', '.join(map(shown, names))}")
    for word, pieces in converted.added.items():
        print(f"new token {shown(word)}: the mean of {' '.join(map(shown, pieces)) or 'the whole table'}")
    print(f"{converted.architecture} in {converted.folder}")
