"""Our parameter tree: what a configuration says of it, and its arrays by path with the layers one by one, as files have them."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float

from jaxbert.config import ModelConfig
from jaxbert.weights.names import OVER_VOCABULARY, TABLE, Family, Parameter, parameters

Params = dict[str, Any]
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(row.module.split("/", 1)[0] for row in TABLE))
SPARE_BIAS = "mlm/spare_bias"
"""The key in `carried` of the bias that is not the decoder's own, where that is not tied."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a configuration says of a file."""

    config: ModelConfig
    family: Family = "bert"
    labels: int = 2
    """Classes of a sequence or token classifier."""
    unused_positions: int = 0
    """Rows of the position table that no token uses: padding_idx + 1 in RoBERTa, else 0."""
    required: tuple[str, ...] = ()
    """Groups that the file must hold by what its configuration says of it."""

    def parameters(self, groups: Iterable[str]) -> list[Parameter]:
        """The parameters of these groups."""
        return list(parameters(self.config, self.family, groups, self.labels, self.unused_positions))


def to_tree(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
    """Arrays by path, layers one by one, as the modules have them: stacked where they are scanned, the vocabulary padded."""
    flat: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        if path in OVER_VOCABULARY:
            padding = config.padded_vocab_size - array.shape[0]
            array = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        flat[path] = array
    if config.scan_layers:
        for path in [path for path in flat if path.startswith("encoder/layers_0/")]:
            layers = [flat.pop(path.replace("layers_0", f"layers_{i}")) for i in range(config.num_layers)]
            flat[path.replace("layers_0", "layers")] = np.stack(layers)
    return traverse_util.unflatten_dict(flat, sep="/")


def tree_shapes(layout: Layout, groups: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of these groups by their path in `to_tree`'s tree, "encoder/layers/attention/query/kernel"."""
    config, shapes = layout.config, {}
    for parameter in layout.parameters(groups):
        path, shape = parameter.path, parameter.shape
        if path in OVER_VOCABULARY:
            shape = (config.padded_vocab_size, *shape[1:])
        if config.scan_layers and path.startswith("encoder/layers_"):
            path, shape = re.sub(r"layers_\d+", "layers", path), (config.num_layers, *shape)
        shapes[path] = shape
    return shapes


def from_tree(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `to_tree`; takes arrays of numpy or jax, and layers in either layout."""
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(dict(params), sep="/").items():
        array = np.asarray(leaf)
        if path in OVER_VOCABULARY:
            array = array[: config.vocab_size]
        if path.startswith("encoder/layers/"):
            for i, layer in enumerate(array):
                arrays[path.replace("encoder/layers/", f"encoder/layers_{i}/")] = layer
        else:
            arrays[path] = array
    return arrays


def initialised(parameter: Parameter, config: ModelConfig, seed: int) -> Float[np.ndarray, "..."]:
    """A new parameter as the modules initialise it; it depends on the seed and its path alone."""
    leaf = parameter.path.rsplit("/", 1)[1]
    if leaf in ("kernel", "embedding"):
        key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(parameter.path.encode())))
        return np.array(_truncated_normal(config.initializer_range)(key, parameter.shape, np.float32))
    return np.full(parameter.shape, 1.0 if leaf == "scale" else 0.0, np.float32)


@functools.cache
def _truncated_normal(scale: float) -> Callable[..., jax.Array]:
    return nn.initializers.truncated_normal(scale)
