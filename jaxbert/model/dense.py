"""The dense layer of every module: a product of two matrices and a bias, in a form that CPUs compute quickly in bfloat16 too.

Where a CPU multiplies bfloat16 natively (Intel's AMX), jaxlib 0.10 to 0.12 uses that only for products of row-major matrices with
a float32 result. Others it widens to float32 first, at a quarter of the speed; and a sum in bfloat16, such as a bias' gradient, it
takes in a tree of windows. Here both have the form that is fast.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbert.model.layout import platform


class Dense(nn.Module):
    """The last axes of the input times a kernel, plus a bias, in the compute type `dtype`.

    Parameters, in float32, are named as those of flax's Dense and DenseGeneral: `kernel` [*inputs, *features], `bias` [*features].
    `input_axes`: how many of the input's last axes are contracted. In bfloat16 on a CPU with AMX it has reverse-mode derivatives only.
    """

    features: int | tuple[int, ...]
    dtype: Any
    kernel_init: Callable[..., Any]
    bias_init: Callable[..., Any]
    input_axes: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        split = x.ndim - self.input_axes
        rows, inputs = x.shape[:split], x.shape[split:]
        kernel = cast(jax.Array, self.param("kernel", self.kernel_init, (*inputs, *features), jnp.float32))
        bias = cast(jax.Array, self.param("bias", self.bias_init, features, jnp.float32))
        # As one product of two matrices: XLA's CPU backend copies the operands of one over several axes into this form, and does
        # so again in the backward pass. Of the narrow type before they are flat: the other way round, a TPU's compiler joins less of
        # the kernels' gradients into one all-reduce.
        size = math.prod(inputs)
        x_RxI = x.astype(self.dtype).reshape(-1, size)
        y_RxO = dot(x_RxI, kernel.astype(self.dtype).reshape(size, -1))
        return add_bias(y_RxO.reshape(*rows, *features), jnp.expand_dims(bias.astype(self.dtype), tuple(range(split))))


def dot(x_RxI: Float[Array, "R I"], kernel_IxO: Float[Array, "I O"]) -> Float[Array, "R O"]:
    """The product of two matrices of one type, in that type."""
    return _native_dot(x_RxI, kernel_IxO) if _is_native(x_RxI) else x_RxI @ kernel_IxO


def wide_dot(
    left: Float[Array, "..."], right: Float[Array, "..."], left_axis: int, right_axis: int
) -> Float[Array, "M N"]:
    """The product of two matrices over these axes of theirs, in float32."""
    if left_axis == 0 and _is_native(left):
        left, left_axis = _turned(left), 1
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sum with a bias that is as wide as `y` along the last axes, and 1 along the others."""
    return _native_add(y, bias) if _is_native(y) else y + bias


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions that multiply matrices of bfloat16; on other systems than Linux it is not known."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _is_native(x: Array) -> bool:
    return x.dtype == jnp.bfloat16 and platform() == "cpu" and multiplies_bfloat16()


def _turned(x: Float[Array, "M N"]) -> Float[Array, "N M"]:
    """`x` transposed in memory, and not merely read in another order."""
    # XLA decides which products are native before it looks through this, and by layouts: a transposed operand has another one than
    # a reshaped operand. Flat in between it would be gathered from all devices, each of which has some of the columns.
    rows, columns = x.shape
    return jax.lax.optimization_barrier(x.T.reshape(columns, 1, rows)).reshape(columns, rows)


@jax.custom_vjp
def _native_dot(x_RxI: Float[Array, "R I"], kernel_IxO: Float[Array, "I O"]) -> Float[Array, "R O"]:
    return wide_dot(x_RxI, kernel_IxO, 1, 0).astype(x_RxI.dtype)


def _native_dot_forward(x_RxI, kernel_IxO):
    return _native_dot(x_RxI, kernel_IxO), (x_RxI, kernel_IxO)


def _native_dot_backward(saved, gradient_RxO):
    x_RxI, kernel_IxO = saved
    x_gradient = wide_dot(gradient_RxO, kernel_IxO, 1, 1).astype(x_RxI.dtype)
    return x_gradient, wide_dot(x_RxI, gradient_RxO, 0, 0).astype(kernel_IxO.dtype)


_native_dot.defvjp(_native_dot_forward, _native_dot_backward)


@jax.custom_vjp
def _native_add(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    return y + bias


def _native_add_forward(y, bias):
    return y + bias, bias


def _native_add_backward(bias, gradient):
    # `jnp.sum` adds in float32, as one reduction; the derivative of `+` would add in bfloat16.
    axes = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
    return gradient, jnp.sum(gradient, axis=axes, keepdims=True)


_native_add.defvjp(_native_add_forward, _native_add_backward)
