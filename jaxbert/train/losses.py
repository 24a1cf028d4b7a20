"""Loss and metric terms as (sum, weight) pairs, which add up over microbatches, devices and steps and are divided once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sums = tuple[Float[Array, ""], Float[Array, ""]]
"""A weighted sum and its total weight, both float32 scalars."""


def masked_cross_entropy(
    logits: Float[Array, "*targets classes"],
    labels: Int[Array, "*targets"],
    weights: Float[Array, "*targets"],
) -> Sums:
    """Weighted sum of -log softmax(logits)[label] in nats, and the sum of the weights.

    A target of weight 0 adds nothing to the sum nor to any gradient. Labels lie in [0, classes).
    """
    # float32: a sum of exponentials over 30 k classes has no digits to spare.
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    # Log-sum-exp less the label's logit: no array of log-probabilities or one-hot labels is kept.
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - label_logits
    return jnp.sum(losses * weights), jnp.sum(weights)


def masked_accuracy(
    logits: Float[Array, "*targets classes"],
    labels: Int[Array, "*targets"],
    weights: Float[Array, "*targets"],
) -> Sums:
    """Weighted number of targets whose label has the highest logit (the first, of equals), and the sum of the weights."""
    weights = weights.astype(jnp.float32)
    # Not argmax: XLA reduces (value, index) pairs one by one on CPUs, which took 8 % of a small model's step.
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    # Negated, so that a NaN beats the label and never counts as a correct answer.
    earlier = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < labels[..., None]
    beaten = jnp.any(jnp.where(earlier, ~(logits < label_logits), ~(logits <= label_logits)), axis=-1)
    return jnp.sum(~beaten * weights), jnp.sum(weights)


def mean(sums: Sums) -> Float[Array, ""]:
    """Sum over weight; 0, with gradient 0, where the total weight is 0."""
    total, weight = sums
    return total * inverse_weight(weight)


def inverse_weight(weight: Float[Array, ""]) -> Float[Array, ""]:
    """1 / weight, and 0 for a weight of 0: a batch without targets costs nothing instead of being NaN."""
    # The inner `where` keeps the division by 0 out of the graph, so that no gradient sees it either.
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
