"""Residual networks (He et al., CVPR 2016, arXiv:1512.03385) as feature extractors."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from iamcl2r_jax.models.conv import conv_layer
from iamcl2r_jax.models.layers import ResidualBlock, batch_norm, check_fields, project
from iamcl2r_jax.models.pooling import max_pool
from iamcl2r_jax.system.errors import InputError

STEMS = ("imagenet", "small")


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions around a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, stride=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        return nn.relu(self.shortcut(x) + y)

    def shortcut(self, x: jax.Array) -> jax.Array:
        """The block's input in the shape of its output: projected where they differ."""
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        x = self.conv(self.features, kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x)


class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 and 1x1 convolution around a shortcut; the output has four times the channels.

    So `features` are those between the convolutions. The stride is that of the 3x3 convolution
    ("ResNet v1.5", torchvision's), not of the first one as in the paper.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, kernel_size=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, stride=self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, kernel_size=1, name="conv3")(y)
        y = self.norm(name="bn3")(y)
        if x.shape != y.shape:
            x = self.conv(y.shape[-1], kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network followed by a bias-free linear map to the feature.

    Attributes:
      block: kind of the blocks, `BasicBlock` or `BottleneckBlock`.
      stage_sizes: blocks in each of the four stages.
      num_features: dimension D of the feature, K - 1 for a simplex of K classes.
      width: channels of the first stage; each later stage doubles them.
      stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2; what the paper uses, also on 32x32
        images) or "small" (3x3 stride 1, no pooling; slower and finer).
      dtype: dtype of the computation or its name, such as "bfloat16"; parameters, statistics and
        features are float32.
    """

    block: Callable[..., nn.Module]
    stage_sizes: Sequence[int]
    num_features: int
    width: int = 64
    stem: str = "imagenet"
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.stem not in STEMS:
            raise InputError(f"stem={self.stem!r}: must be one of {', '.join(STEMS)}")
        check_fields(self, "num_features", "width")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to unnormalised features [B, D]."""
        conv = partial(conv_layer, dtype=self.dtype)
        norm = batch_norm(train, self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, kernel_size=7, stride=2, name="conv1")(images)
            x = nn.relu(norm(name="bn1")(x))
            x = max_pool(x, window=3, stride=2, padding=1)
        else:
            x = conv(self.width, name="conv1")(images)
            x = nn.relu(norm(name="bn1")(x))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                x = self.block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{block}",
                )(x)
        return project(x, self.num_features, self.dtype)


class PaddedBlock(BasicBlock):
    """A `BasicBlock` whose shortcut has no parameters: option A of the paper's section 4.2.

    Where the shape changes, the shortcut takes every other row and column, and zeros for the
    channels that its input lacks.
    """

    def shortcut(self, x: jax.Array) -> jax.Array:
        """The block's input in the shape of its output."""
        lacking = self.features - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, lacking)))


class CifarResNet(ResNet):
    """A `ResNet` of three stages with 16, 32 and 64 channels behind a 3x3 stem, for small images.

    ResNet-32 is what CL²R (ACM TOMM 2022) trains.

    Attributes: those of `ResNet`, with the defaults of the paper.
    """

    width: int = 16
    stem: str = "small"
