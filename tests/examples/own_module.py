"""The encoder inside your own linen module, trained by your own Optax loop.

python tests/examples/own_module.py PATH      # anything that jaxbert.load takes
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxbert

TEXTS = ["a fine day", "what a lovely film", "this was a waste", "an awful mess"]
SCORES = [1.0, 1.0, 0.0, 0.0]


class Judge(nn.Module):
    """How much somebody liked it, from the mean of the hidden states."""

    config: jaxbert.ModelConfig

    def setup(self):
        self.encoder = jaxbert.BertEncoder(self.config)
        self.score = nn.Dense(1)

    def __call__(self, input_ids, mask, deterministic=True):
        # The mask may also number several sequences of a row: 1, 2, ... each sees itself alone; 0 is padding.
        hidden = self.encoder(input_ids, jnp.zeros_like(input_ids), mask, deterministic=deterministic)
        weights = mask[..., None] / mask.sum(1)[:, None, None]
        return self.score((hidden * weights).sum(1))[:, 0]


def main(path: str, steps: int = 30) -> list[float]:
    """The losses."""
    loaded = jaxbert.load(path, heads=())
    tokenizer = jaxbert.open_tokenizer(loaded.tokenizer)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    encoded = tokenizer.encode_batch(TEXTS)
    ids, mask = (jnp.array([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
    scores = jnp.array(SCORES)

    model = Judge(loaded.config)
    params = nn.unbox(model.init(jax.random.key(0), ids, mask))["params"]
    params["encoder"] = loaded.params["encoder"]
    optimizer = optax.adamw(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        def loss_of(params):
            found = model.apply({"params": params}, ids, mask, deterministic=False, rngs={"dropout": key})
            return optax.sigmoid_binary_cross_entropy(found, scores).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for number in range(steps):
        params, state, loss = step(params, state, jax.random.key(number))
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = main(sys.argv[1])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
