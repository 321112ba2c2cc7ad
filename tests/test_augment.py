"""Random crops, flips and normalisation, against pad, cut and mirror image by image."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from iamcl2r_jax.data.augment import (
    ImageOptions,
    augmented_batch,
    crop_flip,
    gathered,
    normalize_images,
    selected,
    unchanged,
)

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SIZE = 6


@cache
def _raw(padding, flip):
    """Options under which the result is the pixels themselves."""
    return ImageOptions((0.0,) * 3, (1 / 255,) * 3, partial(crop_flip, padding=padding, flip=flip))


@partial(jax.jit, static_argnames="options")
def _augmented(key, images, indices, options):
    return augmented_batch(key, images, indices, options)


def _positions(num, height=SIZE, width=SIZE):
    """Images whose pixels say where they are: row + 1, column + 1, image + 1; padding is 0."""
    grid = np.meshgrid(np.arange(num), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([grid[1], grid[2], grid[0]], axis=-1).astype(np.uint8) + 1


def _offsets(batch, height=SIZE, width=SIZE):
    """Row shift, column shift and mirroring of each image of `_positions`, as seen."""
    found = []
    for image in batch:
        y, x = np.argwhere(image[..., 2] > 0)[0]
        # Columns grow along a row unless it is mirrored.
        columns = image[y, :, 1][image[y, :, 1] > 0]
        mirrored = len(columns) > 1 and columns[0] > columns[1]
        source_row, source_col = image[y, x, :2] - 1
        x = width - 1 - x if mirrored else x
        found.append((int(source_row - y), int(source_col - x), mirrored))
    return found


def _naive(images, indices, offsets, padding, height=SIZE, width=SIZE):
    out = []
    for index, (row, col, mirrored) in zip(indices, offsets, strict=True):
        padded = np.pad(images[index], ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[row + padding : row + padding + height, col + padding :][:, :width]
        out.append(crop[:, ::-1] if mirrored else crop)
    return np.stack(out)


@pytest.mark.parametrize(
    ("padding", "flip", "height", "width"),
    [(0, True, SIZE, SIZE), (1, True, SIZE, SIZE), (4, False, SIZE, SIZE), (4, True, 7, 9)],
)
def test_is_pad_crop_and_flip(padding, flip, height, width):
    images = _positions(5, height, width)
    indices = np.arange(200) * 3 % 5
    batch = _augmented(jax.random.key(0), images, indices, _raw(padding, flip))
    assert (batch.shape, batch.dtype) == ((200, height, width, 3), np.float32)
    pixels = np.rint(batch).astype(np.uint8)
    np.testing.assert_allclose(batch, pixels, rtol=1e-6)
    offsets = _offsets(pixels.astype(int), height, width)
    expected = _naive(images, indices, offsets, padding, height, width)
    np.testing.assert_array_equal(pixels, expected)
    # Real images get the same offsets, and then the normalisation.
    real = np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)
    options = ImageOptions(MEAN, STD, partial(crop_flip, padding=padding, flip=flip))
    batch = _augmented(jax.random.key(0), real, indices, options)
    expected = _naive(real, indices, offsets, padding, height, width)
    np.testing.assert_allclose(batch, (expected / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)


def test_both_lowerings_take_the_same_pixels():
    """Every value that a pixel has, and positions up to twice the size outside of the image."""
    rng = np.random.default_rng(0)
    images = rng.permuted(np.arange(9 * 7 * 5 * 3) % 256).astype(np.uint8).reshape(9, 7, 5, 3)
    assert len(np.unique(images)) == 256
    indices = rng.integers(0, 9, 50)
    rows, cols = rng.integers(-14, 21, (50, 7)), rng.integers(-10, 15, (50, 5))
    both = [np.asarray(jax.jit(f)(images, indices, rows, cols)) for f in (gathered, selected)]
    inside = ((rows >= 0) & (rows < 7))[:, :, None] & ((cols >= 0) & (cols < 5))[:, None]
    sample = np.broadcast_to(indices[:, None, None], inside.shape)
    grid = np.broadcast_arrays(rows[:, :, None], cols[:, None])
    expected = np.zeros((50, 7, 5, 3), np.uint8)
    expected[inside] = images[sample[inside], grid[0][inside], grid[1][inside]]
    for got in both:
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)


def test_a_tpu_gathers_whole_images_from_lines_of_pixels():
    images = jax.ShapeDtypeStruct((50, SIZE, SIZE, 3), np.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    indices, options = jax.ShapeDtypeStruct((8,), np.int32), _raw(1, flip=True)
    lowered = {
        platform: _augmented.trace(key, images, indices, options)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    line = SIZE * SIZE * 3
    whole = f"(tensor<50x{line}xui8>, tensor<8x1xi32>) -> tensor<8x{line}xui8>"
    assert {name: whole in text for name, text in lowered.items()} == {
        "cpu": False,
        "cuda": False,
        "tpu": True,
    }


def test_every_offset_and_both_directions_are_equally_likely():
    num = 9000
    batch = _augmented(jax.random.key(0), _positions(1), np.zeros(num, int), _raw(1, flip=True))
    offsets = _offsets(np.rint(batch).astype(int))
    shares = {seen: offsets.count(seen) / num for seen in set(offsets)}
    every = {(r, c, m) for r in (-1, 0, 1) for c in (-1, 0, 1) for m in (False, True)}
    assert shares.keys() == every
    # Five standard deviations of a share of 1/18.
    np.testing.assert_allclose(list(shares.values()), 1 / 18, atol=5 * np.sqrt(1 / 18 / num))


def test_without_crop_and_flip_only_the_normalisation_is_left():
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    for augment in (unchanged, partial(crop_flip, padding=0, flip=False)):
        options = ImageOptions(MEAN, STD, augment)
        batch = _augmented(jax.random.key(0), images, np.array([2, 0, 2]), options)
        expected = normalize_images(images[[2, 0, 2]], options)
        # Compiled, the product and the sum are rounded once together.
        np.testing.assert_allclose(batch, expected, rtol=0, atol=3e-7)


def test_padding_is_black():
    white = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    options = ImageOptions(MEAN, STD, partial(crop_flip, padding=SIZE))
    batch = _augmented(jax.random.key(0), white, np.zeros(50, int), options)
    black, bright = (np.float32((value - np.array(MEAN)) / STD) for value in (0, 1))
    is_black = np.isclose(batch, black, atol=1e-5).all(axis=-1)
    is_bright = np.isclose(batch, bright, atol=1e-5).all(axis=-1)
    assert (is_black ^ is_bright).all()
    assert is_black.any(axis=(1, 2)).sum() > 40


def test_normalisation():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    pixels = images / 255
    options = ImageOptions(MEAN, STD)
    expected = (pixels - MEAN) / STD
    got = normalize_images(images, options)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    mean, std = (f(pixels, axis=(0, 1, 2)) for f in (np.mean, np.std))
    own = ImageOptions(tuple(mean.tolist()), tuple(std.tolist()))
    got = np.asarray(normalize_images(images, own), np.float64)
    np.testing.assert_allclose(got.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_the_key_alone_decides():
    images = _positions(4)
    first, again, other = (
        _augmented(jax.random.key(seed), images, np.arange(4), _raw(2, flip=True))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
