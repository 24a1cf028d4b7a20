"""A task of your own in one file: classification with the focal loss, of which the checkpoint is kept that misses no class.

python finetune.py --config tests/examples/own_task.py --model PATH --data.train train.tsv --task.gamma 1
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxbert.finetune.config import ClassificationConfig, FinetuneConfig
from jaxbert.tasks.classification import BoundClassification, Classification


@dataclasses.dataclass(frozen=True)
class FocalConfig(ClassificationConfig):
    kind: Literal["focal"] = "focal"  # pyright: ignore[reportIncompatibleVariableOverride]
    gamma: float = 2.0
    """How much less an example weighs the surer the model is of it (Lin et al. 2017)."""
    metric: str | None = "worst_recall"

    def make_task(self):
        return Focal(self)


class Focal(Classification):
    def bind(self, labels, train, encoder):
        return BoundFocal(self.settings, labels, dict.fromkeys(labels, 1.0), encoder)


class BoundFocal(BoundClassification):
    def sums(self, found, batch):
        own = jnp.take_along_axis(jax.nn.log_softmax(found), batch["label"][..., None], axis=-1)[..., 0]
        losses = -((1 - jnp.exp(own)) ** self.settings.gamma) * own
        total = jnp.sum(batch["weight"])
        return {**super().sums(found, batch), "label_loss": (jnp.sum(batch["weight"] * losses), total)}

    def score(self, examples, predictions):
        recalls = [count.recall for count in self.counts(examples, predictions) if count.gold]
        return {**super().score(examples, predictions), "worst_recall": min(recalls)}


def get_config():
    return FinetuneConfig(name="focal", workdir="runs/focal", task=FocalConfig())
