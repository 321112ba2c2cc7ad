"""SENet-18 for small images: pre-activation residual blocks with channel attention.

The layout is that of the network known from https://github.com/kuangliu/pytorch-cifar, so that
checkpoints of it can be taken over. References: He et al., "Identity Mappings in Deep Residual
Networks", ECCV 2016; Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
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

_REDUCTION = 16  # channels for each one of the attention's bottleneck


class PreActivationBlock(ResidualBlock):
    """Two 3x3 convolutions, each after normalisation and ReLU, attention, and a shortcut.

    Attributes:
      attention: channel attention to use.
    """

    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            # Of the activated input, and without a normalisation of its own.
            x = self.conv(self.features, kernel_size=1, stride=self.stride, name="shortcut_conv")(y)
        y = self.conv(self.features, stride=self.stride, name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(self.features, name="conv2")(y)
        return x + self.attention(max(1, self.features // _REDUCTION), name="attention")(y)


class SENet(nn.Module):
    """The network followed by a bias-free linear map to the feature.

    The last map is averaged whole, which for 32x32 images is the published 4x4 pooling.

    Attributes:
      stage_sizes: blocks in each of the stages.
      num_features: dimension D of the feature, K - 1 for a simplex of K classes.
      width: channels of the first stage; each later stage doubles them.
      dtype: dtype of the computation or its name, such as "bfloat16"; parameters, statistics and
        features are float32.
    """

    stage_sizes: Sequence[int]
    num_features: int
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "num_features", "width")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to unnormalised features [B, D]."""
        conv = partial(conv_layer, dtype=self.dtype)
        norm = batch_norm(train, self.dtype)
        x = nn.relu(norm(name="bn1")(conv(self.width, name="conv1")(images)))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                x = PreActivationBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    attention=partial(SqueezeExcite, dtype=self.dtype),
                    name=f"layer{stage + 1}_{block}",
                )(x)
        return project(x, self.num_features, self.dtype)
