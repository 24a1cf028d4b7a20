"""One call for anyone's BERT: `load` tells the kinds of checkpoints apart by what a folder holds."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbert.config import ModelConfig
from jaxbert.text.vocabulary import Vocabulary
from jaxbert.weights import hub
from jaxbert.weights.adapter import onto_base, read_adapter
from jaxbert.weights.assemble import Assembled, Request, Types
from jaxbert.weights.configuration import HfConfiguration
from jaxbert.weights.embedder import Embedder, read_embedder, transformer_folder
from jaxbert.weights.flax_v4 import read_msgpack
from jaxbert.weights.folder import Found, find
from jaxbert.weights.huggingface import read_folder_configuration, read_weights
from jaxbert.weights.names import Family, WeightsError, shown
from jaxbert.weights.run_folder import exported, read_run, read_run_config, run_tokenizer
from jaxbert.weights.tensorflow_checkpoint import read_checkpoint, read_checkpoint_configuration
from jaxbert.weights.tokenizer import find_tokenizer, open_tokenizer
from jaxbert.weights.tree import Layout, Params

if TYPE_CHECKING:
    from jaxbert.predict.predictor import Predictor
    from jaxbert.predict.tasks import Task

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that came in, and what is needed to give it out again unchanged."""

    config: ModelConfig
    """The encoder. Fields that are no sizes may be replaced: attention_backend, remat, dtype and the dropouts."""
    params: Params
    """float32 numpy arrays: `encoder`, and the groups that were there (or asked for)."""
    tokenizer: pathlib.Path | None
    """Folder of its tokenizer; None where there is none."""
    family: Family
    architecture: str | None
    """transformers' class that the file names, where jaxbert.weights knows it."""
    source: pathlib.Path
    """The weights' file, or the folder of a run."""
    fresh: tuple[str, ...] = ()
    """Paths of the parameters that were not in the file, and are initialised anew."""
    unread: tuple[str, ...] = ()
    """Names of what the file holds and nobody asked for."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of config.json that the model has no use for."""
    carried: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Rows of tables that the model has no use for."""
    labels: int = 2
    """Classes of a sequence or token classifier."""
    unused_positions: int = 0
    """Rows of the position table that came before the first (RoBERTa's padding_idx + 1); they are in `carried`."""
    dtype: Types = "float32"
    """The type of the weights in the file, by their path where there are several; in `params` they are float32."""
    embedder: Embedder | None = None
    """How token vectors become a text's, where the folder is a sentence embedder."""
    step: int | None = None
    """Step of a run's checkpoint."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The heads that came with the encoder."""
        return tuple(name for name in self.params if name != "encoder")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes of its classifier, by their ids, as config.json has them in id2label; LABEL_0, ... where it names none."""
        named = self.extra.get("id2label")
        if isinstance(named, list):
            named = {str(i): name for i, name in enumerate(named)}
        return tuple(
            str(named.get(str(i), f"LABEL_{i}")) if isinstance(named, Mapping) else f"LABEL_{i}"
            for i in range(self.labels)
        )

    @property
    def layout(self) -> Layout:
        """Its sizes, for what writes parameters."""
        return Layout(self.config, self.family, self.labels, self.unused_positions)

    def predictor(self, task: "Task | None" = None, **options: Any) -> "Predictor":
        """A `jaxbert.Predictor` of this model; `task` and options are as they stand there."""
        from jaxbert.predict.predictor import Predictor

        return Predictor(self, task, **options)

    def export_arguments(self) -> dict[str, Any]:
        """What `jaxbert.weights.huggingface.save` wants beside a folder, so that what came in goes out unchanged.

        Raises WeightsError for the damaged tokenizer of a run, which has no other file that says what its padding is.
        """
        extra = self.extra
        if self.step is not None and self.tokenizer is not None:
            extra = {"pad_token_id": Vocabulary.of(open_tokenizer(self.tokenizer)).pad_id, **extra}
        return {
            "config": self.config,
            "params": self.params,
            "tokenizer": self.tokenizer,
            "extra": extra,
            "carried": self.carried,
            "labels": self.labels,
            "unused_positions": self.unused_positions,
            "embedder": self.embedder,
            "dtype": self.dtype,
        } | ({"architecture": self.architecture} if self.architecture else {})


def load(
    path_or_name: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    fresh: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    scan_layers: bool | None = None,
    seed: int = 0,
    base: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Weights from a folder, a file, or the Hugging Face hub.

    Takes a Hugging Face folder (model.safetensors or its shards), Google's TensorFlow checkpoint (its folder or prefix), a
    folder with a flax_model.msgpack of transformers 4, the folder of a jaxbert run, and low-rank adapters in peft's format, which are
    added to their base; which one it is, its contents say.

    Args:
      heads: what is wanted beside the encoder, of "pooler", "mlm", "nsp", "sequence", "token", "span", "choice",
        "relation", "discriminator". None: all that is there, and all that the class named in config.json must have.
      fresh: heads that are made new where the file has nothing of them; `Loaded.fresh` says which parameters those are.
      allow_missing, allow_unexpected: patterns (fnmatch) of torch names that may be missing (they are made new), or left.
      scan_layers: parameters of the layers stacked, for ModelConfig.scan_layers. None: as a run has them, else not.
      seed: of what is made new.
      base: the model that adapters are for, in any of these forms. None: the one that they name.

    Raises WeightsError, in one line that names the file and the way out, for everything that does not fit.
    """
    for name, given in {"heads": heads, "fresh": fresh}.items():
        if isinstance(given, str):
            raise WeightsError(f"{name} is {given!r}: it is a list of names, as ({given!r},)")
    request = Request(
        None if heads is None else tuple(heads), tuple(fresh), tuple(allow_missing), tuple(allow_unexpected), seed
    )
    place = _local(path_or_name)
    found = find(transformer_folder(place))
    if found.kind == "adapter":
        adapted = _load_adapter(found, request, bool(scan_layers), base)
        return dataclasses.replace(adapted, embedder=read_embedder(place if place.is_dir() else found.folder))
    if base is not None:
        raise WeightsError(f"{place}: is no adapter, and needs no base: leave out base=")
    if found.kind == "run":
        return _load_run(found.folder, request, scan_layers)
    readers = {"huggingface": _huggingface, "flax": _flax, "tensorflow": _tensorflow}
    described, assembled = readers[found.kind](found, request, bool(scan_layers))
    layout = described.layout
    return Loaded(
        config=layout.config,
        params=assembled.params,
        tokenizer=find_tokenizer(found.folder, layout.config.vocab_size or 0),
        family=layout.family,
        architecture=described.architecture,
        fresh=assembled.fresh,
        unread=assembled.unread,
        extra=described.extra,
        carried=assembled.carried,
        dtype=assembled.dtype,
        labels=layout.labels,
        unused_positions=layout.unused_positions,
        source=found.path,
        embedder=read_embedder(place if place.is_dir() else found.folder),
    )


def is_adapter(path_or_name: str | os.PathLike[str]) -> bool:
    """Whether these are adapters, and no whole model."""
    return find(transformer_folder(_local(path_or_name))).kind == "adapter"


def _local(path_or_name: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a file or folder, of the model of a fine-tuning run, or of the hub's copy of a model's name."""
    if not isinstance(path_or_name, str | os.PathLike):
        raise WeightsError(f"{shown(path_or_name)} is no path: name a file or folder, or a model on the hub")
    # An empty path would be the current folder, which nobody named.
    path = _there(path_or_name) if os.fspath(path_or_name) else None
    if path is not None:
        return exported(path) if path.is_dir() else path
    if not isinstance(path_or_name, str) or not _HUB_NAME.fullmatch(path_or_name):
        name = shown(str(path_or_name), 300) or "''"
        raise WeightsError(f"{name}: no such file or folder: name one that is there, or a model on the hub")
    return hub.download(path_or_name)


def _there(name: str | os.PathLike[str]) -> pathlib.Path | None:
    """The path of a name, where a file or folder is there, or a TensorFlow checkpoint of which it is the prefix."""
    try:
        path = pathlib.Path(name).expanduser()
        return path if path.exists() or path.with_name(f"{path.name}.index").is_file() else None
    # A user without a home; a name that is longer than those of the file system.
    except (OSError, RuntimeError):
        return None


def _huggingface(found: Found, request: Request, scan_layers: bool) -> tuple[HfConfiguration, Assembled]:
    described = read_folder_configuration(found.folder, scan_layers)
    return described, read_weights(found.path, found.folder, described.layout, request)


def _flax(found: Found, request: Request, scan_layers: bool) -> tuple[HfConfiguration, Assembled]:
    described = read_folder_configuration(found.folder, scan_layers)
    return described, read_msgpack(found.path, found.folder, described.layout, request)


def _tensorflow(found: Found, request: Request, scan_layers: bool) -> tuple[HfConfiguration, Assembled]:
    described = read_checkpoint_configuration(found.folder, scan_layers)
    return described, read_checkpoint(found.path, described.layout, request)


def _load_adapter(found: Found, request: Request, scan_layers: bool, named: str | os.PathLike[str] | None) -> Loaded:
    adapter = read_adapter(found.path)
    name = adapter.base if named is None else named
    if not name:
        raise WeightsError(f"{found.path}: names no base: name the model that it was trained on with base=")
    try:
        if is_adapter(name):
            raise WeightsError(f"{name}: is an adapter itself: name a whole model")
        base = load(name, scan_layers=False)
    except WeightsError as error:
        way = "" if named is not None else ", or name it with base= (--base)"
        raise WeightsError(f"{found.path}: its base cannot be loaded: {error}{way}") from None
    described, assembled = onto_base(adapter, base, request, scan_layers)
    layout = described.layout
    return Loaded(
        config=layout.config,
        params=assembled.params,
        tokenizer=find_tokenizer(found.folder, layout.config.vocab_size or 0) or base.tokenizer,
        family=layout.family,
        architecture=described.architecture,
        fresh=assembled.fresh,
        unread=assembled.unread,
        extra=described.extra,
        carried=assembled.carried,
        labels=layout.labels,
        unused_positions=layout.unused_positions,
        source=found.path,
    )


def _load_run(folder: pathlib.Path, request: Request, scan_layers: bool | None) -> Loaded:
    config = read_run_config(folder)
    # How the run computed is a matter of the machine that it ran on.
    model = dataclasses.replace(
        config.model,
        dtype=ModelConfig.dtype,
        attention_backend=ModelConfig.attention_backend,
        remat=ModelConfig.remat,
    )
    scanned = model.scan_layers if scan_layers is None else scan_layers
    assembled, step = read_run(folder, model, scanned, request)
    model = dataclasses.replace(model, scan_layers=scanned)
    tokenizer = run_tokenizer(folder, config)
    if tokenizer is not None:
        tokenizer = find_tokenizer(tokenizer, model.vocab_size or 0)
    return Loaded(
        config=model,
        params=assembled.params,
        tokenizer=tokenizer,
        family="bert",
        architecture="BertForPreTraining",
        fresh=assembled.fresh,
        source=folder,
        step=step,
    )
