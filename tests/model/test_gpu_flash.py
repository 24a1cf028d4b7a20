"""The GPU's attention kernels in Pallas' interpreter: they give what "explicit" gives, dropout's masks included."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxbert.model import gpu_flash
from jaxbert.model.attention import AttentionError, attend, same_sequence
from jaxbert.model.layout import axis_rules

KEY = jax.random.key(3)


def pretend(monkeypatch, platform: str, serves: bool = True) -> None:
    """As if jax ran on devices of that kind."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(gpu_flash, "serves", lambda _: serves)


@pytest.fixture
def on_gpu(monkeypatch):
    """As if jax ran on a GPU, its kernels interpreted."""
    pretend(monkeypatch, "gpu")
    interpreted = functools.partial(gpu_flash.flash_attention, interpret=True)
    monkeypatch.setattr(gpu_flash, "flash_attention", interpreted)


def made(rows, length, heads, width, queries=None):
    """Arrays, ids of packed rows of which the last is padding alone, and positions of some queries."""
    generator = np.random.default_rng(length)
    ids = np.sort(generator.integers(1, 5, (rows, length)), axis=1)
    ids[:, length - length // 6 :] = 0
    ids[-1] = 0
    arrays = [jnp.asarray(generator.normal(size=(rows, length, heads, width)), jnp.float32) for _ in range(3)]
    positions = None if queries is None else generator.integers(0, length, (rows, queries))
    if positions is not None:
        arrays[0] = jnp.take_along_axis(arrays[0], positions[:, :, None, None], axis=1)
    return tuple(arrays), ids, None if positions is None else np.take_along_axis(ids, positions, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 4))
def outputs_and_gradients(backend, arrays, ids, query_ids, rate):
    real = ((ids if query_ids is None else query_ids) != 0)[:, :, None, None]

    def read_real_outputs(arrays):
        output = attend(*arrays, ids, query_ids, backend=backend, dropout_rate=rate, dropout_key=KEY if rate else None)
        return jnp.sum(jnp.where(real, jnp.sin(output), 0.0)), output

    (_, output), gradients = jax.value_and_grad(read_real_outputs, has_aux=True)(arrays)
    return jnp.where(real, output, 0.0), gradients, output


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 128, 2, 16),
        # More blocks than one, the last of them in part, and in float32 those of wide heads.
        (3, 200, 2, 64),
        (2, 40, 1, 128),
        # Some of the queries, as the last layer asks.
        (2, 130, 2, 32, 21),
    ],
)
def test_outputs_and_gradients_are_those_of_explicit_attention(on_gpu, shape, rate):
    arrays, ids, query_ids = made(*shape)
    expected = outputs_and_gradients("explicit", arrays, ids, query_ids, rate)
    ours = outputs_and_gradients("gpu_flash", arrays, ids, query_ids, rate)
    for left, right in zip(jax.tree.leaves(ours[:2]), jax.tree.leaves(expected[:2]), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)
    # Padding gets nothing, and no NaN.
    assert not np.asarray(ours[2])[np.asarray(ids if query_ids is None else query_ids) == 0].any()


def test_bfloat16_differs_by_its_rounding(on_gpu):
    arrays, ids, _ = made(2, 128, 2, 64)
    narrow = tuple(x.astype(jnp.bfloat16) for x in arrays)
    expected = outputs_and_gradients("explicit", tuple(x.astype(jnp.float32) for x in narrow), ids, None, 0.1)
    ours = outputs_and_gradients("gpu_flash", narrow, ids, None, 0.1)
    for left, right in zip(jax.tree.leaves(ours[:2]), jax.tree.leaves(expected[:2]), strict=True):
        assert left.dtype == jnp.bfloat16 or left is ours[0]
        assert np.linalg.norm(left.astype(jnp.float32) - right) < 1e-2 * np.linalg.norm(right)


