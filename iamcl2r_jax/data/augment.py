"""Augmentation and normalisation on the device, from uint8 images.

Adding an augmentation takes a function such as `crop_flip` and a line of `AUGMENTATIONS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from iamcl2r_jax.system.values import integer


def gathered(images: jax.Array, indices: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """The pixels images[indices, rows, cols], black where a position is outside of the image.

    Args:
      images: the data set, uint8 [N, H, W, C].
      indices: samples to take, int [B], in [0, N).
      rows: of each output row, int [B, H].
      cols: of each output column, int [B, W].
    """
    _, height, width, _ = images.shape
    # Batch, crop, padding and flip are one gather; negative positions would count from the end.
    rows = jnp.where(rows < 0, height, rows)[:, :, None]
    cols = jnp.where(cols < 0, width, cols)[:, None, :]
    return images.at[indices[:, None, None], rows, cols].get(mode="fill", fill_value=0)


def selected(images: jax.Array, indices: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """`gathered`, to the bit, for TPUs: they gather one position after the other.

    So whole images are gathered, and their rows and columns selected by products with matrices of
    zeros and ones. All numbers up to 256 are exact in bfloat16.
    """
    num, height, width, channels = images.shape
    # As lines of pixels: with the shape of images, a TPU would first copy the whole data set into
    # an order in which the pixels of an image are neighbours.
    batch = images.reshape(num, -1)[indices].reshape(-1, height, width, channels)
    batch = batch.astype(jnp.bfloat16)
    from_rows = jax.nn.one_hot(rows, height, dtype=jnp.bfloat16)
    from_cols = jax.nn.one_hot(cols, width, dtype=jnp.bfloat16)
    batch = jnp.einsum("bih,bhwc->biwc", from_rows, batch)
    return jnp.einsum("bjw,biwc->bijc", from_cols, batch).astype(jnp.uint8)


def crop_flip(
    key: jax.Array,
    images: jax.Array,
    indices: jax.Array,
    *,
    padding: Annotated[int, integer(0, 2**12)] = 4,
    flip: bool = False,
) -> jax.Array:
    """A random crop of each sample, and every other one mirrored.

    Args:
      key: random key.
      images: the data set, uint8 [N, H, W, 3].
      indices: samples to take, int [B].
      padding: crops come from the image with this many black pixels on every side.
      flip: mirror images, left to right, each with probability 1/2; not for characters.

    Returns:
      uint8 [B, H, W, 3].
    """
    _, height, width, _ = images.shape
    batch = len(indices)
    key_crop, key_flip = jax.random.split(key)
    shifts = jax.random.randint(key_crop, (2, batch, 1), -padding, padding + 1)
    rows = shifts[0] + jnp.arange(height)[None]
    cols = shifts[1] + jnp.arange(width)[None]
    if flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(batch, 1))
        cols = jnp.where(mirrored, cols[:, ::-1], cols)
    return jax.lax.platform_dependent(images, indices, rows, cols, tpu=selected, default=gathered)


def unchanged(key: jax.Array, images: jax.Array, indices: jax.Array) -> jax.Array:
    """The samples as they are; arguments and result as of `crop_flip`."""
    del key
    return images[indices]


# Of a key, a data set and indices of it: the samples, augmented. Whole images never move before the
# augmentation has chosen their pixels, which makes batch and crop one gather.
Augmentation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {"crop_flip": crop_flip, "none": unchanged}


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images become the network's input.

    Attributes:
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].
      augment: one of `AUGMENTATIONS`, its options bound.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augmentation = unchanged


def normalize_images(images: jax.Array, options: ImageOptions) -> jax.Array:
    """uint8 [B, H, W, 3] to float32 with the channels' mean 0 and deviation 1."""
    mean, std = (jnp.asarray(value, jnp.float32) for value in (options.mean, options.std))
    # One multiplication and one addition a pixel.
    scale, offset = 1 / (255 * std), -mean / std
    return images.astype(jnp.float32) * scale[None, None, None] + offset[None, None, None]


def augmented_batch(
    key: jax.Array, images: jax.Array, indices: jax.Array, options: ImageOptions
) -> jax.Array:
    """Samples of a data set, augmented and normalised, float32 [B, H, W, 3]; see `crop_flip`."""
    return normalize_images(options.augment(key, images, indices), options)
