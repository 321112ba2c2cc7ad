"""The 3x3 convolution with fewer multiplications is the convolution."""

from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax.models import winograd
from iamcl2r_jax.models.conv import matmul_conv, native_conv

plain = partial(native_conv, stride=1, padding=1)


def _arguments(size, channels, features, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *size, channels)).astype(dtype)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(dtype)
    return x, kernel, rng.normal(size=(3, *size, features)).astype(dtype)


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(conv, x, kernel, cotangent):
    out, pull_back = jax.vjp(conv, x, kernel)
    return out, *pull_back(cotangent)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (4, 4), (8, 8), (5, 8), (3, 7)])
def test_values_and_gradients_are_the_plain_convolutions(size):
    with jax.enable_x64(True):
        arguments = _arguments(size, 3, 5, np.float64)
        got = _value_and_gradients(winograd.conv3x3, *arguments)
        for ours, expected in zip(got, _value_and_gradients(plain, *arguments), strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "channels"), [((2, 2), 256), ((4, 4), 128), ((8, 8), 64)])
def test_rounding_in_single_precision_is_that_of_sums(size, channels):
    arguments = _arguments(size, channels, channels, np.float32)
    got = _value_and_gradients(winograd.conv3x3, *arguments)
    with jax.enable_x64(True):
        exact = _value_and_gradients(plain, *(a.astype(np.float64) for a in arguments))
    for ours, expected in zip(got, exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [3, 5, 32])  # shared windows, copied columns, tiles
def test_several_networks_at_once(channels):
    """As seeds are trained: other maps and other kernels, with their gradients."""
    conv = partial(matmul_conv, stride=1, padding=1)
    members = [
        [scale * a for a in _arguments((4, 4), channels, channels, np.float32)]
        for scale in (1.0, -0.5, 2.0)
    ]
    together = jax.vmap(partial(_value_and_gradients, conv))(
        *map(np.stack, zip(*members, strict=True))
    )
    for member, arguments in enumerate(members):
        for got, expected in zip(together, _value_and_gradients(conv, *arguments), strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got[member], expected, rtol=0, atol=2e-6 * scale)


def _multiplications(size, channels, dtype=np.float32):
    """Multiplications in the matrix products of the convolution of one image."""
    x, kernel, _ = _arguments(size, channels, channels, np.float32)
    jaxpr = jax.make_jaxpr(partial(matmul_conv, stride=1, padding=1))(
        jnp.asarray(x[:1], dtype), jnp.asarray(kernel, dtype)
    )

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracting, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                depth = np.prod([left[axis] for axis in contracting])
                total += depth * np.prod(equation.outvars[0].aval.shape)
            total += sum(map(count, jax.extend.core.jaxprs_in_params(equation.params)))
        return total

    return count(jaxpr.jaxpr)


@pytest.mark.parametrize(
    ("size", "channels", "products"),
    [((8, 8), 32, 16 * 16), ((4, 4), 32, 4 * 16), ((2, 2), 32, 9), ((7, 7), 32, 16 * 16)],
)
def test_maps_of_many_channels_take_fewer_multiplications(size, channels, products):
    assert _multiplications(size, channels) == products * channels**2


@pytest.mark.parametrize(("channels", "dtype"), [(31, np.float32), (32, jnp.bfloat16)])
def test_few_channels_and_half_precision_keep_the_plain_product(channels, dtype):
    assert _multiplications((8, 8), channels, dtype) == 64 * 9 * channels**2
