"""Hugging Face folders in and out: config.json, model.safetensors (or its shards), tokenizer, model card."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbert.config import ModelConfig
from jaxbert.weights.assemble import Assembled, Request, Tensor, Types, assemble
from jaxbert.weights.configuration import (
    ARCHITECTURES,
    HfConfiguration,
    is_base,
    read_configuration,
    read_json,
    stored_groups,
    write_configuration,
)
from jaxbert.weights.disassemble import disassemble
from jaxbert.weights.embedder import Embedder, write_embedder
from jaxbert.weights.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    inside,
    shard_names,
    write_json,
    written_whole,
)
from jaxbert.weights.names import WeightsError, shown
from jaxbert.weights.safetensors_file import open_file, write_file
from jaxbert.weights.tokenizer import copy_tokenizer
from jaxbert.weights.tree import Layout


def read_folder_configuration(folder: pathlib.Path, scan_layers: bool = False) -> HfConfiguration:
    """The config.json of a folder. Raises WeightsError, as `read_configuration` does."""
    path = inside(folder / CONFIG, folder)
    return read_configuration(read_json(path), str(path), scan_layers)


def read_weights(path: pathlib.Path, folder: pathlib.Path, layout: Layout, request: Request) -> Assembled:
    """The parameters in a safetensors file, or in the shards that an index names.

    Raises WeightsError for damaged files, for links out of the folder, and as `assemble` does.
    """
    tensors = _shards(path, folder) if path.name == INDEX else open_file(inside(path, folder))
    return assemble(tensors, layout, request, str(path))


def _shards(index: pathlib.Path, folder: pathlib.Path) -> dict[str, Tensor]:
    listed_in: dict[str, set[str]] = {shard: set() for shard in sorted(shard_names(index, folder))}
    for name, shard in read_json(index)["weight_map"].items():
        listed_in[shard].add(name)
    tensors: dict[str, Tensor] = {}
    for shard, listed in listed_in.items():
        declared = open_file(inside(folder / shard, folder))
        other = sorted(declared.keys() ^ listed)
        if other:
            place = "not in the shard" if other[0] in listed else "not listed for the shard"
            raise WeightsError(f"{index}: {shown(other[0])} is {place} {shard}: get the folder again")
        tensors |= declared
    return tensors


def save(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: str | os.PathLike[str] | None = None,
    *,
    architecture: str = "BertForPreTraining",
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
    carried: Mapping[str, np.ndarray] | None = None,
    labels: int = 2,
    unused_positions: int = 0,
    embedder: Embedder | None = None,
    dtype: Types = "float32",
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a folder that `transformers`' class `architecture` loads, and sentence-transformers where `embedder` is given.

    Args:
      params: the encoder and the groups that the architecture has; of numpy or jax, in either layout of layers.
      tokenizer: a folder that holds one. None: none is written.
      architecture: one of `ARCHITECTURES`; it says the family.
      card: text of README.md.
      extra: keys of config.json that the model has no use for (`Loaded.extra`).
      carried: rows that the model has no use for (`Loaded.carried`).
      labels: classes of a sequence or token classifier.
      unused_positions: padding_idx + 1 in RoBERTa (`Loaded.unused_positions`), else 0.
      embedder: makes it an embedder, as it says.
      dtype: of the weights in the file, one for all or by path (`Loaded.dtype`).
      overwrite: replace a folder that is there.

    The folder appears whole or not at all: it is written beside its place, and renamed.
    Raises WeightsError for a folder that is there, and for parameters that do not fit.
    """
    target = pathlib.Path(folder).absolute()
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"there is no architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    layout = Layout(config, ARCHITECTURES[architecture][0], labels, unused_positions)
    values = write_configuration(layout, architecture, extra)
    # transformers loads all of them in one type, and float32 holds the others.
    values["dtype"] = dtype if isinstance(dtype, str) else "float32"
    groups = stored_groups(architecture, params.keys())
    arrays = disassemble(params, layout, groups, carried, is_base(architecture), dtype)
    length = config.max_position_embeddings
    with written_whole(target, overwrite) as partial:
        write_json(partial / CONFIG, values)
        write_file(partial / WEIGHTS, arrays)
        # safetensors makes files that their owner alone may read.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
        if tokenizer is not None:
            copy_tokenizer(pathlib.Path(tokenizer), partial, length)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf8")
        if embedder is not None:
            write_embedder(partial, config.hidden_size, embedder, length)
    return target
