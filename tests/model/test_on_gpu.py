"""What only a GPU can show: `JAX_PLATFORMS=cuda pytest tests/model/test_on_gpu.py`. Skipped elsewhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbert.config import MeshConfig, ModelConfig, OptimizerConfig
from jaxbert.model.attention import attend
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.optimizer import make_optimizer, make_schedule
from jaxbert.train.sharding import make_mesh, put_batch
from jaxbert.train.state import create_state
from jaxbert.train.step import make_train_step

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU and JAX_PLATFORMS=cuda"),
    # Known: gpu_flash.is_available asks whether it is still there.
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]

LENGTH = 256
# Packed rows with padding, one full row, and one of padding alone.
SEQUENCE_IDS = np.stack(
    [
        np.repeat([1, 2, 3, 0], [100, 60, 66, 30]),
        np.ones(LENGTH, int),
        np.repeat([1, 0], [37, 219]),
        np.zeros(LENGTH, int),
    ]
)
MODEL = ModelConfig(
    vocab_size=500, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=256, max_position_embeddings=LENGTH
)


def outputs_and_gradients(backend, arrays, rate, positions=None):
    ids = None if positions is None else np.take_along_axis(SEQUENCE_IDS, positions, axis=1)
    real = jnp.asarray((SEQUENCE_IDS if ids is None else ids) != 0)[:, :, None, None]

    @jax.jit
    def run(arrays):
        def read(arrays):
            key = jax.random.key(3) if rate else None
            output = attend(*arrays, SEQUENCE_IDS, ids, backend=backend, dropout_rate=rate, dropout_key=key)
            output = jnp.where(real, output.astype(jnp.float32), 0.0)
            return jnp.sum(jnp.sin(output)), output

        (_, output), gradients = jax.value_and_grad(read, has_aux=True)(arrays)
        return output, gradients

    return jax.tree.map(lambda x: np.asarray(x, np.float32), run(arrays))


def relative_error(ours, reference):
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("backend", ["gpu_flash", "gpu_flash, dropout", "gpu_flash, some queries", "cudnn"])
def test_kernels_equal_explicit_attention(backend, dtype, tolerance, width):
    backend, _, how = backend.partition(", ")
    if backend == "cudnn" and dtype == jnp.float32:
        pytest.skip("cuDNN has no float32 attention")
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (len(SEQUENCE_IDS), LENGTH, 3, width)) for k in keys)
    positions = None
    if how == "some queries":
        positions = np.random.default_rng(0).integers(0, LENGTH, (len(SEQUENCE_IDS), 41))
        query = jnp.take_along_axis(query, positions[:, :, None, None], axis=1)
    rate = 0.2 if how else 0.0
    narrow = tuple(x.astype(dtype) for x in (query, key, value))
    wide = tuple(x.astype(jnp.float32) for x in narrow)
    output, gradients = outputs_and_gradients(backend, narrow, rate, positions)
    expected, expected_gradients = outputs_and_gradients("explicit", wide, rate, positions)
    assert relative_error(output, expected) < tolerance
    for ours, reference in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, reference) < tolerance


@functools.cache
def losses(backend, dtype, scan_layers=False, steps=12):
    """Losses of some steps on one packed batch, dropout on."""
    rates = {} if backend in ("explicit", "gpu_flash") else {"attention_dropout": 0.0}
    model = dataclasses.replace(MODEL, attention_backend=backend, dtype=dtype, scan_layers=scan_layers, **rates)
    generator, rows = np.random.default_rng(0), len(SEQUENCE_IDS)
    positions = np.concatenate([np.arange(n) for n in (100, 60, 66, 30)])
    batch = {
        "input_ids": generator.integers(5, 500, (rows, LENGTH)),
        "token_type_ids": np.zeros((rows, LENGTH)),
        "sequence_ids": SEQUENCE_IDS,
        "position_ids": np.broadcast_to(positions, (rows, LENGTH)),
        "mlm_positions": np.tile(np.arange(1, 33), (rows, 1)),
        "mlm_labels": generator.integers(5, 500, (rows, 32)),
        "cls_positions": np.tile([0, 100, 160], (rows, 1)),
        "nsp_labels": generator.integers(0, 2, (rows, 3)),
    }
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    batch |= {
        "mlm_weights": np.ones((rows, 32), np.float32) * (SEQUENCE_IDS[:, 1:33] != 0),
        "nsp_weights": (np.take_along_axis(SEQUENCE_IDS, batch["cls_positions"], axis=1) != 0).astype(np.float32),
    }
    optimizer_config = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=0, schedule="constant")
    mesh, task = make_mesh(MeshConfig(data=1), jax.devices()[:1]), PretrainingTask(model)
    optimizer = make_optimizer(optimizer_config, steps, jax.eval_shape(task.init, jax.random.key(0)))
    state, shardings = create_state(task, optimizer, 0, mesh)
    step = make_train_step(task, optimizer, make_schedule(optimizer_config, steps), shardings, mesh, seed=0)
    taken = []
    for _ in range(steps):
        state, metrics = step(state, put_batch(batch, mesh))
        taken.append(float(metrics["loss"]))
    return np.array(taken), float(optax.tree.norm(state.params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_training_goes_the_same_way_with_either_kernel(dtype, scan_layers):
    explicit, flash = losses("explicit", dtype, scan_layers)[0], losses("gpu_flash", dtype, scan_layers)[0]
    assert explicit[-1] < explicit[0] - 0.5
    np.testing.assert_allclose(flash, explicit, rtol=0, atol=1e-3 if dtype == "float32" else 5e-2)


def test_the_same_steps_give_the_same_bits():
    once = losses("gpu_flash", "bfloat16")
    again = losses.__wrapped__("gpu_flash", "bfloat16")
    assert once[0].tolist() == again[0].tolist()
    assert once[1] == again[1]
