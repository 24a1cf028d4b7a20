"""The encoder: embeddings, post-LN blocks, the stack of them, and the pooler (Devlin et al. 2018, section 3).

Parameters are float32; activations have the compute type (`compute_dtype`). Every parameter carries logical axis names, which
`jaxbert.train.sharding` maps to mesh axes:

    vocab     rows of the word embeddings, and the MLM bias
    position  rows of the position embeddings
    embed     the width of the residual stream
    heads     attention heads
    kv        the width of one head
    mlp       the width of the feed-forward layer
    layers    the leading axis of every parameter of a scanned stack

Activations are constrained to (batch, length, activation_embed), (batch, length, heads, kv), (batch, length, mlp) and
(batch, predictions, vocab). A name without a rule is not split; without rules or a mesh the constraints do nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxbert.config import ModelConfig
from jaxbert.model.attention import TAKES_SOME_QUERIES, attend
from jaxbert.model.dense import Dense
from jaxbert.model.dropout import dropout
from jaxbert.model.layout import constrain, is_split, platform


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """The type of the activations; "auto" is bfloat16 on GPU and TPU, and float32 on CPUs, most of which have no bfloat16."""
    if config.dtype == "auto":
        return jnp.dtype(jnp.bfloat16 if platform() in ("gpu", "tpu") else jnp.float32)
    return jnp.dtype(config.dtype)


def initial(config: ModelConfig, *axes: str | None) -> Callable[..., Any]:
    """BERT's initialiser of kernels and embeddings, cut at two standard deviations as in google-research/bert."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(config.initializer_range), axes)


def zeros(*axes: str | None) -> Callable[..., Any]:
    """The initialiser of biases."""
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)


def activation(name: Literal["gelu", "gelu_tanh", "relu"]) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity that ModelConfig.activation and mlm_activation name."""
    return {"gelu": gelu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True), "relu": jax.nn.relu}[name]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016), computed in float32.

    `jax.nn.gelu(approximate=False)` goes through erfc, which XLA computes in two branches with an exponential, at four times
    the time of erf on a CPU. What erfc is for, digits of Phi far below 0, is lost in a product that is near 0 there.
    """
    # bfloat16 has too few digits for 1 + erf.
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * np.float32(math.sqrt(0.5))))).astype(x.dtype)


class Dropout(nn.Module):
    """Dropout with a key from the "dropout" stream."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
        if deterministic or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


def layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    """LayerNorm with statistics in float32; the result has the compute type."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_epsilon,
        dtype=compute_dtype(config),
        # E[x^2] - E[x]^2 cancels where the mean is large, and an epsilon of 1e-12 does not hide it.
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=zeros("embed"),
        name=name,
    )


