"""Two-dimensional convolution that picks its lowering by platform.

GPUs and TPUs have native convolutions. XLA's on CPU are several times slower than a matrix product
over the same numbers (and slower still inside a loop), so there the convolution *is* a matrix
product. Both lowerings compute the same function up to rounding.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# He initialisation over the fan-out, as torchvision's ResNet uses for every convolution.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def native_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The platform's own convolution. Shapes as in `conv2d`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _taps(size: int, kernel_size: int, stride: int, padding: int) -> np.ndarray:
    """Input row read by each kernel row for each output row: [outputs, kernel rows]."""
    outputs = (size + 2 * padding - kernel_size) // stride + 1
    return stride * np.arange(outputs)[:, None] - padding + np.arange(kernel_size)[None, :]


def _dense(x: jax.Array, kernel: jax.Array, rows: np.ndarray, cols: np.ndarray) -> jax.Array:
    """One product with the whole convolution written as a [H*W*C, H'*W'*C'] matrix."""
    batch, height, width, _ = x.shape
    out_h, out_w, features = rows.shape[0], cols.shape[0], kernel.shape[-1]
    # Which tap joins an input row to an output row; the appended zero tap joins all the others.
    zero_h, zero_w = kernel.shape[0], kernel.shape[1]
    tap_h = np.full((height, out_h), zero_h)
    tap_w = np.full((width, out_w), zero_w)
    for table, reads in ((tap_h, rows), (tap_w, cols)):
        for output, taps in enumerate(reads):
            for tap, source in enumerate(taps):
                if 0 <= source < len(table):
                    table[source, output] = tap
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    matrix = kernel[tap_h[:, None, :, None], tap_w[None, :, None, :]]  # [H, W, H', W', C, C']
    matrix = matrix.transpose(0, 1, 4, 2, 3, 5).reshape(-1, out_h * out_w * features)
    return (x.reshape(batch, -1) @ matrix).reshape(batch, out_h, out_w, features)


def matmul_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The same convolution as one matrix product. Shapes as in `conv2d`.

    Only what meets the image is multiplied: a tap that reads nothing but padding is left out, and
    a map no larger than the remaining taps becomes one dense product instead of copied columns.
    """
    _, height, width, _ = x.shape
    k_h, k_w, _, features = kernel.shape
    rows, cols = _taps(height, k_h, stride, padding), _taps(width, k_w, stride, padding)
    live_h = np.flatnonzero(((rows >= 0) & (rows < height)).any(axis=0))
    live_w = np.flatnonzero(((cols >= 0) & (cols < width)).any(axis=0))
    if 1 < height * width <= len(live_h) * len(live_w):
        return _dense(x, kernel, rows, cols)
    out_h, out_w = rows.shape[0], cols.shape[0]
    reach = stride * (out_h - 1) + 1, stride * (out_w - 1) + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    slices = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] for i in live_h for j in live_w
    ]
    columns = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
    matrix = kernel[live_h[0] : live_h[-1] + 1, live_w[0] : live_w[-1] + 1].reshape(-1, features)
    return columns @ matrix


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolution with symmetric zero padding (PyTorch's convention).

    Args:
      x: images or maps, [B, H, W, C].
      kernel: [kh, kw, C, C'].
      stride: step in both directions.
      padding: zeros added on every side.

    Returns:
      [B, H', W', C'], with H' = (H + 2 padding - kh) // stride + 1.
    """
    chex.assert_rank([x, kernel], [4, 4])
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: matmul_conv(x, kernel, stride=stride, padding=padding),
        default=lambda x, kernel: native_conv(x, kernel, stride=stride, padding=padding),
    )


class Conv(nn.Module):
    """Bias-free convolution layer over `conv2d`.

    Attributes:
      features: output channels C'.
      kernel_size: height and width of the kernel.
      stride: step in both directions.
      padding: zeros on every side; by default (kernel_size - 1) // 2, which keeps the map's size.
      dtype: dtype of the computation; parameters stay float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        padding = (self.kernel_size - 1) // 2 if self.padding is None else self.padding
        return conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=padding
        )
