"""3x3 convolutions with fewer multiplications, and without copied columns.

Two outputs of a filter with three taps take six products, but only four of sums of inputs with sums
of taps, or three between zeros ("minimal filtering"). In both directions these are 16 or 9 products
for four outputs instead of 36, each of them a matrix product over all channels and tiles.

References: Winograd, "Arithmetic Complexity of Computations", SIAM 1980; Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, https://arxiv.org/abs/1509.09308
"""

import dataclasses
from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class _Filtering:
    """y = outputs ((kernel g) * (inputs d)): two outputs y of taps g over a span d of the inputs.

    Attributes:
      inputs: B^T, [products, span].
      kernel: G, [products, 3].
      outputs: A^T, [2, products].
      padding: zeros that a span needs beyond both ends of the map.
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    padding: int


# F(2, 3): four neighbouring inputs, spans overlapping by two.
_TILES = _Filtering(
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    padding=1,
)
# A map of two inputs between zeros: y0 = g1 d0 + g2 d1 and y1 = g0 d0 + g1 d1.
_PAIR = _Filtering(
    inputs=np.array([[1, 1], [0, 1], [1, 0]]),
    kernel=np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]]),
    outputs=np.array([[1, 1, 0], [1, 0, 1]]),
    padding=0,
)


def suits(height: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether `conv3x3` is for such maps: 2x2, or 3x3 and larger, in single precision or better.

    In half precision the sums before the products would round away what the products need.
    """
    return (min(height, width) >= 3 or height == width == 2) and jnp.finfo(dtype).bits >= 32


def _filtering(x: jax.Array) -> _Filtering:
    return _PAIR if x.shape[1] == 2 else _TILES


def _combine(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ terms, one sum for each row; a zero costs nothing and a one no multiplication."""

    def total(row):
        weighted = [(float(w), term) for w, term in zip(row, terms, strict=True) if w]
        return reduce(jnp.add, [term if w == 1 else w * term for w, term in weighted])

    return [total(row) for row in matrix]


def _transform_tiles(matrix: np.ndarray, x: jax.Array, padding: int = 0) -> list[jax.Array]:
    """matrix @ tile @ matrix^T of the tiles at every second position of maps.

    Args:
      matrix: [P, height and width of a tile].
      x: [B, H, W, C].
      padding: zeros on every side. A map of odd size gets one more row and column.

    Returns:
      For each column of the result, its rows: P arrays [P, B, ceil(H / 2), ceil(W / 2), C].
    """
    pads = [(padding, padding + size % 2) for size in x.shape[1:3]]
    last_h, last_w = ((size - 1) // 2 * 2 + 1 for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    span = range(matrix.shape[1])
    rows = jnp.stack(_combine(matrix, [x[:, i : i + last_h : 2] for i in span]))
    return _combine(matrix, [rows[:, :, :, j : j + last_w : 2] for j in span])


def _flat(tiles: jax.Array) -> jax.Array:
    """[P, B, H, W, C] as [P, B H W, C]."""
    return tiles.reshape(len(tiles), -1, tiles.shape[-1])


@jax.jit
def _forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    filtering = _filtering(x)
    inputs = _transform_tiles(filtering.inputs, x, filtering.padding)
    taps = jnp.stack(_combine(filtering.kernel, kernel)).swapaxes(0, 1)
    taps = _combine(filtering.kernel, taps)
    products = [jnp.einsum("pbhwc,pcf->pbhwf", *pair) for pair in zip(inputs, taps, strict=True)]
    columns = jnp.stack(_combine(filtering.outputs, products), axis=4)
    y = jnp.stack(_combine(filtering.outputs, columns), axis=2)
    batch, tiles_h, _, tiles_w, _, features = y.shape
    y = y.reshape(batch, 2 * tiles_h, 2 * tiles_w, features)
    return y[:, : x.shape[1], : x.shape[2]]


@jax.jit
def _kernel_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    filtering = _filtering(x)
    inputs = _transform_tiles(filtering.inputs, x, filtering.padding)
    products = _transform_tiles(filtering.outputs.T, cotangent)
    # Sums over one axis: over several at once, the compiler would copy into transposed order.
    taps = [
        jnp.einsum("pmc,pmf->pcf", _flat(d), _flat(p))
        for d, p in zip(inputs, products, strict=True)
    ]
    columns = jnp.stack(_combine(filtering.kernel.T, taps), axis=1)
    return jnp.stack(_combine(filtering.kernel.T, columns))


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1 with zeros around the maps: [B, H, W, C] to [B, H, W, C'].

    The maps are of a size and dtype that `suits`, the kernel is [3, 3, C, C'].
    """
    return _forward(x, kernel)


def _pull_back(saved, cotangent):
    # Both gradients are filterings of the same kind; derived sum by sum they are slower.
    x, kernel = saved
    towards_x = _forward(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    return towards_x, _kernel_gradient(x, cotangent)


conv3x3.defvjp(lambda x, kernel: (_forward(x, kernel), (x, kernel)), _pull_back)
