"""A fine-tuning run with low-rank adapters: the task on an encoder that stays, and what becomes of the adapters at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxbert.config import ConfigError
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.source import Source
from jaxbert.tasks.task import BoundTask, Outputs
from jaxbert.train.freezing import Adapted
from jaxbert.train.losses import Sums
from jaxbert.train.state import Batch
from jaxbert.weights import adapter, huggingface
from jaxbert.weights.embedder import Embedder
from jaxbert.weights.load import is_adapter
from jaxbert.weights.run_folder import exported


class AdaptedTask(Adapted):
    """A task of fine-tuning with the adapters of `LoraConfig`."""

    def __init__(self, bound: BoundTask[Any, Any], rank: int, alpha: float, targets: tuple[str, ...], source: Source):
        super().__init__(bound, rank, alpha / rank, targets)
        self._bound = bound
        groups = jax.eval_shape(self.init, jax.random.key(0))
        self.trained: tuple[str, ...] = tuple(name for name in groups if name not in (source.params or {}))
        """The adapters, the head, and the pooler where the source has none: what it has of its own stays, as in peft."""

    def outputs(self, params: Any, batch: Batch) -> tuple[dict[str, Sums], Outputs]:
        """The task's, with the adapters."""
        return self._bound.outputs(self.merged(params), batch)


def adapted(config: FinetuneConfig, bound: BoundTask[Any, Any], source: Source) -> AdaptedTask | None:
    """The task with adapters; None where the run has none. Raises ConfigError where there is nothing that they could adapt."""
    lora = config.lora
    if lora.rank is None:
        return None
    if source.params is None:
        raise ConfigError(f"lora.rank adapts a model, and {source.name} has learnt nothing yet: name one with --model")
    if lora.export == "separate" and is_adapter(source.name):
        raise ConfigError(f'lora.export is "separate" and {source.name} is an adapter itself: use "merged"')
    return AdaptedTask(bound, lora.rank, lora.alpha, lora.targets, source)


def save(
    folder: Path,
    config: FinetuneConfig,
    task: AdaptedTask | None,
    source: Source,
    params: Any,
    keep: Mapping[str, Any],
    embedder: Embedder | None,
) -> Path:
    """Write the folder that a run ends with, as `lora.export` says; `keep`, `embedder`: as `jaxbert.weights.huggingface.save` takes them."""
    lora = config.lora
    if task is None or lora.rank is None or lora.export == "merged":
        whole = params if task is None else task.merged(params)
        return huggingface.save(folder, params=whole, carried=source.carried, embedder=embedder, **keep)
    heads = tuple(name for name in task.trained if name != "lora")
    own = {"base": _base(source.name), "rank": lora.rank, "alpha": lora.alpha, "groups": heads, "embedder": embedder}
    return adapter.write_adapter(folder, params=params, **own, **keep)


def _base(name: str) -> str:
    """What adapters call the model that they are for: a path is found from other folders too, and is the model's own."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return str((exported(path) if path.is_dir() else path).absolute())
