"""Attention: every backend against a loop in numpy, padding, dropout on the probabilities, and each refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxbert.model.attention import AttentionError, attend

# A full row of one sequence, a packed row with padding, and a row of padding alone.
SEQUENCE_IDS = np.array([[1] * 8, [1, 1, 1, 2, 2, 3, 0, 0], [0] * 8])


def projections(shape=(3, 8, 2, 4), seed=0) -> tuple[jax.Array, ...]:
    return tuple(jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed), 3))


def by_hand(query, key, value, sequence_ids) -> np.ndarray:
    """One softmax a query, in float64; zeros for padding."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output = np.zeros_like(query)
    for row, position, head in np.ndindex(query.shape[:3]):
        if sequence_ids[row, position] == 0:
            continue
        own = sequence_ids[row] == sequence_ids[row, position]
        scores = key[row, own, head] @ query[row, position, head] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        output[row, position, head] = weights / weights.sum() @ value[row, own, head]
    return output


@pytest.mark.parametrize("backend", ["explicit", "xla"])
def test_each_token_sees_its_own_sequence_and_no_more(backend):
    arrays = projections()
    output = np.asarray(attend(*arrays, SEQUENCE_IDS, backend=backend))
    assert np.isfinite(output).all()
    real = SEQUENCE_IDS != 0
    np.testing.assert_allclose(output[real], by_hand(*arrays, SEQUENCE_IDS)[real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["explicit", "xla"])
def test_gradients_stay_finite_and_none_reaches_padding(backend):
    real = jnp.asarray(SEQUENCE_IDS != 0)[:, :, None, None]

    def read_real_outputs(arrays):
        return jnp.sum(jnp.where(real, jnp.sin(attend(*arrays, SEQUENCE_IDS, backend=backend)), 0.0))

    for gradient in jax.grad(read_real_outputs)(projections()):
        gradient = np.asarray(gradient)
        assert np.isfinite(gradient).all()
        assert not gradient[SEQUENCE_IDS == 0].any()
        assert gradient[SEQUENCE_IDS != 0].any()


def test_softmax_runs_in_float32_under_bfloat16():
    arrays = tuple(x.astype(jnp.bfloat16) for x in projections((1, 512, 1, 8)))
    ones = np.ones((1, 512), int)
    output = attend(*arrays, ones)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(output, np.float64), by_hand(*(x.astype(jnp.float32) for x in arrays), ones), rtol=0, atol=4e-3
    )


def test_dropout_falls_on_probabilities_with_a_mask_for_each_row_and_head():
    length = 32
    flat = jnp.zeros((3, length, 4, length))
    # Equal scores and the identity as values: the output is the matrix of dropped probabilities.
    identity = jnp.broadcast_to(jnp.eye(length)[None, :, None, :], flat.shape)
    weights = attend(flat, flat, identity, np.ones((3, length), int), dropout_rate=0.25, dropout_key=jax.random.key(0))
    np.testing.assert_allclose(np.unique(weights), [0.0, 1 / length / 0.75], rtol=1e-5)
    masks = np.asarray(weights == 0).transpose(0, 2, 1, 3).reshape(12, -1)
    np.testing.assert_allclose(masks.mean(axis=1), 0.25, rtol=0, atol=5 * np.sqrt(0.25 * 0.75 / masks.shape[1]))
    agreement = (masks[:, None] == masks[None]).mean(axis=-1)[~np.eye(12, dtype=bool)]
    np.testing.assert_allclose(agreement, 0.25**2 + 0.75**2, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("backend", "platform", "dtype", "dropout_rate", "message"),
    [
        ("xla", "cpu", jnp.float32, 0.1, "'xla' has no dropout: set attention_dropout to 0"),
        ("cudnn", "gpu", jnp.bfloat16, 0.1, "'cudnn' has no dropout"),
        ("tpu_flash", "tpu", jnp.bfloat16, 0.1, "'tpu_flash' has no dropout"),
        ("cudnn", "cpu", jnp.bfloat16, 0.0, "'cudnn' needs a GPU, and jax runs on cpu"),
        ("cudnn", "gpu", jnp.float32, 0.0, "'cudnn' needs model.dtype 'bfloat16', and got float32"),
        ("tpu_flash", "cpu", jnp.float32, 0.0, "'tpu_flash' needs a TPU, and jax runs on cpu"),
        ("tpu_flash", "tpu", jnp.float32, 0.0, "rows of a multiple of 128 tokens, and got 8"),
    ],
)
def test_a_backend_that_cannot_serve_says_so(monkeypatch, backend, platform, dtype, dropout_rate, message):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    arrays = [x.astype(dtype) for x in projections()]
    with pytest.raises(AttentionError, match=message) as caught:
        attend(*arrays, SEQUENCE_IDS, backend=backend, dropout_rate=dropout_rate, dropout_key=jax.random.key(0))
    assert "\n" not in str(caught.value)


def test_some_queries_get_what_all_of_them_would(monkeypatch):
    query, key, value = projections()
    positions = np.array([[7, 0, 2], [1, 1, 4], [5, 3, 0]])
    some = np.take_along_axis(np.asarray(query), positions[:, :, None, None], axis=1)
    ids = np.take_along_axis(SEQUENCE_IDS, positions, axis=1)
    for backend in ("explicit", "xla"):
        expected = np.asarray(attend(query, key, value, SEQUENCE_IDS, backend=backend))
        expected = np.take_along_axis(expected, positions[:, :, None, None], axis=1)
        output = attend(some, key, value, SEQUENCE_IDS, ids, backend=backend)
        np.testing.assert_allclose(
            np.where(ids[:, :, None, None], output, 0), np.where(ids[:, :, None, None], expected, 0), rtol=0, atol=1e-6
        )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(AttentionError, match="'cudnn' needs a query for every token"):
        attend(some, key, value, SEQUENCE_IDS, ids, backend="cudnn")


def test_cudnn_gets_lengths_for_rows_of_one_sequence_and_a_mask_for_packed_ones(monkeypatch):
    calls = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *arrays, **options: calls.append(options))
    arrays = [x.astype(jnp.bfloat16) for x in projections()]
    sequence_ids = np.array([[1] * 8, [1] * 3 + [0] * 5, [0] * 8])
    attend(*arrays, sequence_ids, backend="cudnn", one_sequence=True)
    attend(*arrays, SEQUENCE_IDS, backend="cudnn")
    unpacked, packed = calls
    assert unpacked["implementation"] == packed["implementation"] == "cudnn"
    # A length of 0 would divide by zero.
    assert unpacked["key_value_seq_lengths"].tolist() == [8, 3, 1]
    assert "mask" not in unpacked
    assert packed["mask"].shape == (3, 1, 8, 8)


def test_tpu_flash_equals_explicit_forward_and_gradient_in_the_interpreter(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    arrays = projections((1, 128, 1, 64))
    sequence_ids = np.repeat([[1, 2, 0]], [50, 60, 18], axis=1)
    real = jnp.asarray(sequence_ids != 0)[:, :, None, None]

    def read_real_outputs(backend, arrays):
        output = jnp.where(real, attend(*arrays, sequence_ids, backend=backend), 0.0)
        return jnp.sum(jnp.sin(output)), output

    (_, expected), expected_gradients = jax.value_and_grad(lambda x: read_real_outputs("explicit", x), has_aux=True)(
        arrays
    )
    with pltpu.force_tpu_interpret_mode():
        (_, output), gradients = jax.value_and_grad(lambda x: read_real_outputs("tpu_flash", x), has_aux=True)(arrays)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5)
