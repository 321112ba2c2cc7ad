"""The residual networks of He et al. (CVPR 2016), section 4.2, for small images.

Reference: https://arxiv.org/abs/1512.03385. ResNet-32 is what CL²R (ACM TOMM 2022) trains.
"""

import jax
import jax.numpy as jnp

from iamcl2r_jax.models.resnet import BasicBlock, ResNet


class PaddedBlock(BasicBlock):
    """A `BasicBlock` whose shortcut has no parameters: the paper's option A.

    Where the shape changes, the shortcut takes every other row and column, and zeros for the
    channels that its input lacks.
    """

    def shortcut(self, x: jax.Array) -> jax.Array:
        """The block's input in the shape of its output."""
        lacking = self.features - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, lacking)))


class CifarResNet(ResNet):
    """A `ResNet` of three stages with 16, 32 and 64 channels behind a 3x3 stem.

    Attributes: those of `ResNet`, with the defaults of the paper.
    """

    width: int = 16
    stem: str = "small"
