"""Dropout whose mask is cheap to draw and does not depend on how the array is laid out over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Zeroes each element of `x` with probability `rate` and scales the others by 1 / (1 - rate).

    `key` None, or `rate` 0: `x` as it is. Every element has a draw of its own.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
