"""flax_model.msgpack, which the Flax classes of transformers 4 wrote: a tree of arrays in Flax's serialization."""

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from jaxbert.weights.assemble import Assembled, Request, Tensor, assemble
from jaxbert.weights.disassemble import exported
from jaxbert.weights.folder import inside
from jaxbert.weights.names import BASE, DECODER, WeightsError, flax_name, shown
from jaxbert.weights.tree import GROUPS, Layout

# More than a name, a shape and a type take, and what else a file may hold.
_NAME_BYTES = 4096
# Levels of a tree; the Flax classes have nine.
_DEEPEST = 32


def read_msgpack(path: pathlib.Path, folder: pathlib.Path, layout: Layout, request: Request) -> Assembled:
    """The parameters in a flax_model.msgpack, with or without a `params` level on top.

    Nothing in the file is run, and its arrays are views of its bytes: a damaged file takes no memory but its own size.
    Raises WeightsError for damaged files, and as `assemble` does.
    """
    size, most = inside(path, folder).stat().st_size, _most_bytes(layout)
    if size > most:
        raise WeightsError(
            f"{path}: has {size:,} bytes, and what the configuration describes {most:,} at most: take the config.json that belongs to it"
        )
    tree = _restore(path)
    if tree.keys() == {"params"} and isinstance(tree["params"], Mapping):
        tree = tree["params"]
    names: dict[str, tuple[str, bool]] = {}
    for parameter in layout.parameters(GROUPS):
        if parameter.torch is not None:
            name, transposed = flax_name(parameter)
            names[name] = (parameter.torch, transposed)
            # A file of the encoder alone.
            names.setdefault(name.removeprefix(f"{BASE[layout.family]}/"), names[name])
    decoder = DECODER[BASE[layout.family]]
    names.setdefault(f"{decoder.replace('.', '/')}/kernel", (f"{decoder}.weight", True))
    tensors: dict[str, Tensor] = {}
    for name, array in traverse_util.flatten_dict(dict(tree), sep="/").items():
        if not isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.floating):
            raise WeightsError(f"{path}: {shown(name)} is no array of floating-point numbers: get the file again")
        torch, transposed = names.get(name, (name, False))
        if torch in tensors:
            raise WeightsError(f"{path}: {shown(name)} is there twice, under two names: get the file again")
        array = array.T if transposed else array
        tensors[torch] = Tensor(name, array.shape, functools.partial(np.asarray, array))
    return assemble(tensors, layout, request, str(path))


def _most_bytes(layout: Layout) -> int:
    """What a file of all heads may have, in float64, with names."""
    return sum(8 * math.prod(p.torch_shape) + _NAME_BYTES for p in layout.parameters(GROUPS)) + _NAME_BYTES


def write_msgpack(
    path: pathlib.Path,
    params: Mapping[str, Any],
    layout: Layout,
    groups: Sequence[str],
    carried: Mapping[str, np.ndarray] | None = None,
    base_alone: bool = False,
) -> None:
    """Writes the tree that the Flax class of transformers 4 with these groups has.

    `base_alone`: the tree of the encoder's own class. The other arguments, and what it raises, are as in `exported`.
    """
    flat = {}
    for parameter, array in exported(params, layout, groups, carried):
        name, transposed = flax_name(parameter)
        flat[name.removeprefix(f"{BASE[layout.family]}/") if base_alone else name] = array.T if transposed else array
    path.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(flat, sep="/")))


def _restore(path: pathlib.Path) -> dict[str, Any]:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}: get the file again") from None
    # What msgpack raises for bytes that are none of its own, and numpy for shapes that do not fit their arrays.
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        text = shown(str(error) or type(error).__name__)
        raise WeightsError(f"{path}: is damaged ({text}): get the file again") from None
    if not isinstance(tree, dict) or not _is_tree(tree, _DEEPEST):
        raise WeightsError(f"{path}: holds no tree of arrays: get the file again")
    return tree


def _is_tree(tree: Mapping[Any, Any], deepest: int) -> bool:
    """Whether all keys are text, and no branch is longer than `deepest`."""
    return deepest > 0 and all(
        isinstance(key, str) and (not isinstance(value, dict) or _is_tree(value, deepest - 1))
        for key, value in tree.items()
    )
