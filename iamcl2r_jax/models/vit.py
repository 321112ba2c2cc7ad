"""A small vision transformer as feature extractor.

References: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
https://arxiv.org/abs/2010.11929; the sizes are those of DeiT-Tiny, Touvron et al., ICML 2021,
https://arxiv.org/abs/2012.12877. It has no running statistics: its variables are {"params"} alone.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from iamcl2r_jax.models.layers import check_fields, project
from iamcl2r_jax.system.errors import InputError

_PER_HEAD = 64  # channels of one attention head, in DeiT of every size
_EXPANSION = 4  # of the hidden layer over the embedding


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each normalised before and added to its input.

    Attributes:
      heads: of the attention.
      dtype: dtype of the computation; parameters stay float32.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, C] to tokens."""
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        linear = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        y = norm(name="ln1")(x)
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (
            linear(x.shape[-1], name=name)(y).reshape(split) for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x += linear(x.shape[-1], name="output")(y)
        y = linear(_EXPANSION * x.shape[-1], name="mlp1")(norm(name="ln2")(x))
        return x + linear(x.shape[-1], name="mlp2")(nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """A transformer over patches, their mean, and a bias-free linear map to the feature.

    The mean of the tokens takes the place of a class token, as for the other backbones the mean of
    the last map. The table of positions belongs to one image size.

    Attributes:
      num_features: dimension D of the feature, K - 1 for a simplex of K classes.
      width: channels of a token.
      depth: number of blocks.
      heads: of each attention; 0 for one per 64 channels.
      patch_size: pixels in height and width of a patch. If it does not divide the image's, zeros
        are added below and to the right.
      dtype: dtype of the computation or its name, such as "bfloat16"; parameters and features are
        float32.
    """

    num_features: int
    width: int = 192
    depth: int = 12
    heads: int = 0
    patch_size: int = 4
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "num_features", "width", "depth", "patch_size")
        if self.heads < 0 or self.width % self.num_heads:
            raise InputError(
                f"heads={self.heads}: must divide width={self.width}, or be 0 for one per "
                f"{_PER_HEAD} channels"
            )

    @property
    def num_heads(self) -> int:
        """Heads of each attention."""
        return self.heads or max(1, self.width // _PER_HEAD)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to unnormalised features [B, D]."""
        del train  # nothing here knows the difference
        x = _patches(images, self.patch_size)
        x = nn.Dense(
            self.width,
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="embedding",
        )(x)
        batch, *grid, channels = x.shape
        positions = self.param("positions", nn.initializers.normal(0.02), (*grid, channels))
        x = (x + positions[jnp.newaxis].astype(x.dtype)).reshape(batch, -1, channels)
        for block in range(self.depth):
            x = TransformerBlock(self.num_heads, self.dtype, name=f"block{block}")(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="ln")(x)
        return project(x.reshape(batch, *grid, channels), self.num_features, self.dtype)


def _patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts images [B, H, W, 3] into patches: [B, H / size, W / size, 3 size²], rounded up."""
    batch, height, width, colours = images.shape
    images = jnp.pad(images, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
    rows, columns = -(-height // size), -(-width // size)
    cut = images.reshape(batch, rows, size, columns, size, colours)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
