"""Two-dimensional convolution that picks its lowering by platform.

GPUs and TPUs have native convolutions. XLA's on CPU are several times slower than a matrix product
over the same numbers (and slower still inside a loop), so there the convolution *is* matrix
products, with fewer multiplications where that pays (`winograd.py`). All lowerings compute
the same function up to rounding.

Where the output is a single position, as in the last stage of a network for small images, the
convolution is one product on every platform: native ones copy the taps that nothing reads too,
and their gradients turn and transpose the whole kernel.
"""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax.models import winograd

_FEW_CHANNELS = 4  # up to here, copying columns costs more than multiplying them
_GROUP = 2  # neighbouring outputs that share one copied window
_MANY_CHANNELS = 32  # from here on, fewer multiplications pay for the sums around them


def kernel_init(groups: int = 1) -> nn.initializers.Initializer:
    """He initialisation over the fan-out, as torchvision's networks have for every convolution."""
    # The initialiser takes all outputs for the fan; an input reaches those of its group.
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def native_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """The platform's own convolution. Shapes as in `conv2d`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _taps(size: int, kernel_size: int, stride: int, padding: int) -> np.ndarray:
    """Input row read by each kernel row for each output row: [outputs, kernel rows]."""
    outputs = (size + 2 * padding - kernel_size) // stride + 1
    return stride * np.arange(outputs)[:, None] - padding + np.arange(kernel_size)[None, :]


def _live(reads: np.ndarray, size: int) -> range:
    """The span of kernel rows that ever read a row of the image; see `_taps` for `reads`."""
    live = np.flatnonzero(((reads >= 0) & (reads < size)).any(axis=0))
    # Where all reads are padding, one row gives the zeros.
    return range(live[0], live[-1] + 1) if len(live) else range(1)


@jax.custom_vjp
def _product(columns: jax.Array, matrix: jax.Array) -> jax.Array:
    """columns @ matrix, [..., K] by [K, N], whose gradient transposes nothing but the small matrix.

    Left to the compiler, the matrix's gradient is (cotangent^T columns)^T, for which it copies the
    cotangent into transposed order: more expensive than the product.
    """
    return columns @ matrix


def _product_pull_back(saved, cotangent):
    columns, matrix = saved
    flat = [a.reshape(-1, a.shape[-1]) for a in (columns, cotangent)]
    return cotangent @ matrix.T, flat[0].T @ flat[1]


_product.defvjp(lambda columns, matrix: (columns @ matrix, (columns, matrix)), _product_pull_back)


def _single_output(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """The convolution to [B, 1, 1, C'] as one product of the cells that it reads."""
    k_h, k_w, channels, features = kernel.shape
    read_h, read_w = min(x.shape[1], k_h - padding), min(x.shape[2], k_w - padding)
    cells = x[:, :read_h, :read_w].reshape(len(x), read_h * read_w * channels)
    taps = kernel[padding : padding + read_h, padding : padding + read_w]
    return _product(cells, taps.reshape(-1, features))[:, None, None]


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
    return _product(x.reshape(batch, -1), matrix).reshape(batch, out_h, out_w, features)


def _shared_windows(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Copies one wider window for `_GROUP` neighbouring outputs, instead of one for each.

    With few channels the copies cost more than the product; fewer and longer ones are worth the
    zeros that the kernel is padded with.
    """
    batch, height, width, channels = x.shape
    k_h, k_w, _, features = kernel.shape
    out_h, out_w = (
        (size + 2 * padding - k) // stride + 1 for size, k in ((height, k_h), (width, k_w))
    )
    window = stride * (_GROUP - 1) + k_w
    groups = -(-out_w // _GROUP)
    # The last group may reach past the image; its surplus outputs are cut off below.
    surplus = max(0, stride * _GROUP * (groups - 1) + window - (width + 2 * padding))
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding + surplus), (0, 0)))
    reach = stride * (out_h - 1) + 1
    rows = jnp.stack([x[:, i : i + reach : stride] for i in range(k_h)], axis=2)
    rows = rows.reshape(batch, out_h, k_h, -1)
    starts = [stride * _GROUP * group * channels for group in range(groups)]
    columns = jnp.stack([rows[..., s : s + window * channels] for s in starts], axis=2)
    shifts = [
        jnp.pad(kernel, ((0, 0), (stride * j, window - k_w - stride * j), (0, 0), (0, 0)))
        for j in range(_GROUP)
    ]
    matrix = jnp.stack(shifts, axis=3).reshape(-1, _GROUP * features)
    out = _product(columns.reshape(batch, out_h, groups, -1), matrix)
    return out.reshape(batch, out_h, groups * _GROUP, features)[:, :, :out_w]


def matmul_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The same convolution as one matrix product, or several. Shapes as in `conv2d`.

    Only what meets the image is multiplied: a tap that reads nothing but padding is left out, and
    a map no larger than the remaining taps becomes one dense product instead of copied columns.
    """
    _, height, width, channels = x.shape
    k_h, k_w, _, features = kernel.shape
    if channels <= _FEW_CHANNELS and k_w > 1:
        return _shared_windows(x, kernel, stride=stride, padding=padding)
    if (
        (k_h, k_w, stride, padding) == (3, 3, 1, 1)
        and min(channels, features) >= _MANY_CHANNELS
        and winograd.suits(height, width, x.dtype)
    ):
        return winograd.conv3x3(x, kernel)
    rows, cols = _taps(height, k_h, stride, padding), _taps(width, k_w, stride, padding)
    live_h, live_w = _live(rows, height), _live(cols, width)
    if 1 < height * width <= len(live_h) * len(live_w):
        return _dense(x, kernel, rows, cols)
    out_h, out_w = rows.shape[0], cols.shape[0]
    reach = stride * (out_h - 1) + 1, stride * (out_w - 1) + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    slices = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] for i in live_h for j in live_w
    ]
    columns = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
    matrix = kernel[live_h.start : live_h.stop, live_w.start : live_w.stop].reshape(-1, features)
    return _product(columns, matrix)


