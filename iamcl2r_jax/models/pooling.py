"""Max-pooling whose gradient is cheap on every platform."""

from functools import reduce

import chex
import jax
import jax.numpy as jnp


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int) -> jax.Array:
    """Maximum over square windows, with symmetric padding (PyTorch's convention).

    Written as maxima of strided slices, first over rows, then over columns: the gradient of XLA's
    windowed reduction is a scatter, several times slower on CPU. Where values tie, the gradient is
    shared among them instead of going to the first.

    [B, H, W, C] to [B, H', W', C], with H' = (H + 2 padding - window) // stride + 1.
    """
    chex.assert_rank(x, 4)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for axis in (1, 2):
        reach = (x.shape[axis] - window) // stride * stride + 1
        slices = [
            jax.lax.slice_in_dim(x, start, start + reach, stride, axis) for start in range(window)
        ]
        x = reduce(jnp.maximum, slices)
    return x
