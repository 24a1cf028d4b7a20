"""A file's tensors -> our parameter tree: names, shapes and layouts are checked here, for every kind of file.

A reader lists what its file declares as `Tensor`s under torch names; nothing is read before all names and shapes are right.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from jaxbert.weights.names import (
    BASE,
    BUFFERS,
    DECODER,
    DECODER_TABLE,
    MLM_BIAS,
    WORD_TABLE,
    Family,
    Parameter,
    WeightsError,
    canonical,
    shown,
)
from jaxbert.weights.tree import GROUPS, SPARE_BIAS, Layout, Params, initialised, to_tree

DType = Literal["float32", "float16", "bfloat16"]
Types = DType | Mapping[str, DType]
"""One type of all parameters; or by path, where they are of several."""
_NAMED = 3
_RIVALS = ("sequence", "token", "choice")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a file declares."""

    name: str
    """As it stands in the file, for messages."""
    shape: tuple[int, ...]
    """In torch's layout."""
    read: Callable[[], np.ndarray]
    """The array, in torch's layout, of a floating-point type."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the caller wants of a file."""

    heads: tuple[str, ...] | None = None
    """Groups beside the encoder: "pooler", "mlm", "nsp", "sequence", "token", "span", "choice", "relation", "discriminator". None: what is there."""
    fresh: tuple[str, ...] = ()
    """Groups that are initialised anew where the file has nothing of them."""
    allow_missing: tuple[str, ...] = ()
    """Patterns (fnmatch) of names that may be missing; they are initialised anew."""
    allow_unexpected: tuple[str, ...] = ()
    """Patterns (fnmatch) of names that may be left unread."""
    seed: int = 0
    """Seed of what is initialised anew."""


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A parameter tree, and what there is to say of it."""

    params: Params
    """float32, as the modules have it: a group each, layers stacked if config.scan_layers, the vocabulary padded with 0."""
    fresh: tuple[str, ...]
    """Our paths ("mlm/dense/kernel") of what was not in the file, and is initialised anew."""
    unread: tuple[str, ...] = ()
    """The file's names of what was left unread, buffers among them."""
    carried: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """What the model has no use for, and an export writes again: our path -> rows on top of its table; SPARE_BIAS."""
    dtype: Types = "float32"
    """What the file has them in, by our paths and SPARE_BIAS where that is of several types; float32 for what is no `DType`."""


def assemble(tensors: Mapping[str, Tensor], layout: Layout, request: Request, source: str) -> Assembled:
    """The parameters in a file. `tensors` has torch names, in any of their forms; `source` names the file in errors.

    Raises WeightsError for names that are missing, unexpected or of another shape, and for a decoder that is not tied where
    the configuration says that it is.
    """
    plan = _plan(tensors, layout, request, source)
    stored = {parameter.path: _read(tensor, source) for parameter, tensor in plan.read.values()}
    types: dict[str, DType] = {path: _dtype(array) for path, array in stored.items()}
    arrays = {path: np.asarray(array, np.float32) for path, array in stored.items()}
    del stored
    differing = [
        copy
        for copy, target in plan.copies
        if not np.array_equal(np.asarray(_read(copy, source), np.float32), arrays[target], equal_nan=True)
    ]
    if differing and layout.config.tie_word_embeddings:
        raise WeightsError(_untied(differing[0], source))
    # Of an untied decoder's two biases, transformers computes with one: the other goes out again as it came.
    carried: dict[str, np.ndarray] = {}
    for copy in differing:
        spare = _read(copy, source)
        carried[SPARE_BIAS], types[SPARE_BIAS] = np.asarray(spare, np.float32), _dtype(spare)
    ours: dict[str, np.ndarray] = {}
    for parameter in plan.parameters:
        if parameter.path in arrays:
            array = arrays.pop(parameter.path)
            if parameter.unused_rows:
                carried[parameter.path] = array[: parameter.unused_rows].copy()
            # A copy: what was read may be a view of the whole file.
            ours[parameter.path] = np.array(parameter.from_torch(array), np.float32, order="C")
        else:
            ours[parameter.path] = initialised(parameter, layout.config, request.seed)
    fresh = tuple(parameter.path for parameter in plan.fresh)
    first = next(iter(types.values())) if types else "float32"
    dtype: Types = first if {*types.values()} <= {first} else types
    return Assembled(to_tree(ours, layout.config), fresh, tuple(plan.unread), carried, dtype)


@dataclasses.dataclass(frozen=True)
class _Plan:
    parameters: list[Parameter]
    read: dict[str, tuple[Parameter, Tensor]]
    fresh: list[Parameter]
    unread: list[str]
    copies: list[tuple[Tensor, str]]
    """What should repeat a parameter, and our path of that."""


