"""The classifiers on packed rows, and with dropout; tests/weights/test_classes.py has them beside torch."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.config import ModelConfig
from jaxbert.model.classifiers import BertForSequenceClassification, BertForTokenClassification


def test_packed_sequences_are_classified_one_by_one():
    config = ModelConfig(
        vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_position_embeddings=16
    )
    model = BertForSequenceClassification(config, 3)
    ids = np.random.default_rng(0).integers(1, 50, (1, 10)).astype(np.int32)
    packed = (ids, ids * 0, np.array([[1] * 4 + [2] * 6]), np.array([[*range(4), *range(6)]]), np.array([[0, 4]]))
    params = model.init(jax.random.key(0), *packed)
    together: jax.Array = model.apply(params, *packed)  # pyright: ignore[reportAssignmentType]
    for slot, part in enumerate((slice(0, 4), slice(4, 10))):
        one = ids[:, part]
        alone: jax.Array = model.apply(params, one, one * 0, one * 0 + 1)  # pyright: ignore[reportAssignmentType]
        np.testing.assert_allclose(together[:, slot], alone[:, 0], atol=1e-6)


def test_dropout_acts_in_front_of_the_classes():
    config = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout=0.5,
        attention_dropout=0.0,
    )
    ids = jnp.ones((2, 8), jnp.int32)
    for model in (BertForSequenceClassification(config, 3), BertForTokenClassification(config, 3)):
        params = model.init(jax.random.key(0), ids, ids * 0, ids)
        draws = [
            model.apply(params, ids, ids * 0, ids, deterministic=False, rngs={"dropout": jax.random.key(seed)})
            for seed in (1, 1, 2)
        ]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert not np.allclose(draws[0], draws[2])
