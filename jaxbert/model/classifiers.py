"""The encoder with a head of one task on top: classes of sequences, classes of tokens, spans, choices, vectors of texts.

The arguments are those of `BertEncoder`; a row may hold several sequences (packing), S at most.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbert.config import ModelConfig, Pooling
from jaxbert.model.bert import BertEncoder
from jaxbert.model.encoder import Pooler
from jaxbert.model.heads import HiddenLayer, SequenceHead, SpanHead, TokenHead


class BertForSequenceClassification(nn.Module):
    """A class, or a number where `num_labels` is 1, for each sequence."""

    config: ModelConfig
    num_labels: int
    hidden_layer: HiddenLayer | None = None
    """None: over the pooler, as BERT. Else over the first hidden state, as the family in `SequenceHead` has it."""

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        if self.hidden_layer is None:
            self.pooler: Pooler = Pooler(self.config)
        self.sequence: SequenceHead = SequenceHead(self.config, self.num_labels, self.hidden_layer)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        cls_positions: Int[Array, "B S"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S C"]:
        """Logits, float32. `cls_positions` is as in `BertEncoder.first_tokens`."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        first_BxSxD = self.encoder.first_tokens(*tokens, cls_positions, deterministic=deterministic)
        if self.hidden_layer is None:
            first_BxSxD = self.pooler(first_BxSxD)
        return self.sequence(first_BxSxD, deterministic)


class BertForTokenClassification(nn.Module):
    """A class for each token."""

    config: ModelConfig
    num_labels: int

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.token: TokenHead = TokenHead(self.config, self.num_labels)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B L C"]:
        """Logits, float32."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        return self.token(self.encoder(*tokens, deterministic=deterministic), deterministic)


class SpanOutput(NamedTuple):
    """Logits for each token to be the first, and to be the last of the answer; float32."""

    start_logits_BxL: Float[Array, "B L"]
    end_logits_BxL: Float[Array, "B L"]


class BertForQuestionAnswering(nn.Module):
    """Where in the text the answer stands."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.span: SpanHead = SpanHead(self.config)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool = True,
    ) -> SpanOutput:
        """Logits over every token of the row; those of padding mean nothing."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        logits_BxLx2 = self.span(self.encoder(*tokens, deterministic=deterministic))
        return SpanOutput(logits_BxLx2[..., 0], logits_BxLx2[..., 1])


class BertForRelationClassification(nn.Module):
    """How two entities of a sequence are related, from the hidden states where they begin (Baldini Soares et al. 2019)."""

    config: ModelConfig
    num_labels: int

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.relation: TokenHead = TokenHead(self.config, self.num_labels)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None,
        entities: Int[Array, "B S 2"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S C"]:
        """Logits, float32. entities: where in the row the two of each sequence begin."""
        rows, slots, _ = entities.shape
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        starts_BxQxD = self.encoder(*tokens, entities.reshape(rows, 2 * slots), deterministic=deterministic)
        return self.relation(starts_BxQxD.reshape(rows, slots, -1), deterministic)


class BertForMultipleChoice(nn.Module):
    """How good a choice each sequence is: a number to be compared with those of the other choices.

    `hidden_layer` is as in `CHOICE_HIDDEN_LAYERS`.
    """

    config: ModelConfig
    hidden_layer: HiddenLayer | None = None

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        if self.hidden_layer is None:
            self.pooler: Pooler = Pooler(self.config)
        self.choice: SequenceHead = SequenceHead(self.config, 1, self.hidden_layer)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        cls_positions: Int[Array, "B S"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S"]:
        """Logits, float32. `cls_positions` is as in `BertEncoder.first_tokens`."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        first_BxSxD = self.encoder.first_tokens(*tokens, cls_positions, deterministic=deterministic)
        if self.hidden_layer is None:
            first_BxSxD = self.pooler(first_BxSxD)
        return self.choice(first_BxSxD, deterministic)[..., 0]


class BertForSentenceEmbedding(nn.Module):
    """A vector for each sequence (Reimers & Gurevych 2019); it has no parameters but the encoder's."""

    config: ModelConfig
    pooling: Pooling = "mean"

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None,
        cls_positions: Int[Array, "B S"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """Vectors, float32, not scaled to any length. `cls_positions`: where in the row sequences 1..S begin."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        if self.pooling == "cls":
            return jnp.asarray(self.encoder(*tokens, cls_positions, deterministic=deterministic), jnp.float32)
        hidden_BxLxD = jnp.asarray(self.encoder(*tokens, deterministic=deterministic), jnp.float32)
        slots = cls_positions.shape[1]
        if self.pooling == "max":
            # Padding goes into a segment of its own, which is left out.
            segment_max = functools.partial(jax.ops.segment_max, num_segments=slots + 1)
            most_BxSxD = jax.vmap(segment_max)(hidden_BxLxD, sequence_ids)[:, 1:]
            # An empty slot has -inf, which would make the gradients of all others NaN.
            return jnp.where(jnp.isneginf(most_BxSxD), 0.0, most_BxSxD)
        numbers_S = jnp.arange(1, slots + 1)
        member_BxSxL = (sequence_ids[:, None, :] == numbers_S[None, :, None]).astype(jnp.float32)
        sum_BxSxD = jnp.einsum("bsl,bld->bsd", member_BxSxL, hidden_BxLxD, precision="highest")
        return sum_BxSxD / jnp.maximum(member_BxSxL.sum(-1), 1)[..., None]
