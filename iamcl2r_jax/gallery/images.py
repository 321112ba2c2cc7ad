"""Image files as the models take them."""

import hashlib
import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from iamcl2r_jax.data.images import formats, to_rgb
from iamcl2r_jax.system.errors import InputError, one_line

MAX_PIXELS = 100_000_000  # of a picture; more is taken for an attack on the memory
_MAX_BYTES = 2**28  # of a file


class ImageError(InputError):
    """An image cannot be read; the message is one line."""


def read(path: str) -> "Picture":
    """The image file at `path`, not decoded yet.

    Raises:
      ImageError: if the file cannot be read.
    """
    shown = path if path.isprintable() else ascii(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise ImageError(f"image {shown} is not a file")
        if found.st_size > _MAX_BYTES:
            raise ImageError(
                f"image {shown} has {found.st_size} bytes; must be at most {_MAX_BYTES}"
            )
        with open(path, "rb") as file:
            return Picture(file.read(), shown)
    except OSError as error:
        raise ImageError(f"image {shown} cannot be read ({error.strerror})") from error


class Picture:
    """An image file in memory, decoded once for each size that a model asks for.

    Attributes:
      name: for messages.
      digest: SHA-256 of its bytes, in hexadecimal.
    """

    def __init__(self, content: bytes, name: str = "image", *, max_pixels: int = MAX_PIXELS):
        """Nothing is decoded yet.

        Args:
          content: bytes of a file in a format that Pillow reads.
          name: for messages.
          max_pixels: limit on the picture as it is in the file; checked before it is decoded.
        """
        self.name, self.digest = name, hashlib.sha256(content).hexdigest()
        self._content, self._max_pixels = content, max_pixels
        self._decoded: dict[int, np.ndarray] = {}

    def at(self, size: int) -> np.ndarray:
        """Its pixels, uint8 [size, size, 3].

        Raises:
          ImageError: if it is no image, is damaged, or too large.
        """
        if size not in self._decoded:
            self._decoded[size] = self._decode(size)
        return self._decoded[size]

    def _decode(self, size: int) -> np.ndarray:
        """The image as a model takes it, by the rules of data sets; see `data.sources.load`."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of damaged metadata, and of sizes: checked below
                with Image.open(io.BytesIO(self._content), formats=formats()) as image:
                    width, height = image.size
                    if width * height > self._max_pixels:
                        raise ImageError(
                            f"{self.name} has {width} x {height} pixels; must be at most "
                            f"{self._max_pixels}"
                        )
                    return to_rgb(ImageOps.exif_transpose(image), size)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"{self.name} is not an image of a known format") from error
        except Exception as error:  # Pillow's decoders raise most kinds on broken files
            why = one_line(error)[:200]
            raise ImageError(f"{self.name} is not a readable image ({why})") from error
