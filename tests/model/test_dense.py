"""The dense layer: parameters as flax names and draws them, and gradients that are the same wherever they are fast."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.model import dense
from jaxbert.model.dense import Dense, wide_dot
from jaxbert.model.layout import axis_rules

INITIAL = nn.initializers.truncated_normal(0.02)


def layer(features=(5, 6), axes=1, dtype=jnp.float32):
    return Dense(features, dtype, INITIAL, nn.initializers.normal(), axes)


@pytest.fixture
def native(monkeypatch):
    """As if this CPU multiplied bfloat16 natively; what XLA makes of it is as exact on any."""
    monkeypatch.setattr(dense, "multiplies_bfloat16", lambda: True)
    # On a GPU these are looked at as well.
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")


@pytest.mark.parametrize(("shape", "features", "axes"), [((2, 3, 4), (5, 6), 1), ((2, 3, 4, 5), 6, 2), ((3, 4), 5, 1)])
def test_parameters_and_outputs_are_those_of_flax(shape, features, axes):
    x = jax.random.normal(jax.random.key(0), shape)
    ours = layer(features, axes)
    theirs = nn.DenseGeneral(features, tuple(range(-axes, 0)), kernel_init=INITIAL, bias_init=nn.initializers.normal())
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=0, atol=1e-6)


def test_the_compute_type_is_that_of_the_output_and_not_of_the_parameters():
    params = layer(dtype=jnp.bfloat16).init(jax.random.key(0), jnp.ones((2, 3, 4)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert layer(dtype=jnp.bfloat16).apply(params, jnp.ones((2, 3, 4))).dtype == jnp.bfloat16


@pytest.mark.parametrize(("features", "axes"), [(7, 1), ((5, 6), 1), (7, 2)])
def test_native_gradients_are_those_of_float32_rounded(native, features, axes):
    x = jax.random.normal(jax.random.key(0), (3, 2, 8)).astype(jnp.bfloat16)
    params = layer(features, axes).init(jax.random.key(1), x)
    # What bfloat16 holds exactly, so that both sides start from the same numbers.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    towards = jax.random.normal(jax.random.key(2), layer(features, axes).apply(params, x).shape).astype(jnp.bfloat16)

    def gradients(dtype):
        out, pull = jax.vjp(lambda params, x: layer(features, axes, dtype).apply(params, x.astype(dtype)), params, x)
        return out, *jax.tree.leaves(pull(towards.astype(dtype)))

    for narrow, wide in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        # Each is rounded twice at most: the sum of products, and that plus the bias.
        scale = float(jnp.max(jnp.abs(wide)))
        np.testing.assert_allclose(np.asarray(narrow, float), np.asarray(wide, float), rtol=2**-7, atol=scale * 2**-8)


def test_native_products_reach_the_compiler_as_it_multiplies_them(native):
    x, kernel = jnp.ones((8, 4), jnp.bfloat16), jnp.ones((4, 6), jnp.bfloat16)

    def both(x, kernel, bias):
        out, pull = jax.vjp(lambda x, kernel, bias: dense.add_bias(dense.dot(x, kernel), bias), x, kernel, bias)
        return pull(out)

    lowered = jax.jit(both).lower(x, kernel, jnp.ones((1, 6), jnp.bfloat16)).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all(line.rstrip().endswith("xf32>") for line in products), products
    # Rows of the left operand lie in memory as the product reads them.
    assert all("contracting_dims = [1] x" in line for line in products), products
    (summed,) = [line for line in lowered.splitlines() if "stablehlo.reduce(" in line]
    assert "bf16" not in summed


def test_elsewhere_it_has_derivatives_of_every_kind(monkeypatch):
    monkeypatch.setattr(dense, "multiplies_bfloat16", lambda: False)
    x = jax.random.normal(jax.random.key(0), (8, 4)).astype(jnp.bfloat16)
    params = layer(dtype=jnp.bfloat16).init(jax.random.key(1), x)
    _, tangent = jax.jvp(lambda x: layer(dtype=jnp.bfloat16).apply(params, x), (x,), (x,))
    assert tangent.dtype == jnp.bfloat16


def test_a_program_for_another_machine_is_as_that_would_trace_it(native):
    """What a TPU multiplies and exchanges in bfloat16 does not depend on the CPU that the program is compiled on."""
    x, kernel, bias = jnp.ones((8, 4), jnp.bfloat16), jnp.ones((4, 6), jnp.bfloat16), jnp.ones((1, 6), jnp.bfloat16)

    def gradients(x, kernel, bias):
        out, pull = jax.vjp(lambda *args: dense.add_bias(dense.dot(*args[:2]), args[2]), x, kernel, bias)
        return pull(out), wide_dot(x, x, 0, 0)

    with axis_rules((), platform="tpu"):
        elsewhere = jax.jit(gradients).lower(x, kernel, bias).as_text()
    assert "optimization_barrier" not in elsewhere
    results = [line.split("->")[1] for line in elsewhere.splitlines() if "dot_general" in line]
    assert [result.strip().removesuffix(">")[-4:] for result in results] == ["bf16", "bf16", "bf16", "xf32"]


@pytest.mark.parametrize(("left_axis", "right_axis"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_wide_products_over_any_axes(native, left_axis, right_axis):
    left, right = (jax.random.normal(jax.random.key(n), (5, 5)).astype(jnp.bfloat16) for n in (0, 1))
    out = jax.jit(wide_dot, static_argnums=(2, 3))(left, right, left_axis, right_axis)
    assert out.dtype == jnp.float32
    expected = np.tensordot(np.asarray(left, float), np.asarray(right, float), (left_axis, right_axis))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
