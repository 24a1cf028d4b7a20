"""Your own head and loss, given to jaxbert's step: sharded over every device, with its optimizer and schedule.

python tests/examples/own_head.py PATH        # anything that jaxbert.load takes
"""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxbert


class Tagger(nn.Module):
    """Two classes of tokens."""

    config: jaxbert.ModelConfig

    def setup(self):
        self.encoder = jaxbert.BertEncoder(self.config)
        self.head = jaxbert.TokenHead(self.config, num_labels=2)

    def __call__(self, batch, deterministic):
        ids = batch["input_ids"]
        hidden = self.encoder(ids, jnp.zeros_like(ids), batch["sequence_ids"], deterministic=deterministic)
        return self.head(hidden, deterministic)


@dataclasses.dataclass(frozen=True)
class TaggingTask:
    """What the step wants to know (jaxbert.Task): losses and metrics as sums and weights, which it adds up and divides once."""

    model: jaxbert.ModelConfig

    @property
    def loss_weights(self):
        return {"tag_loss": 1.0}

    def init(self, key):
        one = jnp.ones((1, 1), jnp.int32)
        return Tagger(self.model).init(key, {"input_ids": one, "sequence_ids": one}, True)["params"]

    def weights(self, batch):
        return {"tag_loss": jnp.sum(batch["sequence_ids"] > 0, dtype=jnp.float32)}

    def forward(self, params, batch, dropout_key):
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        logits = Tagger(self.model).apply({"params": params}, batch, dropout_key is None, rngs=rngs)
        targets = (logits, batch["tags"], (batch["sequence_ids"] > 0).astype(jnp.float32))
        return {"tag_loss": jaxbert.masked_cross_entropy(*targets), "accuracy": jaxbert.masked_accuracy(*targets)}


def batches(vocabulary: int, steps: int):
    """Rows of random tokens, each tagged with whether its id is even."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        ids = rng.integers(0, vocabulary, (16, 24), dtype=np.int32)
        yield {"input_ids": ids, "sequence_ids": np.ones_like(ids), "tags": ids % 2}


def main(path: str, steps: int = 60) -> list[float]:
    """The losses."""
    loaded = jaxbert.load(path, heads=())
    task = TaggingTask(loaded.config)
    config = jaxbert.OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=5)
    mesh = jaxbert.make_mesh(jaxbert.MeshConfig())
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    optimizer, schedule = jaxbert.make_optimizer(config, steps, shapes), jaxbert.make_schedule(config, steps)
    state, shardings = jaxbert.create_state(task, optimizer, seed=0, mesh=mesh)
    state = jaxbert.with_params(state, {"encoder": loaded.params["encoder"]})
    step = jaxbert.make_train_step(task, optimizer, schedule, shardings, mesh, seed=0)

    losses = []
    for batch in batches(loaded.config.vocab_size, steps):
        state, metrics = step(state, jaxbert.put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses


if __name__ == "__main__":
    losses = main(sys.argv[1])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
