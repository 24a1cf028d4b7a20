"""Low-rank adapters in the format of Hugging Face's peft: adapter_config.json, adapter_model.safetensors; and onto their base.

merged_config.json beside them is ours: the config.json that the merged model has, with its labels. It has a name of its own because
transformers takes a folder with a config.json for a whole model. Folders of peft's own, which have none, are read too.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbert.config import ModelConfig
from jaxbert.model.lora import PROJECTIONS
from jaxbert.weights.assemble import Assembled, Request, Tensor, assemble
from jaxbert.weights.configuration import (
    ARCHITECTURES,
    CLASS_PREFIX,
    HfConfiguration,
    is_base,
    read_configuration,
    read_json,
    stored_groups,
    write_configuration,
)
from jaxbert.weights.disassemble import disassemble
from jaxbert.weights.embedder import Embedder, write_embedder
from jaxbert.weights.folder import ADAPTER, ADAPTER_CONFIG, MERGED_CONFIG, inside, write_json, written_whole
from jaxbert.weights.names import BASE, TABLE, Parameter, WeightsError, shown
from jaxbert.weights.safetensors_file import open_file, write_file
from jaxbert.weights.tokenizer import copy_tokenizer
from jaxbert.weights.tree import Layout, from_tree

if TYPE_CHECKING:
    from jaxbert.weights.load import Loaded

# What PeftModel puts before the names of the model that it wraps.
_PREFIX = "base_model.model."
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# Settings of peft that change what is computed, with the values under which it is W + alpha / rank A B.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
}
# Not a number, infinity and what is infinite as a float32 are above it.
_LARGEST_ALPHA = 1e30
_SIZES = "vocab_size hidden_size num_layers num_heads intermediate_size max_position_embeddings type_vocab_size".split()


def write_adapter(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: str | os.PathLike[str] | None,
    *,
    base: str,
    rank: int,
    alpha: float,
    groups: Sequence[str],
    architecture: str,
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
    labels: int = 2,
    unused_positions: int = 0,
    embedder: Embedder | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a folder for `peft.PeftModel.from_pretrained(model of the class architecture, folder)`, and for `jaxbert.load`.

    With an embedder, sentence-transformers loads it too, where its base still is.

    Args:
      params: "lora", as `jaxbert.model.lora.init_adapters` makes it, and the groups.
      base: path or name of the model that the adapters are for.
      groups: heads that go with them ("sequence", and "pooler" where the base has none), which peft calls modules_to_save.
      architecture, card, extra, labels, unused_positions, embedder, overwrite: as in `jaxbert.weights.huggingface.save`.

    Raises WeightsError for a folder that is there, and for parameters that do not fit.
    """
    layout = Layout(config, ARCHITECTURES[architecture][0], labels, unused_positions)
    adapters = dict(_adapters(params["lora"], layout))
    heads = _heads(params, layout, stored_groups(architecture, groups))
    # The encoder's own class has no name before its parts.
    front = f"{BASE[layout.family]}." if is_base(architecture) else ""
    arrays = {_PREFIX + name.removeprefix(front): array for name, array in (adapters | heads).items()}
    faulty = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if faulty is not None:
        raise WeightsError(f"{faulty} is not finite: export an earlier checkpoint")
    settings = {
        "peft_type": "LORA",
        "task_type": _TASKS.get(architecture.removeprefix(CLASS_PREFIX[layout.family])),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": _target_modules(params["lora"], layout),
        "modules_to_save": sorted({_module(name, layout) for name in heads}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    target = pathlib.Path(folder).absolute()
    with written_whole(target, overwrite) as partial:
        write_json(partial / ADAPTER_CONFIG, settings)
        write_json(partial / MERGED_CONFIG, write_configuration(layout, architecture, extra))
        write_file(partial / ADAPTER, arrays)
        (partial / ADAPTER).chmod((partial / ADAPTER_CONFIG).stat().st_mode)
        if tokenizer is not None:
            copy_tokenizer(pathlib.Path(tokenizer), partial, config.max_position_embeddings)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf8")
        if embedder is not None:
            write_embedder(partial, config.hidden_size, embedder, config.max_position_embeddings)
    return target


@dataclasses.dataclass(frozen=True)
class AdapterFolder:
    """What adapter_config.json says, and what the weights' file declares."""

    path: pathlib.Path
    """Of the weights."""
    base: str | None
    """The model that it is for."""
    scale: float
    """alpha / rank."""
    task: str | None
    """peft's name of it."""
    tensors: Mapping[str, Tensor]
    """By name, without peft's prefix."""


def read_adapter(path: pathlib.Path) -> AdapterFolder:
    """The adapter in a file beside its adapter_config.json. Raises WeightsError for what is no plain LoRA, or damaged."""
    file = inside(path.with_name(ADAPTER_CONFIG), path.parent)
    values = read_json(file)
    for key, plain in _PLAIN.items():
        if values.get(key, plain[0] if key != "peft_type" else None) not in plain:
            raise WeightsError(
                f"{file}: {key} {shown(repr(values.get(key)))} is another computation than W + alpha / r A B: merge it with peft, and load that"
            )
    rank, alpha, base = (values.get(key) for key in ("r", "lora_alpha", "base_model_name_or_path"))
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and abs(alpha) <= _LARGEST_ALPHA
    if type(rank) is not int or rank < 1 or not is_number:
        raise WeightsError(
            f"{file}: r {shown(repr(rank))} and lora_alpha {shown(repr(alpha))} are no rank and no number: get the file again"
        )
    if base is not None and not isinstance(base, str):
        raise WeightsError(f"{file}: base_model_name_or_path {shown(repr(base))} is no name: get the file again")
    if values.get("rank_pattern"):
        raise WeightsError(f"{file}: rank_pattern is not empty: merge it with peft, and load that")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in open_file(inside(path, path.parent)).items()}
    ranks = {name: tensor.shape[:1] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    other = next((name for name, found in ranks.items() if found != (rank,)), None)
    if other is not None:
        raise WeightsError(
            f"{file}: r is {rank}, and {shown(other)} is {list(tensors[other].shape)} in {path.name}: get the folder again"
        )
    return AdapterFolder(path, base, alpha / rank, values.get("task_type"), tensors)


def onto_base(
    adapter: AdapterFolder, base: "Loaded", request: Request, scan_layers: bool
) -> tuple[HfConfiguration, Assembled]:
    """The merged model. Raises WeightsError where the base is another one than the adapters were made on."""
    described = _described(adapter, base, scan_layers)
    layout, family = described.layout, base.family
    wanted = ARCHITECTURES[described.architecture][1] if described.architecture else base.groups
    groups = [name for name in ("pooler",) if name in base.params and name in wanted]
    arrays = disassemble(base.params, base.layout, groups, base.carried)
    known = {p.torch: p for p in base.layout.parameters(("encoder",)) if p.contracted}
    pattern = re.compile(r"(.+)\.lora_([AB])\.weight")
    pairs: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors.items():
        found = pattern.fullmatch(name)
        if found:
            pairs.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
        else:
            heads[name] = tensor
    for name, pair in pairs.items():
        # A model of the encoder alone has no prefix before its names.
        full = name if name in known else f"{BASE[family]}.{name}"
        if full not in known or pair.keys() != {"A", "B"}:
            raise WeightsError(
                f"{adapter.path}: {shown(name)} has no counterpart in {base.source}, or is half there: {_OTHER_BASE}"
            )
        a, b = pair["A"], pair["B"]
        shapes = (b.shape[:1] + a.shape[1:], a.shape[:1])
        if len(a.shape) != 2 or len(b.shape) != 2 or shapes != (arrays[full].shape, b.shape[1:]):
            raise WeightsError(
                f"{adapter.path}: the adapter of {shown(name)} is {list(a.shape)} and {list(b.shape)}, and its kernel in {base.source} "
                f"{list(arrays[full].shape)}: {_OTHER_BASE}"
            )
        product = np.asarray(b.read(), np.float32) @ np.asarray(a.read(), np.float32)
        arrays[full] = arrays[full] + np.float32(adapter.scale) * product
    tensors = {name: Tensor(name, array.shape, lambda array=array: array) for name, array in arrays.items()}
    return described, assemble(tensors | heads, layout, request, str(adapter.path))


_OTHER_BASE = "name the model that it was trained on with base="


def _described(adapter: AdapterFolder, base: "Loaded", scan_layers: bool) -> HfConfiguration:
    """The merged model: as our own file says, which the base must fit, or as the base and the head are."""
    path = adapter.path.with_name(MERGED_CONFIG)
    if path.exists():
        described = read_configuration(read_json(inside(path, path.parent)), str(path), scan_layers)
        ours, theirs = described.layout, base.layout
        for name, here, there in [
            ("family", ours.family, theirs.family),
            *((name, getattr(ours.config, name), getattr(theirs.config, name)) for name in _SIZES),
        ]:
            if here != there:
                raise WeightsError(
                    f"{adapter.path}: was trained on a base of {name} {here}, and {base.source} has {there}: {_OTHER_BASE}"
                )
        return described
    endings = {task: ending for ending, task in _TASKS.items()}
    architecture = f"{CLASS_PREFIX[base.family]}{endings[adapter.task]}" if adapter.task in endings else None
    # The last bias of a classifier has a number for each class.
    sizes = [
        tensor.shape[0]
        for name, tensor in adapter.tensors.items()
        if re.fullmatch(r"classifier(\.out_proj)?\.bias", name)
    ]
    layout = dataclasses.replace(
        base.layout,
        config=dataclasses.replace(base.config, scan_layers=scan_layers),
        labels=sizes[0] if sizes else base.labels,
        required=tuple(g for g in ARCHITECTURES[architecture][1] if g != "pooler") if architecture else (),
    )
    return HfConfiguration(layout, architecture, base.extra)


def _adapters(tree: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """Each matrix by its name in torch, in torch's layout."""
    kernels = {parameter.path: parameter for parameter in layout.parameters(("encoder",))}
    # Under the encoder's name, stacked blocks come apart as its own do.
    flat = from_tree({"encoder": tree}, layout.config)
    for path, array in flat.items():
        _, block, projection, leaf = path.split("/")
        kernel = kernels["/".join(("encoder", block, *PROJECTIONS[projection], "kernel"))]
        assert kernel.torch is not None
        module = kernel.torch.removesuffix(".weight")
        two = array.reshape(-1, array.shape[-1]) if leaf == "a" else array.reshape(array.shape[0], -1)
        yield f"{module}.lora_{leaf.upper()}.weight", np.ascontiguousarray(two.T, np.float32)


def _heads(params: Mapping[str, Any], layout: Layout, groups: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = from_tree({name: params[name] for name in groups if name in params}, layout.config)
    wanted: list[Parameter] = [p for p in layout.parameters(groups) if p.group in params]
    return {p.torch: np.ascontiguousarray(p.to_torch(arrays[p.path]), np.float32) for p in wanted if p.torch}


def _module(name: str, layout: Layout) -> str:
    """The module of the model that holds a parameter of a head: "classifier" for "classifier.dense.weight"."""
    return name.removeprefix(f"{BASE[layout.family]}.").split(".", 1)[0]


def _target_modules(tree: Mapping[str, Any], layout: Layout) -> list[str]:
    """Names that peft finds the adapted modules by: it takes each module whose name ends with one of them."""
    names = {row.module: row.names[BASE[layout.family]] for row in TABLE if BASE[layout.family] in row.names}
    blocks = {path: name.split("{}.", 1)[1] for path, name in names.items() if "{}" in name}
    projections = sorted({projection for block in tree.values() for projection in block})
    found: list[str] = []
    for projection in projections:
        name = blocks["/".join(("encoder/layers_{}", *PROJECTIONS[projection]))]
        others = [other for other in blocks.values() if other.endswith(f".{name}")]
        numbers = range(layout.config.num_layers) if others else ()
        found += [f"layer.{number}.{name}" for number in numbers] or [name]
    return found
