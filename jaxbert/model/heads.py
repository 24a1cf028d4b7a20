"""The heads: masked LM (its decoder usually the word embeddings), next sentence prediction, and classifiers of three kinds."""

from collections.abc import Mapping
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbert.config import ModelConfig
from jaxbert.model.dense import Dense, wide_dot
from jaxbert.model.encoder import Dropout, activation, compute_dtype, gelu, initial, layer_norm, zeros
from jaxbert.model.layout import constrain

# Finite, so that sums with it stay finite; exp(it - any logit) is 0 in float32.
PADDING_LOGIT = -1e9


class MlmHead(nn.Module):
    """Dense, activation, LayerNorm, then the word embeddings as the decoder, plus a bias (Devlin et al. 2018, task 1).

    With config.tie_word_embeddings False, a table of its own is the decoder.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxPxD: Float[Array, "B P D"], table_VxE: Float[Array, "V E"]) -> Float[Array, "B P V"]:
        """Logits in float32 over the padded vocabulary; those of padding are PADDING_LOGIT."""
        config, dtype = self.config, compute_dtype(self.config)
        if not config.tie_word_embeddings:
            decoder_init = initial(config, "vocab", "embed")
            table_VxE = nn.Embed(*table_VxE.shape, embedding_init=decoder_init, name="decoder").embedding
        # What the decoder reads has the width of the embeddings.
        x_BxPxE = Dense(
            config.embedding_width,
            dtype=dtype,
            kernel_init=initial(config, "embed", None),
            bias_init=zeros("embed"),
            name="dense",
        )(hidden_BxPxD)
        x_BxPxE = layer_norm(config, "layer_norm")(activation(config.mlm_activation or config.activation)(x_BxPxE))
        bias_V = cast(jax.Array, self.param("bias", zeros("vocab"), (config.padded_vocab_size,), jnp.float32))
        # Through the bias, padding is masked at the cost of one vector; softmax then gives its table rows no gradient.
        real_V = jnp.arange(config.padded_vocab_size) < cast(int, config.vocab_size)
        bias_V = jnp.where(real_V, bias_V, PADDING_LOGIT)
        # float32 out of the products: the loss subtracts logits of like size.
        x_RxE = x_BxPxE.reshape(-1, config.embedding_width)
        logits_RxV = _logits(x_RxE, table_VxE) if dtype == jnp.float32 else _narrow_logits(x_RxE, table_VxE)
        logits_BxPxV = logits_RxV.reshape(*x_BxPxE.shape[:2], -1)
        return constrain(logits_BxPxV + bias_V[None, None, :], ("batch", "predictions", "vocab"))


def _logits(x_RxE: Float[Array, "R E"], table_VxE: Float[Array, "V E"]) -> Float[Array, "R V"]:
    return wide_dot(x_RxE, table_VxE.astype(x_RxE.dtype), 1, 1)


@jax.custom_vjp
def _narrow_logits(x_RxE: Float[Array, "R E"], table_VxE: Float[Array, "V E"]) -> Float[Array, "R V"]:
    """`_logits`, whose gradient goes back in the compute type.

    The logits are the largest array of the step, and float32 because the loss subtracts them; left alone, their gradient would be
    float32 too, and both products with it.
    """
    return _logits(x_RxE, table_VxE)


def _narrow_logits_forward(x_RxE, table_VxE):
    return _logits(x_RxE, table_VxE), (x_RxE, table_VxE)


def _narrow_logits_backward(saved, gradient_RxV):
    x_RxE, table_VxE = saved
    gradient_RxV = gradient_RxV.astype(x_RxE.dtype)
    x_gradient = wide_dot(gradient_RxV, table_VxE.astype(x_RxE.dtype), 1, 0)
    # The table's comes in the compute type, as that of any kernel: so devices exchange half the bytes.
    table_gradient = wide_dot(gradient_RxV, x_RxE, 0, 0).astype(x_RxE.dtype)
    return x_gradient.astype(x_RxE.dtype), table_gradient.astype(table_VxE.dtype)


_narrow_logits.defvjp(_narrow_logits_forward, _narrow_logits_backward)


class NspHead(nn.Module):
    """Two logits for each sequence: the second segment follows the first (0), or it is random (1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, pooled_BxSxD: Float[Array, "B S D"]) -> Float[Array, "B S 2"]:
        """Logits in float32, which the loss is computed in."""
        return _classifier(self.config, 2)(pooled_BxSxD)


