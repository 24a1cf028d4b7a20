"""The encoder as an NNX module, with loaded weights.

python tests/examples/nnx_encoder.py PATH     # anything that jaxbert.load takes
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

import jaxbert


def encoder_of(loaded: jaxbert.Loaded) -> nnx.Module:
    """The encoder; called as `jaxbert.BertEncoder` is."""
    one = jnp.ones((1, 1), jnp.int32)
    # Its parameters name the axes of jaxbert's mesh; here they are to lie where NNX puts them.
    with nnx.use_eager_sharding(False):
        encoder = bridge.ToNNX(jaxbert.BertEncoder(loaded.config), rngs=nnx.Rngs(0)).lazy_init(one, one, one)
    state = nnx.state(encoder, nnx.Param)
    nnx.replace_by_pure_dict(state, loaded.params["encoder"])
    nnx.update(encoder, state)
    return encoder


class Scorer(nnx.Module):
    """An NNX module around it."""

    def __init__(self, loaded: jaxbert.Loaded, rngs: nnx.Rngs):
        self.encoder = encoder_of(loaded)
        self.score = nnx.Linear(loaded.config.hidden_size, 1, rngs=rngs)

    def __call__(self, input_ids, mask):
        return self.score(self.encoder(input_ids, jnp.zeros_like(input_ids), mask)[:, 0])[:, 0]


def main(path: str) -> tuple[jax.Array, nnx.State]:
    """Scores of two rows, and the gradient of their sum."""
    scorer = Scorer(jaxbert.load(path, heads=()), nnx.Rngs(0))
    ids = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    mask = jnp.ones_like(ids)
    gradient = nnx.jit(nnx.grad(lambda scorer: scorer(ids, mask).sum()))(scorer)
    return scorer(ids, mask), gradient


if __name__ == "__main__":
    print(main(sys.argv[1])[0])
