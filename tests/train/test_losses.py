"""Loss and metric sums against plain numpy, at the edges where a mean would be NaN, and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.train.losses import inverse_weight, masked_accuracy, masked_cross_entropy, mean


@pytest.fixture
def targets():
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=4, size=(3, 5, 11)).astype(np.float32)
    labels = generator.integers(0, 11, size=(3, 5)).astype(np.int32)
    weights = generator.integers(0, 2, size=(3, 5)).astype(np.float32)
    return logits, labels, weights


def expected_cross_entropy(logits, labels, weights):
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, labels[..., None], -1)[..., 0]
    return float((-np.log(chosen) * weights).sum())


def test_cross_entropy_is_the_weighted_sum_of_log_probabilities(targets):
    logits, labels, weights = targets
    total, weight = masked_cross_entropy(*targets)
    assert float(total) == pytest.approx(expected_cross_entropy(logits, labels, weights), rel=1e-6)
    assert float(weight) == weights.sum()
    assert total.dtype == weight.dtype == jnp.float32


def test_cross_entropy_by_hand():
    logits = jnp.array([[0.0, 0.0], [0.0, np.log(3.0)]])
    total, weight = masked_cross_entropy(logits, jnp.array([0, 1]), jnp.array([1.0, 2.0]))
    assert float(total) == pytest.approx(np.log(2) + 2 * np.log(4 / 3), rel=1e-6)
    assert float(weight) == 3.0


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, -1e9, 0.0]])
    total, _ = masked_cross_entropy(logits, jnp.array([2]), jnp.ones(1))
    assert float(total) == pytest.approx(1e4)


def test_bfloat16_logits_are_summed_in_float32(targets):
    logits, labels, weights = targets
    half = jnp.asarray(logits, jnp.bfloat16)
    total, _ = masked_cross_entropy(half, labels, weights)
    assert total.dtype == jnp.float32
    rounded = np.asarray(half.astype(jnp.float32))
    assert float(total) == pytest.approx(expected_cross_entropy(rounded, labels, weights), rel=1e-5)


def test_gradient_is_softmax_less_one_hot(targets):
    logits, labels, weights = targets
    gradient = jax.grad(lambda logits: masked_cross_entropy(logits, labels, weights)[0])(logits)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, (softmax - np.eye(11)[labels]) * weights[..., None], atol=1e-6)


def test_no_weight_gives_no_loss_and_no_gradient(targets):
    logits, labels, weights = targets

    def loss(logits, weights):
        return mean(masked_cross_entropy(logits, labels, weights))

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(logits), jnp.zeros_like(weights))
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradients[0], np.zeros_like(logits))
    assert np.isfinite(gradients[1]).all()


def test_mean_divides_once():
    assert float(mean((jnp.float32(6.0), jnp.float32(4.0)))) == 1.5


def test_inverse_weight():
    assert [float(inverse_weight(jnp.float32(weight))) for weight in (0.0, 4.0)] == [0.0, 0.25]


def test_accuracy_by_hand():
    logits = jnp.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0], [5.0, 5.0, 5.0]])
    total, weight = masked_accuracy(logits, jnp.array([1, 1, 2, 1]), jnp.array([1.0, 1.0, 0.5, 1.0]))
    assert (float(total), float(weight)) == (1.5, 3.5)


def test_of_equal_logits_the_first_is_the_answer_and_nan_is_none():
    logits = np.array(
        [[1, 2, 2, 0], [1, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [np.nan] * 4, [1, np.nan, 0, 0]], np.float32
    )
    labels = np.array([1, 2, 0, 3, 0, 0])
    for row, label, right in zip(logits, labels, [1, 0, 1, 0, 0, 0], strict=True):
        correct, weight = masked_accuracy(row[None], np.array([label]), np.ones(1, np.float32))
        assert (float(correct), float(weight)) == (right, 1.0)
