"""What the backbones have in common: normalisation, channel attention, the map to the feature."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from iamcl2r_jax.system.errors import InputError

# PyTorch's default for the weights of a linear layer: uniform in +-1/sqrt(fan_in).
linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def batch_norm(train: bool, dtype: jnp.dtype) -> partial[nn.Module]:
    """The normalisation layer, to be called with its name.

    PyTorch's momentum 0.1 is the weight of the new value. Flax tracks the biased batch variance
    where PyTorch tracks the unbiased one.
    """
    return partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1) computed from the means of all channels.

    Reference: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018,
    https://arxiv.org/abs/1709.01507

    Attributes:
      squeezed: channels of the bottleneck between the means and the gates.
      dtype: dtype of the computation; parameters stay float32.
    """

    squeezed: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = partial(nn.Dense, kernel_init=linear_init, dtype=self.dtype)
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        gates = linear(self.squeezed, name="squeeze")(means)
        return x * nn.sigmoid(linear(x.shape[-1], name="excite")(nn.relu(gates)))


class ResidualBlock(nn.Module):
    """What the blocks of residual networks are made of.

    Attributes:
      features: channels of the block's output.
      stride: stride of its first 3x3 convolution and of its shortcut.
      conv: convolution layer to use.
      norm: normalisation layer to use.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]


def project(x: jax.Array, num_features: int, dtype: jnp.dtype) -> jax.Array:
    """Global mean and bias-free linear map, as layer `projection` of the calling module.

    The trunk's last map, [B, H, W, C], to unnormalised features [B, D], float32 or wider.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    projection = nn.Dense(
        num_features,
        use_bias=False,
        kernel_init=linear_init,
        dtype=dtype,
        # Products are summed in the wider type anyway; the sums are not to be rounded back.
        dot_general=partial(jax.lax.dot_general, preferred_element_type=wide),
        name="projection",
    )
    return projection(jnp.mean(x, axis=(1, 2))).astype(wide)


DTYPES = ("float32", "bfloat16", "float64")


def check_fields(module: nn.Module, *at_least_one: str) -> None:
    """Raises `InputError` if one of these fields is below 1, or `dtype` is none of `DTYPES`."""
    for field in at_least_one:
        if getattr(module, field) < 1:
            raise InputError(f"{field}={getattr(module, field)}: must be at least 1")
    try:
        known = jnp.dtype(module.dtype).name in DTYPES
    except TypeError:
        known = False
    if not known:
        raise InputError(f"dtype={module.dtype!r}: must be one of {', '.join(DTYPES)}")