def grouped_matmul_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int
) -> jax.Array:
    """`conv2d` as a product for each group; the gradient of XLA's own is 10 to 50 times slower."""
    batch, height, width, channels = x.shape
    k_h, k_w, _, features = kernel.shape
    rows, cols = _taps(height, k_h, stride, padding), _taps(width, k_w, stride, padding)
    live_h, live_w = _live(rows, height), _live(cols, width)
    out_h, out_w = rows.shape[0], cols.shape[0]
    reach = stride * (out_h - 1) + 1, stride * (out_w - 1) + 1
    # Groups lead before the columns are copied: only the image itself is transposed.
    x = x.reshape(batch, height, width, groups, channels // groups).transpose(3, 0, 1, 2, 4)
    x = jnp.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0)))
    slices = [
        x[:, :, i : i + reach[0] : stride, j : j + reach[1] : stride]
        for i in live_h
        for j in live_w
    ]
    columns = jnp.concatenate(slices, axis=-1).reshape(groups, batch * out_h * out_w, -1)
    matrix = kernel[live_h.start : live_h.stop, live_w.start : live_w.stop]
    matrix = matrix.reshape(-1, groups, features // groups).transpose(1, 0, 2)
    out = (columns @ matrix).reshape(groups, batch, out_h, out_w, -1)
    return out.transpose(1, 2, 3, 0, 4).reshape(batch, out_h, out_w, features)


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Convolution with symmetric zero padding (PyTorch's convention).

    Args:
      x: images or maps, [B, H, W, C].
      kernel: [kh, kw, C / groups, C'].
      stride: step in both directions.
      padding: zeros added on every side.
      groups: parts into which the channels are cut; each C' / groups outputs in turn read only
        their C / groups inputs.

    Returns:
      [B, H', W', C'], with H' = (H + 2 padding - kh) // stride + 1.

    Raises:
      ValueError: if C or C' cannot be cut into so many groups.
    """
    chex.assert_rank([x, kernel], [4, 4])
    if x.shape[-1] % groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"groups={groups}: must divide the {x.shape[-1]} channels of the input and the "
            f"{kernel.shape[-1]} of the output"
        )
    single = all(
        0 <= size + 2 * padding - k < stride and padding < k
        for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    if single and groups == 1:
        return _single_output(x, kernel, padding)
    options = {"stride": stride, "padding": padding}
    grouped = options | {"groups": groups}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(matmul_conv, **options)
        if groups == 1
        else partial(grouped_matmul_conv, **grouped),
        default=partial(native_conv, **grouped),
    )


def conv_layer(
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dtype: jnp.dtype = jnp.float32,
    name: str | None = None,
) -> nn.Conv:
    """Bias-free convolution layer over `conv2d`.

    Args:
      features: output channels C'.
      kernel_size: height and width of the kernel.
      stride, groups: see `conv2d`.
      padding: zeros on every side; by default (kernel_size - 1) // 2, which keeps the map's size.
      dtype: dtype of the computation; parameters stay float32.
      name: of the layer.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=(kernel_size - 1) // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init(groups),
        conv_general_dilated=_conv_general_dilated,
        name=name,
    )


def _conv_general_dilated(x, kernel, strides, padding, *, feature_group_count, **_) -> jax.Array:
    """`conv2d` with the arguments of `jax.lax.conv_general_dilated` that `conv_layer` sets."""
    (stride, _), ((zeros, _), _) = strides, padding
    return conv2d(x, kernel, stride=stride, padding=zeros, groups=feature_group_count)
