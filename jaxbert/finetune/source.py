"""Where a fine-tuning run starts from: somebody's model, the newest run, or a new small encoder."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxbert import run_folder
from jaxbert.config import ConfigError, ModelConfig, VocabularyConfig
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.run_folder import Start
from jaxbert.text.vocabulary import Vocabulary, VocabularyError, save_tokenizer, train_tokenizer
from jaxbert.train.checkpoint_record import CHECKPOINTS, RECORDS, parse_record
from jaxbert.train.processes import say
from jaxbert.validation import attention
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

    def configured(self, config: FinetuneConfig) -> ModelConfig:
        """The encoder's configuration, computed as the run wants. Raises ConfigError where its attention cannot serve."""
        model = dataclasses.replace(self.config, dtype=config.dtype, attention_backend=config.attention_backend)
        if config.dropout is not None:
            model = dataclasses.replace(model, hidden_dropout=config.dropout, attention_dropout=config.dropout)
        if problems := list(attention(model, dropout="dropout")):
            raise ConfigError("\n".join(problems))
        return model


def find_source(
    config: FinetuneConfig, texts: Iterable[str], workdir: Path, before: str | None = None, keep_tokenizer: bool = True
) -> Source:
    """What `config.model` names. None: the newest run in runs/ that has a checkpoint, else a new small encoder for `texts`.

    before: what the run in the folder started from, which it goes on from whatever run has come since. keep_tokenizer: a tokenizer
    that is in the folder is that of the new encoder; False: it is one of other texts, and another takes its place.
    Raises WeightsError for a model that cannot be loaded, or has no tokenizer.
    """
    name = start_of(config, before)
    return _new(texts, workdir, keep_tokenizer) if config.model is None and name == NEW else _loaded(name)


def start_of(config: FinetuneConfig, before: str | None = None) -> str:
    """What a run starts from, as `find_source` says: a path or a name, or NEW."""
    if config.model is not None:
        return config.model
    return str(newest_run() or NEW) if before is None else before


def find_start(config: FinetuneConfig, before: str | None = None) -> Start:
    """What the run in the folder started from, or what a new one starts from. Where these are not the same, it is said.

    before: what the others of several runs start from, for all of which it was said.
    """
    workdir = Path(config.workdir)
    own, now = run_folder.started_from(workdir), state_of(start_of(config, before))
    if own is None:
        return now
    kept = own if run_folder.goes_on(workdir) else state_of(own.name)
    if before is None and (what := _changed(kept, now)):
        several = config.seeds > 1 or config.search is not None
        others = ", where runs that are still to come begin" if several and now.name == kept.name else ""
        say(
            f"warning: {workdir} started from {kept.name}, {what}{others}: to start from there, choose another --workdir, or remove "
            f"{workdir}"
        )
    return kept


def state_of(name: str) -> Start:
    """What is there now to start from: of a run its newest checkpoint."""
    try:
        numbered = [path for path in (Path(name).expanduser() / RECORDS).glob("*.json") if path.stem.isdigit()]
        newest = max(numbered, key=lambda path: int(path.stem), default=None)
        record = None if newest is None else parse_record(newest.read_bytes())
    # A name that is no folder's, and may be longer than those are; a record that is damaged.
    except (OSError, RuntimeError, ValueError):
        record = None
    if record is None:
        return Start(name)
    files = json.dumps(record.files, sort_keys=True)
    return Start(name, record.step, hashlib.sha256(files.encode()).hexdigest())


def _changed(before: Start, now: Start) -> str | None:
    """How what there is to start from is not what it was, to follow the name of that; None where it is, or nobody knows."""
    if now.name != before.name:
        # What is gone cannot be loaded, which is said there.
        return None if now.name == NEW else f"and the newest run is {now.name} now"
    if before.step is None or now.step is None or before.checkpoint == now.checkpoint:
        return None
    if now.step > before.step:
        return f"which was at step {before.step:,} and is at step {now.step:,} now"
    return "which has been trained anew since"


def newest_run() -> Path | None:
    """The folder in runs/ of the pretraining run with the newest checkpoint."""
    found = []
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        records = list((folder / RECORDS).glob("*.json")) if (folder / CHECKPOINTS).is_dir() else []
        if records:
            found.append((max(record.stat().st_mtime for record in records), folder))
    return next((folder for _, folder in sorted(found, reverse=True) if run_folder.is_pretraining(folder)), None)


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


def _new(texts: Iterable[str], workdir: Path, keep_tokenizer: bool) -> Source:
    folder = workdir / "tokenizer"
    if not keep_tokenizer or not (folder / "tokenizer.json").is_file():
        try:
            # As many pieces as the texts have: fewer than the size are no surprise.
            tokenizer = train_tokenizer(texts, SMALL_VOCABULARY, warn=False)
        except VocabularyError:
            raise ConfigError(
                "the training texts are too few to learn a vocabulary from: name a model to start from with --model"
            ) from None
        save_tokenizer(tokenizer, folder, SMALL.max_position_embeddings)
    tokenizer = open_tokenizer(folder)
    config = dataclasses.replace(SMALL, vocab_size=Vocabulary.of(tokenizer).size)
    return Source(NEW, config, "bert", tokenizer, folder, None, {}, {}, 0, {}, ())
