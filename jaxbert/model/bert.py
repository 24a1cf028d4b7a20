"""The compositions that people import: the encoder, and BERT with its two pretraining heads."""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbert.config import ModelConfig
from jaxbert.model.encoder import Block, Embeddings, Pooler, at_positions
from jaxbert.model.heads import MlmHead, NspHead


class PretrainingOutput(NamedTuple):
    """Logits of both heads, float32."""

    mlm_logits_BxPxV: Float[Array, "B P V"]
    """Over the padded vocabulary; columns of padding are about -1e9."""
    nsp_logits_BxSx2: Float[Array, "B S 2"]
    """0: the second segment follows the first, 1: it is random."""


class BertEncoder(nn.Module):
    """Token ids to hidden states."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.embeddings: Embeddings = Embeddings(config)
        # Scanned blocks are not unrolled, so nothing could merge the two passes of a recomputed block there.
        block = nn.remat(Block, static_argnums=(3, 4), prevent_cse=not config.scan_layers) if config.remat else Block
        if config.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=cast(Any, (nn.broadcast, nn.broadcast, nn.broadcast)),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            layers: Any = scanned(config)
        else:
            layers = [block(config) for _ in range(config.num_layers)]
        self.layers = layers

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        positions: Int[Array, "B Q"] | None = None,
        *,
        deterministic: bool = True,
        one_sequence: bool = False,
    ) -> Float[Array, "B Q D"]:
        """Hidden states of the last block, in the compute type.

        Args:
          sequence_ids: 0 is padding, 1..S the sequence that a token belongs to; a token sees its own sequence alone.
          position_ids: count from 0 within each sequence. None: 0, 1, 2, ... along the row.
          positions: where along the row hidden states are wanted; the last block computes no others (but for its keys and
            values, and in a scanned stack, where all blocks are alike). None: everywhere.
          deterministic: False: dropout, from the rng stream "dropout".
          one_sequence: a promise that every row holds at most one sequence, from position 0 on ("cudnn" is faster then).
        """
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None, :], input_ids.shape)
        x_BxLxD = self.embeddings(input_ids, token_type_ids, position_ids, deterministic)
        if self.config.scan_layers:
            x_BxLxD, _ = self.layers(x_BxLxD, sequence_ids, deterministic, one_sequence)
            return x_BxLxD if positions is None else at_positions(x_BxLxD, positions)
        *blocks, last = self.layers
        for block in blocks:
            x_BxLxD, _ = block(x_BxLxD, sequence_ids, deterministic, one_sequence)
        return last(x_BxLxD, sequence_ids, deterministic, one_sequence, positions)[0]

    def first_tokens(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        cls_positions: Int[Array, "B S"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """The hidden state of each sequence's [CLS], which classifiers read.

        cls_positions: where these are. None: position 0, one sequence a row. With one column, every row must hold at most one
        sequence, from position 0 on. The other arguments are as for a call.
        """
        if cls_positions is None:
            cls_positions = row_starts(input_ids)
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        one_sequence = cls_positions.shape[1] == 1
        return self(*tokens, cls_positions, deterministic=deterministic, one_sequence=one_sequence)

    def word_table(self) -> Float[Array, "V E"]:
        """The word embeddings, padded rows included: a tied decoder of the MLM head."""
        return self.embeddings.word.embedding


def row_starts(input_ids: Int[Array, "B L"]) -> Int[Array, "B 1"]:
    """Where the [CLS] are in rows of one sequence."""
    return jnp.zeros((input_ids.shape[0], 1), jnp.int32)


class BertForMaskedLM(nn.Module):
    """BERT with the masked LM head alone."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.mlm: MlmHead = MlmHead(self.config)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        mlm_positions: Int[Array, "B P"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B P V"]:
        """Logits as `BertForPreTraining` gives them, for the same arguments."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        chosen_BxPxD = self.encoder(*tokens, mlm_positions, deterministic=deterministic)
        return self.mlm(chosen_BxPxD, self.encoder.word_table())


class BertForNextSentencePrediction(nn.Module):
    """BERT with the next sentence prediction head alone."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.pooler: Pooler = Pooler(self.config)
        self.nsp: NspHead = NspHead(self.config)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        cls_positions: Int[Array, "B S"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S 2"]:
        """Logits as `BertForPreTraining` gives them, for the same arguments."""
        tokens = (input_ids, token_type_ids, sequence_ids, position_ids)
        return self.nsp(self.pooler(self.encoder.first_tokens(*tokens, cls_positions, deterministic=deterministic)))


class BertForPreTraining(nn.Module):
    """BERT with the masked LM and the next sentence prediction head."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder: BertEncoder = BertEncoder(self.config)
        self.pooler: Pooler = Pooler(self.config)
        self.mlm: MlmHead = MlmHead(self.config)
        self.nsp: NspHead = NspHead(self.config)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None = None,
        mlm_positions: Int[Array, "B P"] | None = None,
        cls_positions: Int[Array, "B S"] | None = None,
        *,
        deterministic: bool = True,
    ) -> PretrainingOutput:
        """Logits of both heads.

        Args:
          mlm_positions: the positions to predict. None: every one (P is L).
          cls_positions: the [CLS] of each sequence in the row. None: position 0, one sequence a row.
            With one column, every row must hold at most one sequence, from position 0 on.
        The others are as in `BertEncoder`.
        """
        if cls_positions is None:
            cls_positions = row_starts(input_ids)
        encode = functools.partial(
            self.encoder,
            input_ids,
            token_type_ids,
            sequence_ids,
            position_ids,
            deterministic=deterministic,
            one_sequence=cls_positions.shape[1] == 1,
        )
        if mlm_positions is None:
            chosen_BxPxD = encode()
            first_BxSxD = at_positions(chosen_BxPxD, cls_positions)
        else:
            hidden_BxQxD = encode(positions=jnp.concatenate([mlm_positions, cls_positions], axis=1))
            chosen_BxPxD, first_BxSxD = jnp.split(hidden_BxQxD, [mlm_positions.shape[1]], axis=1)
        return PretrainingOutput(self.mlm(chosen_BxPxD, self.encoder.word_table()), self.nsp(self.pooler(first_BxSxD)))
