"""Where a fine-tuning run starts from: somebody's model, the newest run, or a new small encoder."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxbert.config import ModelConfig, VocabularyConfig
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.text.vocabulary import Vocabulary, save_tokenizer, train_tokenizer
from jaxbert.train.checkpoint_record import CHECKPOINTS, RECORDS
from jaxbert.weights.load import load
from jaxbert.weights.names import Family, WeightsError
from jaxbert.weights.tokenizer import open_tokenizer

RUNS = Path("runs")
SMALL = ModelConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=256, max_position_embeddings=128)
"""The encoder that starts from nothing; its vocabulary is learnt from the training texts."""
NEW = "a new small encoder"
_HEADS = ("sequence", "token", "span", "choice", "relation")
SMALL_VOCABULARY = VocabularyConfig(size=4096)


@dataclasses.dataclass(frozen=True)
class Source:
    """An encoder to start from."""

    name: str
    """What it is, in words."""
    config: ModelConfig
    family: Family
    tokenizer: Tokenizer
    tokenizer_folder: Path
    params: Mapping[str, Any] | None
    """`encoder`, and `pooler` where there is one. None: it starts anew."""
    extra: Mapping[str, Any]
    """Keys of its config.json, for the export."""
    carried: Mapping[str, Any]
    unused_positions: int
    heads: Mapping[str, Any]
    """Parameters of the task that it was fine-tuned for before, by their group; `jaxbert.finetune.head` decides whether they serve."""
    labels: tuple[str, ...]
    """Names of the outputs of its classifier; LABEL_0, ... where there are none."""

    def with_dropout(self, config: FinetuneConfig) -> ModelConfig:
        """The encoder's configuration, with the dropout that the run wants."""
        if config.dropout is None:
            return self.config
        return dataclasses.replace(self.config, hidden_dropout=config.dropout, attention_dropout=config.dropout)


def find_source(config: FinetuneConfig, texts: Iterable[str], workdir: Path, before: str | None = None) -> Source:
    """What `config.model` names. None: the newest run in runs/ that has a checkpoint, else a new small encoder for `texts`.

    `before`: what the run in the folder started from, which it goes on from whatever run has come since.
    Raises WeightsError for a model that cannot be loaded, or has no tokenizer.
    """
    name = start_of(config, before)
    return _new(texts, workdir) if config.model is None and name == NEW else _loaded(name)


def start_of(config: FinetuneConfig, before: str | None = None) -> str:
    """What a run starts from, as `find_source` says: a path or a name, or NEW."""
    if config.model is not None:
        return config.model
    return str(newest_run() or NEW) if before is None else before


def newest_run() -> Path | None:
    """The folder in runs/ of the pretraining run with the newest checkpoint."""
    found = []
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        records = list((folder / RECORDS).glob("*.json")) if (folder / CHECKPOINTS).is_dir() else []
        # Fine-tuned models are in folders of the same kind.
        if records and (folder / "rows").is_dir():
            found.append((max(record.stat().st_mtime for record in records), folder))
    return max(found)[1] if found else None


def _loaded(path: str) -> Source:
    loaded = load(path)
    if loaded.tokenizer is None:
        raise WeightsError(f"{path}: came without a tokenizer: put its files beside the weights")
    params = {name: loaded.params[name] for name in ("encoder", "pooler") if name in loaded.params}
    return Source(
        path,
        loaded.config,
        loaded.family,
        open_tokenizer(loaded.tokenizer),
        loaded.tokenizer,
        params,
        loaded.extra,
        loaded.carried,
        loaded.unused_positions,
        {name: tree for name, tree in loaded.params.items() if name in _HEADS},
        loaded.label_names,
    )


def _new(texts: Iterable[str], workdir: Path) -> Source:
    folder = workdir / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(train_tokenizer(texts, SMALL_VOCABULARY), folder, SMALL.max_position_embeddings)
    tokenizer = open_tokenizer(folder)
    config = dataclasses.replace(SMALL, vocab_size=Vocabulary.of(tokenizer).size)
    return Source(NEW, config, "bert", tokenizer, folder, None, {}, {}, 0, {}, ())
