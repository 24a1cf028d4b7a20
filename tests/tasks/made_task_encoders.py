"""Tokenizers small enough to know by heart, encoders of random parameters, and what these say of features."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxbert.config import ModelConfig
from jaxbert.data.examples import Layout, Placed, fill
from jaxbert.data.features import Feature
from jaxbert.tasks.task import BoundTask, Encoder
from jaxbert.text.packing import pack
from jaxbert.text.wordpiece import SPECIAL, bert_tokenizer

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def wordpiece(*pieces: str) -> Tokenizer:
    """Lower case; every word of Latin letters and digits has pieces, of single characters at worst."""
    more = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS), *"@#.,!?()'-"]
    return bert_tokenizer({piece: n for n, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces, *more]))}, True)


def byte_level(*texts: str) -> Tokenizer:
    """RoBERTa's kind. Without texts a piece is a byte; what they repeat becomes one piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def encoder_of(tokenizer: Tokenizer, max_length: int = 64) -> Encoder:
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=max_length,
    )
    return Encoder(config, "bert", tokenizer, max_length)


def parameters_of(bound: BoundTask) -> Any:
    """Random ones, biases and scales too. Made by numpy: nothing is compiled for them."""
    generator = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(bound.init, jax.random.key(0)))
    return jax.tree.map(lambda shape: generator.normal(0, 0.4, shape.shape).astype(np.float32), shapes)


def placed(features: Sequence[Feature], row_length: int = 64) -> Placed:
    """All features in one batch, in as few rows as they fit into."""
    layout = Layout(row_length, 1)
    row_of = pack(np.array([len(feature.input_ids) for feature in features]), row_length, layout.slots)
    return fill(features, np.arange(len(features)), row_of, int(row_of.max()) + 1, layout)


@functools.cache
def _compiled(bound: BoundTask) -> Any:
    return jax.jit(bound.outputs)


def outputs_of(bound: BoundTask, params: Any, features: Sequence[Feature]) -> list[Mapping[str, np.ndarray]]:
    """What `decode` takes, from features that share rows."""
    batch = placed(features)
    found = jax.device_get(_compiled(bound)(params, batch.arrays)[1])
    outputs: list[Mapping[str, np.ndarray]] = [{} for _ in features]
    columns = (batch.features, batch.rows, batch.slots, batch.starts)
    for feature, row, slot, start in zip(*(column.tolist() for column in columns), strict=True):
        stop = start + len(features[feature].input_ids)
        outputs[feature] = {name: values[row, slot] for name, values in found.sequences.items()} | {
            name: values[row, start:stop] for name, values in found.tokens.items()
        }
    return outputs
