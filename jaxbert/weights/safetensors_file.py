"""safetensors files, of which nothing is believed that the file's size does not bear out.

The format is an 8-byte length, a JSON header of that length, and the arrays behind it without a hole
(https://github.com/huggingface/safetensors#format). A header is read whole and checked before any array is.
"""

import functools
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxbert.weights.assemble import Tensor
from jaxbert.weights.names import WeightsError, shown

# As in the reference implementation (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000
# Weights of transformers have four at most.
_MOST_AXES = 8
_FLOATS: Mapping[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
}
# Buffers may have these; weights may not.
_OTHER_BYTES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors that a file declares, by name; none is read.

    Raises WeightsError, naming the file, for a header that is damaged or that does not fit the file's size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, f"its header claims {length} bytes and the file has {size}")
            text = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}: get the file again") from None
    entries = _parse(path, text)
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensor, span = _tensor(path, name, entry, 8 + length)
        tensors[name] = tensor
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise _damaged(path, f"{shown(name)} begins at byte {start} of the data and not at {end}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"its header describes {end} bytes of data and the file has {size - 8 - length}")
    return tensors


def write_file(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file as transformers does: its loaders want to be told that the names are torch's. Flushed to the disk."""
    save_file(dict(arrays), str(path), metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a name stands there twice")
        return values

    try:
        entries = json.loads(text.decode("utf8"), object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(path, "its __metadata__ is no JSON object")
    return entries


def _tensor(path: pathlib.Path, name: str, entry: Any, data_at: int) -> tuple[Tensor, tuple[int, int]]:
    """A tensor, and the bytes of the data that it takes."""
    named = shown(repr(name))
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{named} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [shape, offsets]
    if not all(isinstance(x, list) and all(type(n) is int and 0 <= n < 2**63 for n in x) for x in numbers):
        raise _damaged(path, f"shape or data_offsets of {named} are no lists of whole numbers")
    # Before they are multiplied: a product of many takes minutes.
    if len(offsets) != 2 or len(shape) > _MOST_AXES:
        raise _damaged(
            path, f"{named} has {len(shape)} axes, of {_MOST_AXES} at most, and {len(offsets)} data_offsets, of 2"
        )
    dtype = _FLOATS.get(kind) if isinstance(kind, str) else None
    width = dtype.itemsize if dtype else _OTHER_BYTES.get(str(kind))
    if width is None:
        raise _damaged(path, f"{named} has the type {shown(repr(kind))}, of {', '.join([*_FLOATS, *_OTHER_BYTES])}")
    start, stop = offsets
    if stop - start != math.prod(shape) * width:
        raise _damaged(path, f"{named} is {shown(shape)} of {kind} and takes {stop - start} bytes")
    return Tensor(name, tuple(shape), functools.partial(_read, path, name, kind, tuple(shape), data_at + start)), (
        start,
        stop,
    )


def _read(path: pathlib.Path, name: str, kind: str, shape: tuple[int, ...], position: int) -> np.ndarray:
    if kind not in _FLOATS:
        raise WeightsError(
            f"{path}: {shown(name)} has the type {kind}, and weights are {', '.join(_FLOATS)}: convert it"
        )
    array = np.fromfile(path, _FLOATS[kind], math.prod(shape), offset=position)
    if array.size != math.prod(shape):
        raise _damaged(path, f"it ends within {shown(name)}")
    return array.reshape(shape)


def _damaged(path: pathlib.Path, what: str) -> WeightsError:
    return WeightsError(f"{path}: is damaged, {what}: get the file again")
