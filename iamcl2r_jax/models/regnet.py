"""RegNetY-400MF for small images: residual bottlenecks with grouped convolutions and attention.

The layout is that of the network known from https://github.com/kuangliu/pytorch-cifar, so that
checkpoints of it can be taken over; torchvision's of the same name is another one. Reference:
Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, https://arxiv.org/abs/2003.13678
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from iamcl2r_jax.models.conv import conv_layer
from iamcl2r_jax.models.layers import (
    ResidualBlock,
    SqueezeExcite,
    batch_norm,
    check_fields,
    project,
)
from iamcl2r_jax.system.errors import InputError

_STRIDES = (1, 1, 2, 2)  # of the four stages
_STEM_PER_GROUP = 4  # the stem's channels over those of one group


class GroupedBlock(ResidualBlock):
    """1x1, grouped 3x3 and 1x1 convolution with attention before the last, around a shortcut.

    All have `features` channels, and the stride is that of the 3x3 one.

    Attributes:
      group_width: channels of one group.
      attention: channel attention to use.
    """

    group_width: int
    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pointwise = partial(self.conv, self.features, kernel_size=1)
        y = nn.relu(self.norm(name="bn1")(pointwise(name="conv1")(x)))
        groups = self.features // self.group_width
        y = self.conv(self.features, stride=self.stride, groups=groups, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        # The bottleneck of the attention is a quarter of the block's input, not of its own.
        y = self.attention(max(1, round(x.shape[-1] / 4)), name="attention")(y)
        y = self.norm(name="bn3")(pointwise(name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = pointwise(stride=self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """The network followed by a bias-free linear map to the feature.

    Attributes:
      stage_sizes: blocks in each of the four stages.
      stage_widths: channels of each stage when the stem has 64.
      num_features: dimension D of the feature, K - 1 for a simplex of K classes.
      width: channels of the stem, a multiple of 4. Stages and groups scale with it, so that every
        stage keeps its number of groups.
      dtype: dtype of the computation or its name, such as "bfloat16"; parameters, statistics and
        features are float32.
    """

    stage_sizes: Sequence[int]
    stage_widths: Sequence[int]
    num_features: int
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "num_features", "width")
        if self.width % _STEM_PER_GROUP:
            raise InputError(f"width={self.width}: must be a multiple of {_STEM_PER_GROUP}")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to unnormalised features [B, D]."""
        conv = partial(conv_layer, dtype=self.dtype)
        norm = batch_norm(train, self.dtype)
        x = nn.relu(norm(name="bn1")(conv(self.width, name="conv1")(images)))
        stages = zip(self.stage_sizes, self.stage_widths, _STRIDES, strict=True)
        for stage, (num_blocks, features, stride) in enumerate(stages):
            for block in range(num_blocks):
                x = GroupedBlock(
                    features=features * self.width // 64,
                    stride=stride if block == 0 else 1,
                    group_width=self.width // _STEM_PER_GROUP,
                    conv=conv,
                    norm=norm,
                    attention=partial(SqueezeExcite, dtype=self.dtype),
                    name=f"layer{stage + 1}_{block}",
                )(x)
        return project(x, self.num_features, self.dtype)
