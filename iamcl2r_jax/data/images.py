"""Image files as arrays, and the checks that folders and TFDS sets share."""

import functools
import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from iamcl2r_jax.system.errors import InputError

# Pillow only recognizes these, or has another program draw them.
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@functools.cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are read, those of Pillow's plugins included."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NO_PIXELS)


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the names of image files, as ".jpg", in small letters."""
    read = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in read)


def decode(file: pathlib.Path | BinaryIO, image_size: int, *, turn: bool = False) -> np.ndarray:
    """An image file as uint8 [image_size, image_size, 3]; see `sources.load` for the rules.

    Cameras store the turn of the picture beside its pixels; `turn` says whether to obey. A broken
    file raises exceptions of many kinds.
    """
    with Image.open(file, formats=formats()) as image:
        return to_rgb(ImageOps.exif_transpose(image) if turn else image, image_size)


def to_rgb(image: Image.Image, image_size: int) -> np.ndarray:
    """A Pillow image as uint8 [image_size, image_size, 3]; see `sources.load` for the rules."""
    if image.mode != "RGB":
        image = _three_channels(image)
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _three_channels(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip, not scale, sixteen bits to eight
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def room_for(name: str, split: str, count: int, image_size: int) -> np.ndarray:
    """An empty uint8 [count, image_size, image_size, 3]; only rows that are filled take memory.

    Raises `InputError` if there is not so much.
    """
    try:
        return np.empty((count, image_size, image_size, 3), np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an address can say
        raise InputError(
            f"data set {name!r}: the {count} images of split {split!r} need "
            f"{count * image_size**2 * 3 / 2**30:.0f} GiB at image_size={image_size}; choose a "
            "smaller image.size"
        ) from None


def first_classes(name: str, names: tuple[str, ...], num_classes: int | None) -> tuple[str, ...]:
    """The first `num_classes` names of a data set's classes, or all; `InputError` if too many."""
    if num_classes is not None and not 1 <= num_classes <= len(names):
        raise InputError(f"num_classes={num_classes}: data set {name!r} has 1 to {len(names)}")
    return tuple(names[:num_classes])


def no_such_split(name: str, split: str, splits: tuple[str, ...]) -> InputError:
    """The error for a split that a data set does not have."""
    known = ", ".join(sorted(splits))
    return InputError(f"data set {name!r} has no split {split!r}; its splits are {known}")
