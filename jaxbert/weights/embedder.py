"""What makes a folder an embedder: the files that sentence-transformers reads beside the model's own, in and out."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

from jaxbert.config import Pooling
from jaxbert.weights.configuration import read_json
from jaxbert.weights.folder import CONFIG, inside, write_json
from jaxbert.weights.names import WeightsError, shown

MODULES, POOLING = "modules.json", "1_Pooling"
LENGTH, SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"
# [CLS], a token and [SEP].
_SHORTEST = 3


@dataclasses.dataclass(frozen=True)
class Embedder:
    """How token vectors become the vector of a text."""

    pooling: Pooling
    normalize: bool = False
    """Whether vectors are scaled to length 1."""
    max_length: int | None = None
    """Longest text in tokens, special ones included. None: as many as there are positions."""
    lowercase: bool = False
    """Whether texts are lower-cased before they are tokenised."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What config_sentence_transformers.json says: prompts, the measure of similarity, versions."""

    @property
    def prompt(self) -> str:
        """What is put before a text where nothing else is said."""
        prompts, name = self.settings.get("prompts"), self.settings.get("default_prompt_name")
        found = prompts.get(name) if isinstance(prompts, dict) and name is not None else None
        return found if isinstance(found, str) else ""


def transformer_folder(path: pathlib.Path) -> pathlib.Path:
    """Where the weights are, and the tokenizer: the folder that modules.json names first ("0_Transformer"), else `path` itself.

    Raises WeightsError for a modules.json that is damaged.
    """
    if not (path / MODULES).exists():
        return path
    modules = _modules(path)
    # Since version 2 of sentence-transformers they are beside modules.json.
    return _named_folder(path, modules[0]["path"]) if modules[0].get("path") else path


def read_embedder(folder: pathlib.Path) -> Embedder | None:
    """The embedder that a folder's modules.json describes. None where there is none.

    Raises WeightsError for modules that jaxbert does not compute, since its vectors would be others.
    """
    if not (folder / MODULES).exists():
        return None
    modules = _modules(folder)
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise WeightsError(
            f"{folder / MODULES}: is an embedder of {shown(', '.join(kinds))}, and jaxbert computes Transformer, Pooling, "
            f"Normalize: {_encoder_alone(folder)}"
        )
    max_length, lowercase = None, False
    length = transformer_folder(folder) / LENGTH
    if length.exists():
        values = read_json(inside(length, folder))
        max_length, lowercase = values.get("max_seq_length"), values.get("do_lower_case") is True
        if max_length is not None and (type(max_length) is not int or max_length < _SHORTEST):
            raise WeightsError(f"{length}: max_seq_length {shown(repr(max_length))} is no length: get the file again")
    settings = read_json(inside(folder / SETTINGS, folder)) if (folder / SETTINGS).exists() else {}
    name = settings.get("default_prompt_name")
    if name is not None and not isinstance(name, str):
        raise WeightsError(
            f"{folder / SETTINGS}: default_prompt_name {shown(repr(name))} is no name: get the file again"
        )
    pooling = _pooling(_named_folder(folder, modules[1].get("path")) / CONFIG, folder)
    return Embedder(pooling, len(kinds) == 3, max_length, lowercase, settings)


def _encoder_alone(folder: pathlib.Path) -> str:
    """How the encoder of an embedder is loaded where its vectors cannot be computed."""
    inner = transformer_folder(folder)
    return (
        f"remove {MODULES} to take the encoder alone" if inner == folder else f"name {inner} to take the encoder alone"
    )


def _modules(folder: pathlib.Path) -> list[dict[str, Any]]:
    path = folder / MODULES
    modules = read_json(inside(path, folder), list)
    if not modules or not all(isinstance(one, dict) and isinstance(one.get("type"), str) for one in modules):
        raise WeightsError(f"{path}: is no list of modules: get the file again")
    return modules


def _named_folder(folder: pathlib.Path, name: object) -> pathlib.Path:
    # The name stands in a file that came from elsewhere.
    if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise WeightsError(f"{folder / MODULES}: {shown(repr(name))} is no name of a folder in it: get the file again")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise WeightsError(f"{folder / name}: is a link out of its folder: replace it by the folder itself")
    if not (folder / name).is_dir():
        raise WeightsError(
            f"{folder / MODULES}: names {shown(repr(name))}, and there is no such folder: get the whole folder again"
        )
    return folder / name


def write_embedder(folder: pathlib.Path, width: int, embedder: Embedder, max_length: int) -> None:
    """The inverse of `read_embedder`, for vectors of `width` numbers."""
    modules = [("", "Transformer"), (POOLING, "Pooling")] + (
        [("2_Normalize", "Normalize")] if embedder.normalize else []
    )
    for path, _ in modules:
        (folder / path).mkdir(exist_ok=True)
    write_json(
        folder / MODULES,
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(modules)
        ],
    )
    write_json(
        folder / LENGTH, {"max_seq_length": embedder.max_length or max_length, "do_lower_case": embedder.lowercase}
    )
    if embedder.settings:
        write_json(folder / SETTINGS, embedder.settings)
    write_json(
        folder / POOLING / CONFIG,
        {"word_embedding_dimension": width}
        | {key: mode == embedder.pooling for key, mode in _OLD_KEYS.items()}
        | {"pooling_mode_mean_sqrt_len_tokens": False},
    )


# What sentence-transformers wrote until version 6, and still reads.
_OLD_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}


def _pooling(path: pathlib.Path, folder: pathlib.Path) -> Pooling:
    values = read_json(inside(path, folder))
    if values.get("include_prompt", True) is not True:
        raise WeightsError(
            f"{path}: include_prompt is off, and jaxbert pools over all tokens: set it, or {_encoder_alone(folder)}"
        )
    modes: Any = values.get("pooling_mode")
    if modes is None:
        modes = [_OLD_KEYS.get(key, key) for key, value in values.items() if key.startswith("pooling_mode_") and value]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise WeightsError(
            f"{path}: pooling is {shown(modes)}, and jaxbert computes one of {', '.join(get_args(Pooling))}: {_encoder_alone(folder)}"
        )
    return modes[0]
