"""What a folder of weights holds: which files, whether they lie inside it; and how one is written, whole or not at all."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator
from typing import Literal

from safetensors import SafetensorError

from jaxbert.weights.configuration import read_json
from jaxbert.weights.names import WeightsError, shown

CONFIG, WEIGHTS, INDEX, FLAX = "config.json", "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack"
GOOGLE_CONFIG = "bert_config.json"
ADAPTER_CONFIG, ADAPTER, MERGED_CONFIG = "adapter_config.json", "adapter_model.safetensors", "merged_config.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pt", "model.pt", "model.bin")
# What exports consist of, ours and those of transformers and sentence-transformers.
_EXPORTED = re.compile(
    r"(config|generation_config|bert_config|adapter_config|merged_config|modules|sentence_bert_config|config_sentence_transformers|tokenizer|tokenizer_config|"
    r"special_tokens_map|added_tokens|vocab|train_script)\.json|vocab\.txt|merges\.txt|sentencepiece\.bpe\.model|"
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|flax_model\.msgpack|bert_model\.ckpt\..*|checkpoint|"
    r"README\.md|\.gitattributes|0_Transformer|1_Pooling|2_Normalize"
)
# Each is opened; the largest models have some hundreds.
_MOST_SHARDS = 10_000
# No file system has names of more bytes.
_LONGEST_NAME = 255
Kind = Literal["huggingface", "flax", "tensorflow", "run", "adapter"]


@dataclasses.dataclass(frozen=True)
class Found:
    """The one set of weights in a folder."""

    kind: Kind
    path: pathlib.Path
    """The weights' file, or its index; a TensorFlow checkpoint's prefix; a run's folder."""
    folder: pathlib.Path


def find(path: pathlib.Path) -> Found:
    """The weights in a folder, or the ones that a file's name means.

    Raises WeightsError where there are none, several, or only a torch pickle.
    """
    if path.is_dir():
        found = _in_folder(path)
        if len(found) > 1:
            names = " and ".join(shown(one.path.name) for one in found[:3])
            raise WeightsError(f"{path}: holds several weight files ({names}): name the one to load, {found[0].path}")
        if not found:
            raise WeightsError(_nothing(path))
        return found[0]
    if path.with_name(path.name + ".index").is_file():
        return Found("tensorflow", path, path.parent)
    if path.suffix == ".index":
        return Found("tensorflow", path.with_suffix(""), path.parent)
    if path.name == ADAPTER:
        return Found("adapter", path, path.parent)
    if path.suffix == ".safetensors" or path.name == INDEX:
        return Found("huggingface", path, path.parent)
    if path.suffix == ".msgpack":
        return Found("flax", path, path.parent)
    if path.name in PICKLES or path.suffix in (".bin", ".pt", ".pth"):
        raise WeightsError(pickle_refused(path))
    raise WeightsError(f"{path}: is no safetensors, msgpack or TensorFlow checkpoint file: name one, or a folder")


def inside(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """`path`, where it is a file that lies in the folder. Raises WeightsError for links out of it and for what is no file."""
    # A snapshot in the hub's cache is a folder of links to ../../blobs.
    cached = (one.parents[1] for one in (folder, folder.parent) if one.parent.name == "snapshots")
    root = next((model for model in cached if (model / "blobs").is_dir()), folder)
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise WeightsError(f"{path}: no such file: get the folder again") from None
    if not real.is_relative_to(root.resolve()):
        raise WeightsError(f"{path}: is a link out of its folder: replace it by the file itself")
    if not real.is_file():
        raise WeightsError(f"{path}: is no file: get the folder again")
    return path


@contextlib.contextmanager
def written_whole(target: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A folder to write into, which takes the place of `target` when all is written; on an error nothing is left of it.

    Raises WeightsError where `target` is there and may not be replaced, and for what the disk says.
    """
    target = target.resolve()
    if target.exists():
        _check_replaceable(target, overwrite)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, target)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{target}: could not be written ({reason}): choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(target: pathlib.Path, overwrite: bool) -> None:
    if not target.is_dir():
        raise WeightsError(f"{target}: is a file: choose another name for the folder")
    if not overwrite:
        raise WeightsError(f"{target}: is there already: choose another folder, or overwrite")
    # A run, or somebody's other files: nothing that is no export goes with one.
    others = sorted(path.name for path in target.iterdir() if not _EXPORTED.fullmatch(path.name))
    if others:
        raise WeightsError(f"{target}: holds {others[0]!r}, which no export wrote: choose another folder")


def _replace(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Moves the written folder to its place; what was there is removed once it is."""
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _in_folder(folder: pathlib.Path) -> list[Found]:
    if (folder / "checkpoints_sha256").is_dir() and (folder / "checkpoints").is_dir():
        return [Found("run", folder, folder)]
    found = []
    shards: set[str] = set()
    if (folder / INDEX).exists():
        found.append(Found("huggingface", folder / INDEX, folder))
        shards = shard_names(folder / INDEX, folder)
    others = sorted(path for path in folder.glob("*.safetensors") if path.name not in shards)
    found += [Found("adapter" if path.name == ADAPTER else "huggingface", path, folder) for path in others]
    if (folder / FLAX).exists():
        found.append(Found("flax", folder / FLAX, folder))
    checkpoints = sorted(folder.glob("*.index"))
    return found + [Found("tensorflow", path.with_suffix(""), folder) for path in checkpoints]


def shard_names(index: pathlib.Path, folder: pathlib.Path) -> set[str]:
    """The files that a sharded checkpoint consists of. Raises WeightsError for names that are more than a file's name."""
    weight_map = read_json(inside(index, folder)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: has no weight_map: get the file again")
    names = {name if isinstance(name, str) else repr(name) for name in weight_map.values()}
    if len(names) > _MOST_SHARDS:
        raise WeightsError(f"{index}: names {len(names)} shards, of {_MOST_SHARDS} at most: get the file again")
    for name in sorted(names):
        if not name.endswith(".safetensors") or not _is_name(name):
            raise WeightsError(f"{index}: {shown(repr(name))} is no name of a shard in its folder: get the file again")
    return names


def _is_name(text: str) -> bool:
    """Whether a folder can have a file of this name, and a message can show it."""
    return text.isprintable() and len(text) <= _LONGEST_NAME and not any(part in text for part in ("/", "\\", ".."))


def _nothing(folder: pathlib.Path) -> str:
    pickles = [folder / name for name in PICKLES if (folder / name).exists()]
    if pickles:
        return pickle_refused(pickles[0])
    return f"{folder}: holds no weights ({WEIGHTS}, {FLAX}, a TensorFlow checkpoint, or a run's checkpoints): name the folder that does"


def pickle_refused(path: pathlib.Path | str) -> str:
    """What is said of a torch pickle."""
    return (
        f"{path}: is a torch pickle, which can run code when it is read: convert it where you trust it, with torch and "
        f"transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(TARGET), the class being that of its config.json"
    )


def write_json(path: pathlib.Path, values: object) -> None:
    """Writes JSON as the ecosystem's tools do: two spaces, sorted keys, one line end at the end."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")
