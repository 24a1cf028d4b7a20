"""The examples that the README shows do what they say."""

import pathlib

import frozen_encoder
import jax
import nnx_encoder
import numpy as np
import own_head
import own_module
import pytest
import transformers

import jaxbert
from jaxbert.config import VocabularyConfig
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(own_module.TEXTS * 5, VocabularyConfig(size=180, min_frequency=1))
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 32)
    return folder


def test_the_encoder_in_a_module_of_ones_own(model: pathlib.Path):
    losses = own_module.main(str(model))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


def test_a_head_of_ones_own_in_our_step(model: pathlib.Path):
    losses = own_head.main(str(model))
    assert losses[0] > 0.6
    assert np.mean(losses[-5:]) < 0.5


def test_a_frozen_encoder_over_a_stream(model: pathlib.Path):
    found = frozen_encoder.main(str(model))
    expected = jaxbert.load(model).predictor("embed").embed(frozen_encoder.TEXTS, normalize=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_encoder_in_nnx(model: pathlib.Path):
    loaded = jaxbert.load(model, heads=())
    scores, gradient = nnx_encoder.main(str(model))
    assert scores.shape == (2,)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == len(jax.tree.leaves(loaded.params)) + 2
    ids = np.arange(16, dtype=np.int32).reshape(2, 8)
    expected = jaxbert.BertEncoder(loaded.config).apply({"params": loaded.params["encoder"]}, ids, ids * 0, ids * 0 + 1)
    np.testing.assert_allclose(nnx_encoder.encoder_of(loaded)(ids, ids * 0, ids * 0 + 1), expected, atol=1e-6)
