"""Dropout masks: their rate, their independence, and that the layout over devices does not show in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbert.model.dropout import dropout, random_words

SHAPE = (4, 3, 64, 64)


def dropped(rate: float, seed: int) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(SHAPE), rate, jax.random.key(seed)) == 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_in_every_slice(rate):
    mask = dropped(rate, 0)
    for axis in range(mask.ndim):
        shares = mask.mean(axis=tuple(a for a in range(mask.ndim) if a != axis))
        bound = 5 * np.sqrt(rate * (1 - rate) / (mask.size / mask.shape[axis]))
        np.testing.assert_allclose(shares, rate, rtol=0, atol=bound)


def test_what_is_kept_is_scaled_to_the_same_mean():
    x = jnp.ones(SHAPE)
    kept = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(kept), [0.0, 1 / 0.75], rtol=1e-6)
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x, 0.5, None) is x
    assert not dropout(x, 1.0, jax.random.key(0)).any()


def test_masks_of_neighbours_and_of_other_keys_are_independent():
    mask = dropped(0.5, 0)
    neighbours = [np.roll(mask, shift, axis) for axis in range(mask.ndim) for shift in (1, 2)]
    for other in [*neighbours, dropped(0.5, 1), mask.swapaxes(2, 3)]:
        assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(mask.size)


def test_every_bit_of_a_word_is_fair():
    words = np.asarray(random_words(jax.random.key(0), SHAPE))
    bits = np.unpackbits(words.reshape(-1, 1).view(np.uint8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(words.size)
    assert len(np.unique(words)) > 0.999 * words.size


def test_eight_devices_draw_the_mask_of_one():
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.ones(SHAPE)
    layout = NamedSharding(mesh, PartitionSpec("rows", None, "columns", None))
    draw = jax.jit(dropout, static_argnums=1)
    np.testing.assert_array_equal(
        draw(jax.device_put(x, layout), 0.3, jax.random.key(3)), draw(x, 0.3, jax.random.key(3))
    )
