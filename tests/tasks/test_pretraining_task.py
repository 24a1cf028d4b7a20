"""Pretraining's loss terms: sums and weights over real targets, and nothing from what has no target."""

import jax
import numpy as np
import pytest

from jaxbert.config import ModelConfig
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.losses import mean

MODEL = ModelConfig(
    vocab_size=50, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_position_embeddings=12
)
TERMS = ["mlm_accuracy", "mlm_loss", "nsp_accuracy", "nsp_loss"]


def batch(mlm_weights, nsp_weights) -> dict[str, np.ndarray]:
    """Two rows of 12 tokens with three predictions and one sequence each."""
    draw = np.random.default_rng(0)
    rows = np.ones((2, 12), np.int32)
    return {
        "input_ids": draw.integers(5, 50, (2, 12)).astype(np.int32),
        "token_type_ids": rows * 0,
        "sequence_ids": rows,
        "position_ids": rows * np.arange(12, dtype=np.int32)[None],
        "mlm_positions": np.array([[1, 4, 6], [2, 3, 0]], np.int32),
        "mlm_labels": np.array([[7, 8, 9], [10, 11, 0]], np.int32),
        "mlm_weights": np.array(mlm_weights, np.float32),
        "cls_positions": np.zeros((2, 1), np.int32),
        "nsp_labels": np.array([[0], [1]], np.int32),
        "nsp_weights": np.array(nsp_weights, np.float32),
    }


@pytest.fixture(scope="module")
def task() -> PretrainingTask:
    return PretrainingTask(MODEL, alpha=0.5)


@pytest.fixture(scope="module")
def params(task: PretrainingTask):
    return task.init(jax.random.key(1))


def terms(task, params, values) -> dict[str, tuple[float, float]]:
    return {name: (float(total), float(weight)) for name, (total, weight) in task.forward(params, values, None).items()}


def test_terms_are_sums_over_real_targets(task, params):
    whole = terms(task, params, batch([[1, 1, 1], [1, 1, 0]], [[1], [1]]))
    assert sorted(whole) == TERMS
    assert {name: weight for name, (_, weight) in whole.items()} == {
        "mlm_loss": 5, "mlm_accuracy": 5, "nsp_loss": 2, "nsp_accuracy": 2
    }  # fmt: skip
    first = terms(task, params, batch([[1, 1, 1], [0, 0, 0]], [[1], [0]]))
    second = terms(task, params, batch([[0, 0, 0], [1, 1, 0]], [[0], [1]]))
    for name in TERMS:
        assert first[name][0] + second[name][0] == pytest.approx(whole[name][0], rel=1e-5)
        assert first[name][1] + second[name][1] == whole[name][1]
    assert whole["mlm_loss"][0] / 5 == pytest.approx(np.log(50), rel=0.05)
    assert whole["nsp_loss"][0] / 2 == pytest.approx(np.log(2), rel=0.05)


def test_weights_are_those_of_the_terms(task, params):
    values = batch([[1, 1, 0], [1, 0, 0]], [[1], [0]])
    found = {name: float(weight) for name, weight in task.weights(values).items()}
    assert found == {"mlm_loss": 3, "nsp_loss": 1}
    assert task.loss_weights == {"mlm_loss": 1.0, "nsp_loss": 0.5}


def test_no_target_at_all_is_a_loss_and_a_gradient_of_zero(task, params):
    values = batch(np.zeros((2, 3)), np.zeros((2, 1)))

    def loss(params):
        found = task.forward(params, values, None)
        return mean(found["mlm_loss"]) + mean(found["nsp_loss"])

    value, gradients = jax.value_and_grad(loss)(params)
    assert float(value) == 0.0
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(gradients))