def _plan(tensors: Mapping[str, Tensor], layout: Layout, request: Request, source: str) -> _Plan:
    """What to read, from names and shapes alone."""
    heads = (*(request.heads or ()), *request.fresh)
    unknown = [name for name in heads if name not in GROUPS]
    if unknown:
        raise WeightsError(f"there is no head {unknown[0]!r}: there are {', '.join(GROUPS[1:])}")
    # Several classifiers have the same names: the configuration says which one it is.
    named = next((group for group in (*heads, *layout.required) if group in _RIVALS), _RIVALS[0])
    universe = layout.parameters(group for group in GROUPS if group not in _RIVALS or group == named)
    known = {p.torch: p for p in universe if p.torch is not None}
    found, twice = _canonical(tensors, layout.family, known)
    if twice:
        raise WeightsError(f"{source}: {shown(twice)} is there twice, under two names: remove one of them")
    copies = _decoder_copies(found, known, layout.family)

    present = {p.group for name, p in known.items() if name in found}
    wanted = {"encoder", *request.fresh}
    wanted |= {*request.heads} if request.heads is not None else present | {*layout.required}
    chosen = [parameter for parameter in universe if parameter.group in wanted]
    read = {p.path: (p, found[p.torch]) for p in chosen if p.torch in found}
    missing, fresh = [], []
    for parameter in chosen:
        if parameter.path in read:
            continue
        named = parameter.torch or parameter.path
        renewed = parameter.group in request.fresh and parameter.group not in present
        (fresh if renewed or _matches(named, request.allow_missing) else missing).append(parameter)
    extra = [tensor.name for name, tensor in found.items() if name not in known]
    unexpected = [name for name in extra if not _matches(name, request.allow_unexpected)]
    misshapen = [
        f"{shown(tensor.name)} is {list(tensor.shape)} there and {list(parameter.torch_shape)} by the configuration"
        for parameter, tensor in read.values()
        if tensor.shape != parameter.torch_shape
    ]
    _refuse(missing, unexpected, misshapen, present, source)
    unread = [tensor.name for name, tensor in found.items() if name not in known or known[name].path not in read]
    unread += [tensor.name for name, tensor in tensors.items() if BUFFERS.fullmatch(name)]
    compared = [(tensor, target) for tensor, target in copies if target in read and "mlm" in wanted]
    unread += [tensor.name for tensor, target in copies if (tensor, target) not in compared]
    for tensor, target in compared:
        if tensor.shape != read[target][0].torch_shape and layout.config.tie_word_embeddings:
            raise WeightsError(_untied(tensor, source))
    return _Plan(chosen, read, fresh, unread, compared)


def _canonical(
    tensors: Mapping[str, Tensor], family: Family, known: Mapping[str, object]
) -> tuple[dict[str, Tensor], str | None]:
    """Tensors by the names of `Parameter.torch`, and a name that two of them share."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if BUFFERS.fullmatch(name):
            continue
        name = canonical(name, family, known)
        if name in found:
            return found, name
        found[name] = tensor
    return found, None


def _decoder_copies(
    found: dict[str, Tensor], known: Mapping[str, Parameter], family: Family
) -> list[tuple[Tensor, str]]:
    """Takes what repeats a parameter of the decoder out of `found`; where one of the two is not there, the other takes its place."""
    copies = []
    firsts = {parameter.path: name for name, parameter in known.items()}
    for leaf, target in (("weight", WORD_TABLE), ("bias", MLM_BIAS)):
        name, first = f"{DECODER[BASE[family]]}.{leaf}", firsts.get(target)
        if name in known or name not in found or first is None:
            continue
        tensor = found.pop(name)
        if first not in found:
            found[first] = tensor
        elif DECODER_TABLE in firsts:
            # Untied, the decoder's own bias is the one that transformers computes with.
            copies.append((found[first], target))
            found[first] = tensor
        else:
            copies.append((tensor, target))
    return copies


def _refuse(
    missing: Sequence[Parameter],
    unexpected: Sequence[str],
    misshapen: Sequence[str],
    present: Set[str],
    source: str,
) -> None:
    """Raise what is wrong, all at once, with a way out of each. `present`: groups of which the file has something."""
    faults, ways = [], []
    if misshapen:
        faults.append(f"{len(misshapen)} of another shape ({_some(misshapen)})")
        ways.append("use the configuration that belongs to these weights")
    if missing:
        faults.append(f"{len(missing)} missing ({_some([p.torch or p.path for p in missing])})")
        groups = sorted({parameter.group for parameter in missing})
        if any(parameter.path == DECODER_TABLE for parameter in missing):
            ways.append("set tie_word_embeddings to true in config.json where the decoder is the word table")
        elif "encoder" in groups:
            ways.append("take the config.json that belongs to these weights")
        if "encoder" in groups and "encoder" not in present:
            ways.append("or name weights that hold an encoder")
        elif present.isdisjoint(groups):
            ways.append(f"fresh={tuple(groups)} to start with new ones")
        else:
            ways.append("allow_missing= to start with new ones")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
        ways.append("allow_unexpected= to leave them")
    if faults:
        raise WeightsError(f"{source}: {'; '.join(faults)}: {', '.join(ways)}")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(shown(name, 300) for name in names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(tensor: Tensor, source: str) -> Float[np.ndarray, "..."]:
    array = tensor.read()
    if array.shape != tensor.shape:
        raise WeightsError(
            f"{source}: {shown(tensor.name)} is not of the shape that the file declares: get the file again"
        )
    return array


def _dtype(array: np.ndarray) -> DType:
    return next((dtype for dtype in get_args(DType) if array.dtype.name == dtype), "float32")


def _untied(copy: Tensor, source: str) -> str:
    return (
        f"{source}: {shown(copy.name)} differs from what a tied decoder repeats: set tie_word_embeddings to false in the config.json "
        "beside it where they are two, or load the encoder alone with heads=()"
    )
