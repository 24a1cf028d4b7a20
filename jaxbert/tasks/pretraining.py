"""Pretraining as a task: masked LM and next sentence prediction (Devlin et al. 2018, section 3.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbert.config import ModelConfig
from jaxbert.model.bert import BertForPreTraining, PretrainingOutput
from jaxbert.train.losses import Sums, masked_accuracy, masked_cross_entropy
from jaxbert.train.state import Batch


@dataclasses.dataclass(frozen=True)
class PretrainingTask:
    """L = L_MLM + alpha x L_NSP, each a mean over its real targets in nats.

    Batch: input_ids, token_type_ids, sequence_ids, position_ids int32 [B, L]; mlm_positions, mlm_labels int32 and
    mlm_weights float32 [B, P]; cls_positions, nsp_labels int32 and nsp_weights float32 [B, S].
    Measures mlm_loss, mlm_accuracy, nsp_loss and nsp_accuracy; without NSP labels (all weights 0) the last two
    have sum and weight 0.
    """

    model: ModelConfig
    """The encoder and heads; vocab_size must be set."""
    alpha: float = 1.0
    """Weight of the NSP loss. 0: it is measured and not trained."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Coefficients of the two loss terms."""
        return {"mlm_loss": 1.0, "nsp_loss": self.alpha}

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with their logical axis names."""
        # Parameters have the same shapes for any batch: the smallest will do.
        one_BxL = jnp.zeros((1, 1), jnp.int32)
        variables = BertForPreTraining(self.model).init(key, one_BxL, one_BxL, one_BxL, one_BxL, one_BxL, one_BxL)
        return variables["params"]

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Number of masked tokens and of NSP labels in the batch."""
        return {"mlm_loss": jnp.sum(batch["mlm_weights"]), "nsp_loss": jnp.sum(batch["nsp_weights"])}

    def forward(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, Sums]:
        """(sum, weight) of both losses and both accuracies. `dropout_key` None: no dropout."""
        result = BertForPreTraining(self.model).apply(
            {"params": params},
            batch["input_ids"],
            batch["token_type_ids"],
            batch["sequence_ids"],
            batch["position_ids"],
            batch["mlm_positions"],
            batch["cls_positions"],
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        output = cast(PretrainingOutput, result)
        with jax.named_scope("losses"):
            mlm = (output.mlm_logits_BxPxV, batch["mlm_labels"], batch["mlm_weights"])
            nsp = (output.nsp_logits_BxSx2, batch["nsp_labels"], batch["nsp_weights"])
            return {
                "mlm_loss": masked_cross_entropy(*mlm),
                "mlm_accuracy": masked_accuracy(*mlm),
                "nsp_loss": masked_cross_entropy(*nsp),
                "nsp_accuracy": masked_accuracy(*nsp),
            }
