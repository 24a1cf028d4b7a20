"""Parameters that a task leaves as they are: no gradient flows to them, so that nothing is computed for it either."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from jaxbert.config import OptimizerConfig
from jaxbert.model import lora
from jaxbert.train.losses import Sums
from jaxbert.train.sharding import path_name
from jaxbert.train.state import Batch, Task


class Frozen:
    """A task whose embeddings and lowest blocks stay, as `freeze_embeddings` and `freeze_layers` say; a `Task` like the one it wraps.

    The optimizer leaves them alone too (`scale_by_depth`): weight decay would move them. Blocks must lie one by one, not stacked.
    """

    def __init__(self, task: Task, config: OptimizerConfig):
        self._task, self._config = task, config

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The wrapped task's."""
        return self._task.loss_weights

    def init(self, key: jax.Array) -> Any:
        """The wrapped task's."""
        return self._task.init(key)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The wrapped task's."""
        return self._task.weights(batch)

    def forward(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, Sums]:
        """The wrapped task's, without gradients for what is frozen."""
        return self._task.forward(stop_gradients(params, self._config), batch, dropout_key)


class Adapted:
    """A task whose encoder stays and has low-rank adapters (`jaxbert.model.lora`); a `Task` like the one it wraps.

    Its parameters are those of the wrapped task and, beside them, "lora".
    """

    def __init__(self, task: Task, rank: int, scale: float, targets: Sequence[str]):
        self._task, self._rank, self._scale, self._targets = task, rank, scale, targets

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The wrapped task's."""
        return self._task.loss_weights

    def init(self, key: jax.Array) -> Any:
        """The wrapped task's, to the bit, and fresh adapters."""
        params = self._task.init(key)
        adapters = lora.init_adapters(jax.random.fold_in(key, 1), params["encoder"], self._rank, self._targets)
        return {**params, "lora": adapters}

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The wrapped task's."""
        return self._task.weights(batch)

    def merged(self, params: Any) -> Any:
        """The parameters for the wrapped task: the adapters are added to the encoder's kernels."""
        others = {name: tree for name, tree in params.items() if name != "lora"}
        return {**others, "encoder": lora.merge(params["encoder"], params["lora"], self._scale)}

    def forward(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, Sums]:
        """The wrapped task's, with the adapters."""
        return self._task.forward(self.merged(params), batch, dropout_key)


def stop_gradients(params: Any, config: OptimizerConfig) -> Any:
    """The parameters, of which the frozen ones have no gradient."""

    def stop(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        block = re.search(r"encoder/layers_(\d+)/", name)
        embeddings = "encoder/embeddings/" in name and (config.freeze_embeddings or config.freeze_layers > 0)
        frozen = embeddings or (block is not None and int(block[1]) < config.freeze_layers)
        return jax.lax.stop_gradient(leaf) if frozen else leaf

    return jax.tree_util.tree_map_with_path(stop, params)
