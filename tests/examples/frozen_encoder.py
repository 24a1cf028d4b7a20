"""A frozen encoder that embeds a tf.data stream, in your own jitted function.

python tests/examples/frozen_encoder.py PATH  # anything that jaxbert.load takes
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer

import jaxbert

TEXTS = ["a fine day", "what a lovely film", "this was a waste", "an awful mess", "the end"]


def stream(tokenizer: Tokenizer, rows: int, length: int) -> tf.data.Dataset:
    """Batches of a static shape; the last one is padded with empty rows."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def encode(texts: tf.Tensor) -> np.ndarray:
        found = tokenizer.encode_batch([text.decode() for text in texts.numpy()])
        return np.array([[one.ids, one.attention_mask] for one in found], np.int32)

    def pad(pairs: tf.Tensor) -> tf.Tensor:
        return tf.pad(pairs, [[0, rows - tf.shape(pairs)[0]], [0, 0], [0, 0]])

    texts = tf.data.Dataset.from_tensor_slices(TEXTS).batch(rows)
    return texts.map(lambda batch: pad(tf.py_function(encode, [batch], tf.int32))).prefetch(2)


def main(path: str) -> np.ndarray:
    """A vector for each text."""
    loaded = jaxbert.load(path, heads=())
    encoder = jaxbert.BertEncoder(loaded.config)
    params = jax.device_put(loaded.params["encoder"])

    @jax.jit
    def embed(params, ids, mask):
        hidden = encoder.apply({"params": params}, ids, jnp.zeros_like(ids), mask)
        vectors = (hidden * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1), 1e-12)[:, None]

    tokenizer = jaxbert.open_tokenizer(loaded.tokenizer)
    batches = stream(tokenizer, rows=2, length=16).as_numpy_iterator()
    vectors = [embed(params, batch[:, 0], batch[:, 1]) for batch in batches]
    return np.concatenate(vectors)[: len(TEXTS)]


if __name__ == "__main__":
    vectors = main(sys.argv[1])
    print(np.array_str(vectors @ vectors.T, precision=2))