HiddenLayer = Literal["tanh", "relu", "gelu"]
SEQUENCE_HIDDEN_LAYERS: Mapping[str, HiddenLayer | None] = {
    "bert": None,
    "roberta": "tanh",
    "xlm-roberta": "tanh",
    "distilbert": "relu",
    "electra": "gelu",
}
"""What `SequenceHead` is in the families of BERT (`Loaded.family`)."""
CHOICE_HIDDEN_LAYERS: Mapping[str, HiddenLayer | None] = {
    "bert": None,
    "roberta": None,
    "xlm-roberta": None,
    "distilbert": "relu",
    "electra": "gelu",
}
"""What it is in their classes for multiple choice."""
_HIDDEN_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": gelu}


class SequenceHead(nn.Module):
    """A class, or a number, for each sequence, from one vector of it.

    BERT classifies its pooler's output. RoBERTa ("tanh"), DistilBERT ("relu") and ELECTRA ("gelu") classify the first hidden
    state, through a layer of their own with this activation.
    """

    config: ModelConfig
    num_labels: int
    hidden_layer: HiddenLayer | None = None
    dropout: float | None = None
    """Rate in front of each dense layer. None: config.hidden_dropout."""

    @nn.compact
    def __call__(self, x_BxSxD: Float[Array, "B S D"], deterministic: bool = True) -> Float[Array, "B S C"]:
        """Logits in float32, which the loss is computed in."""
        drop = Dropout(self.config.hidden_dropout if self.dropout is None else self.dropout)
        if self.hidden_layer is not None:
            # DistilBERT alone has no dropout here, which at prediction is the same.
            hidden = Dense(
                self.config.hidden_size,
                dtype=compute_dtype(self.config),
                kernel_init=initial(self.config, "embed", None),
                bias_init=zeros("embed"),
                name="hidden",
            )
            x_BxSxD = _HIDDEN_ACTIVATIONS[self.hidden_layer](hidden(drop(x_BxSxD, deterministic)))
        return _classifier(self.config, self.num_labels)(drop(x_BxSxD, deterministic))


class TokenHead(nn.Module):
    """A class for each token."""

    config: ModelConfig
    num_labels: int
    dropout: float | None = None
    """Rate in front of the dense layer. None: config.hidden_dropout."""

    @nn.compact
    def __call__(self, hidden_BxLxD: Float[Array, "B L D"], deterministic: bool = True) -> Float[Array, "B L C"]:
        """Logits in float32."""
        drop = Dropout(self.config.hidden_dropout if self.dropout is None else self.dropout)
        return _classifier(self.config, self.num_labels)(drop(hidden_BxLxD, deterministic))


class SpanHead(nn.Module):
    """Where an answer starts (0) and where its last token is (1) (Devlin et al. 2018, section 4.2)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxLxD: Float[Array, "B L D"]) -> Float[Array, "B L 2"]:
        """Logits in float32."""
        return _classifier(self.config, 2)(hidden_BxLxD)


CLASSIFIER = "dense"
"""The name of the last layer of every classifier, with an output for each label."""


def _classifier(config: ModelConfig, num_labels: int) -> Dense:
    return Dense(
        num_labels,
        dtype=jnp.float32,
        kernel_init=initial(config, "embed", None),
        bias_init=zeros(None),
        name=CLASSIFIER,
    )