def constrain_hidden(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """Lays hidden states out by rows."""
    return constrain(x, ("batch", "length", "activation_embed"))


def look_up(embed: nn.Embed, ids_BxL: Int[Array, "B L"], rows: str | None) -> Float[Array, "B L E"]:
    """The rows of a table at `ids_BxL`. `rows`: the logical name of its first axis."""
    table = embed.embedding
    # Where the width is in parts over devices that share the batch, the partitioner would gather the gradients of the whole
    # batch on each. Elsewhere the constraint would only keep the table's two gradients from being added up in one go.
    if is_split("embed"):
        table = constrain(table, (rows, "activation_embed"))
    return jnp.take(table, ids_BxL, axis=0)


class Embeddings(nn.Module):
    """Word, position and token type embeddings, their sum normalised, and projected where it has another width than H."""

    config: ModelConfig

    def setup(self) -> None:
        config, width = self.config, self.config.embedding_width
        self.word: nn.Embed = nn.Embed(
            config.padded_vocab_size, width, embedding_init=initial(config, "vocab", "embed")
        )
        self.position: nn.Embed = nn.Embed(
            config.max_position_embeddings, width, embedding_init=initial(config, "position", "embed")
        )
        if config.type_vocab_size:
            self.token_type: nn.Embed = nn.Embed(
                config.type_vocab_size, width, embedding_init=initial(config, None, "embed")
            )
        self.layer_norm: nn.LayerNorm = layer_norm(config, "layer_norm")
        self.dropout: Dropout = Dropout(config.hidden_dropout)
        if width != config.hidden_size:
            self.projection: Dense = Dense(
                config.hidden_size,
                dtype=compute_dtype(config),
                kernel_init=initial(config, None, "embed"),
                bias_init=zeros("embed"),
            )

    def __call__(
        self,
        input_ids_BxL: Int[Array, "B L"],
        token_type_ids_BxL: Int[Array, "B L"],
        position_ids_BxL: Int[Array, "B L"],
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        x_BxLxE = look_up(self.word, input_ids_BxL, "vocab") + look_up(self.position, position_ids_BxL, "position")
        if self.config.type_vocab_size:
            x_BxLxE += look_up(self.token_type, token_type_ids_BxL, None)
        x_BxLxE = self.dropout(self.layer_norm(constrain_hidden(x_BxLxE)), deterministic)
        if self.config.embedding_width == self.config.hidden_size:
            return x_BxLxE
        return constrain_hidden(self.projection(x_BxLxE))


class SelfAttention(nn.Module):
    """The attention sublayer, with its residual connection and LayerNorm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxLxD: Float[Array, "B L D"],
        sequence_ids_BxL: Int[Array, "B L"],
        deterministic: bool,
        one_sequence: bool,
        positions_BxQ: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q D"]:
        config = self.config

        def projection(name: str, inputs: Float[Array, "B _ D"]) -> Float[Array, "B _ N H"]:
            features = (config.num_heads, config.head_size)
            dense = Dense(
                features,
                dtype=compute_dtype(config),
                kernel_init=initial(config, "embed", "heads", "kv"),
                bias_init=zeros("heads", "kv"),
                name=name,
            )
            return constrain(dense(inputs), ("batch", "length", "heads", "kv"))

        # Parameters are made with a token or two, on whatever machine, and do not depend on the kernel.
        backend = "explicit" if self.is_initializing() else config.attention_backend
        # Kernels that want a query for every token get them, and the rest is left out behind them.
        some_queries = positions_BxQ is not None and backend in TAKES_SOME_QUERIES
        residual_BxQxD, query_ids_BxQ = x_BxLxD, None
        if positions_BxQ is not None:
            residual_BxQxD = at_positions(x_BxLxD, positions_BxQ)
            query_ids_BxQ = jnp.take_along_axis(sequence_ids_BxL, positions_BxQ, axis=1)
        dropping = not deterministic and config.attention_dropout > 0.0
        context_BxQxNxH = attend(
            projection("query", residual_BxQxD if some_queries else x_BxLxD),
            projection("key", x_BxLxD),
            projection("value", x_BxLxD),
            sequence_ids_BxL,
            query_ids_BxQ if some_queries else None,
            backend=backend,
            dropout_rate=config.attention_dropout,
            dropout_key=self.make_rng("dropout") if dropping else None,
            one_sequence=one_sequence,
        )
        if positions_BxQ is not None and not some_queries:
            context_BxQxNxH = jnp.take_along_axis(context_BxQxNxH, positions_BxQ[:, :, None, None], axis=1)
        output_BxQxD = Dense(
            config.hidden_size,
            input_axes=2,
            dtype=compute_dtype(config),
            kernel_init=initial(config, "heads", "kv", "embed"),
            bias_init=zeros("embed"),
            name="output",
        )(context_BxQxNxH)
        output_BxQxD = Dropout(config.hidden_dropout)(constrain_hidden(output_BxQxD), deterministic)
        return layer_norm(config, "layer_norm")(residual_BxQxD + output_BxQxD)


class FeedForward(nn.Module):
    """The feed-forward sublayer, with its residual connection and LayerNorm."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: Float[Array, "B L D"], deterministic: bool) -> Float[Array, "B L D"]:
        config, dtype = self.config, compute_dtype(self.config)
        hidden_BxLxF = Dense(
            config.intermediate_size,
            dtype=dtype,
            kernel_init=initial(config, "embed", "mlp"),
            bias_init=zeros("mlp"),
            name="intermediate",
        )(x_BxLxD)
        hidden_BxLxF = constrain(activation(config.activation)(hidden_BxLxF), ("batch", "length", "mlp"))
        output_BxLxD = Dense(
            config.hidden_size,
            dtype=dtype,
            kernel_init=initial(config, "mlp", "embed"),
            bias_init=zeros("embed"),
            name="output",
        )(hidden_BxLxF)
        output_BxLxD = Dropout(config.hidden_dropout)(constrain_hidden(output_BxLxD), deterministic)
        return layer_norm(config, "layer_norm")(x_BxLxD + output_BxLxD)


class Block(nn.Module):
    """One transformer block, LayerNorm behind each sublayer. Returns a pair, as nn.scan wants it.

    With `positions_BxQ` it computes the outputs at these positions alone, which see all the others as ever.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxLxD: Float[Array, "B L D"],
        sequence_ids_BxL: Int[Array, "B L"],
        deterministic: bool,
        one_sequence: bool,
        positions_BxQ: Int[Array, "B Q"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], None]:
        attention = SelfAttention(self.config, name="attention")
        x_BxQxD = attention(x_BxLxD, sequence_ids_BxL, deterministic, one_sequence, positions_BxQ)
        x_BxQxD = FeedForward(self.config, name="feed_forward")(x_BxQxD, deterministic)
        return constrain_hidden(x_BxQxD), None


class Pooler(nn.Module):
    """A dense layer and tanh over the hidden state of each sequence's first token."""

    config: ModelConfig

    @nn.compact
    def __call__(self, first_BxSxD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        dense = Dense(
            self.config.hidden_size,
            dtype=compute_dtype(self.config),
            kernel_init=initial(self.config, "embed", None),
            bias_init=zeros("embed"),
            name="dense",
        )
        return jnp.tanh(constrain(dense(first_BxSxD), ("batch", None, "activation_embed")))


def at_positions(hidden_BxLxD: Float[Array, "B L D"], positions_BxP: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """The hidden states at some positions of each row."""
    return jnp.take_along_axis(hidden_BxLxD, positions_BxP[:, :, None], axis=1)