def test_a_mesh_draws_the_same_masks(on_gpu):
    arrays, ids, _ = made(4, 32, 2, 16)
    expected = outputs_and_gradients("gpu_flash", arrays, ids, None, 0.3)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rules = (("batch", "data"), ("heads", "tensor"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), axis_rules(rules):
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        placed = jax.device_put((arrays, jnp.asarray(ids)), replicated)
        ours = jax.jit(outputs_and_gradients.__wrapped__, static_argnums=(0, 4))("gpu_flash", *placed, None, 0.3)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)


def test_only_blocks_that_share_a_sequence_are_visited():
    ids = np.repeat([[1, 2, 3, 0], [1, 0, 0, 0]], [40, 24, 100, 92], axis=1)
    visited = np.asarray(gpu_flash._visited(jnp.asarray(ids), jnp.asarray(ids), 32, 64))
    same = np.asarray(same_sequence(jnp.asarray(ids))).reshape(2, 8, 32, 4, 64).any(axis=(2, 4))
    for row, block in np.ndindex(2, 8):
        first, behind = visited[row, block]
        assert list(range(first, behind)) == np.flatnonzero(same[row, block]).tolist()
    # 0 to 39 meet the first block of keys alone, 64 to 163 the second and third, and padding meets nothing.
    assert visited[0, :, 1].tolist() == [1, 1, 3, 3, 3, 3, 0, 0]
    assert visited[0, 2:6, 0].tolist() == [1] * 4


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernels_become_triton(monkeypatch, dtype):
    """Whether a GPU can run them is for test_on_gpu.py; here, that nothing in them is unknown to Triton."""
    if not gpu_flash.is_available():
        pytest.skip("this jax has no Pallas for Triton")
    pretend(monkeypatch, "gpu")
    arrays, ids, query_ids = made(2, 200, 2, 64, 21)
    arrays = tuple(x.astype(dtype) for x in arrays)
    step = jax.jit(outputs_and_gradients.__wrapped__, static_argnums=(0, 4))
    # Newer versions of jax ask which GPU it is for.
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = step.trace("gpu_flash", arrays, ids, query_ids, 0.1)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize(
    ("platform", "serves", "width", "triton", "message"),
    [
        ("cpu", False, 64, True, "'gpu_flash' needs a GPU, and jax runs on cpu: use 'explicit' or 'xla'"),
        ("gpu", False, 64, True, r"of compute capability 8 \(Ampere\) or more, and this is cpu: use 'explicit'"),
        ("gpu", True, 48, True, "'gpu_flash' takes heads of 16, 32, 64, 128, and these have 48: use 'explicit'"),
        ("gpu", True, 64, False, "'gpu_flash' needs Pallas' Triton backend, which jax .* has no more: use 'explicit'"),
    ],
)
def test_where_it_cannot_serve_it_says_so(monkeypatch, platform, serves, width, triton, message):
    pretend(monkeypatch, platform, serves)
    monkeypatch.setattr(gpu_flash, "is_available", lambda: triton)
    arrays, ids, _ = made(1, 16, 1, width)
    with pytest.raises(AttentionError, match=message) as caught:
        attend(*arrays, ids, backend="gpu_flash")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "expected"), [("7.5", False), ("8.0", True), ("9.0", True), ("12.0", True), ("gfx90a", False), (None, False)]
)  # fmt: skip
def test_gpus_since_ampere_serve(capability, expected):
    device = types.SimpleNamespace() if capability is None else types.SimpleNamespace(compute_capability=capability)
    assert gpu_flash.serves(device) == expected


def test_rows_that_do_not_divide_over_the_devices_are_told(on_gpu):
    arrays, ids, _ = made(3, 32, 2, 16)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        axis_rules((("batch", "data"), ("heads", "tensor"))),
        pytest.raises(AttentionError, match=r"as many rows on each device: 3 do not divide into 4 parts \(data\)"),
    ):
        jax.jit(functools.partial(attend, backend="gpu_flash"))(*arrays, jnp.asarray(ids))


def test_all_may_be_dropped(on_gpu):
    arrays, ids, _ = made(1, 16, 1, 16)
    for backend in ("explicit", "gpu_flash"):
        assert not attend(*arrays, ids, backend=backend, dropout_rate=1.0, dropout_key=KEY).any()
