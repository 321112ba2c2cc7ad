"""Files of uploaded images, named by their content, and pictures of items to look at."""

import io
import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageOps

from iamcl2r_jax.data.images import formats
from iamcl2r_jax.gallery import Gallery, Item
from iamcl2r_jax.gallery.database import sync_directory
from iamcl2r_jax.gallery.images import MAX_PIXELS, ImageError
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import WriteError

_FOLDER = "images"  # below the gallery
_THUMBNAIL = 320  # pixels, the longer side


class Files:
    """The uploaded images of one gallery; threads may share it."""

    def __init__(self, gallery: Gallery):
        self._gallery, self._lock = gallery, threading.Lock()

    def write(self, content: bytes, digest: str) -> str:
        """Stores a file unless it is there, durably; returns its path relative to the gallery.

        The name is made of the digest alone: nothing that a client sends becomes a path.

        Raises:
          WriteError: if it cannot be written; nothing is left of it.
        """
        path = os.path.join(_FOLDER, digest)
        with self._lock:
            _write(os.path.join(self._gallery.directory, path), content)
        return path

    def discard(self, path: str | None) -> None:
        """Removes an uploaded file if no item has it any more."""
        if path is None or os.path.dirname(path) != _FOLDER:
            return
        with self._lock:
            with self._gallery.database.reading() as connection:
                used = connection.execute(
                    "SELECT 1 FROM items WHERE path = ? LIMIT 1", (path,)
                ).fetchone()
            if used is None:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._gallery.directory, path))


def _write(path: str, content: bytes) -> None:
    if os.path.exists(path):
        return
    part = f"{path}.part"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            files.sync(file)
        os.replace(part, path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        with suppress(OSError):
            os.unlink(part)
        raise WriteError(f"the image cannot be stored ({error.strerror})") from error


def picture(gallery: Gallery, item: Item, roots: Sequence[str]) -> bytes | None:
    """A small PNG of an item's image; None if there is none inside the gallery or the roots.

    Links are followed first.

    Raises:
      ImageError: if it cannot be read.
    """
    path = gallery.image_path(item)
    if path is None:
        return None
    path = os.path.realpath(path)
    inside = (os.path.realpath(root) for root in (gallery.directory, *roots))
    if not any(os.path.commonpath([path, root]) == root for root in inside):
        return None
    return _thumbnail(path, item.key)


def _thumbnail(path: str, key: str) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"the image of item {key} is too large to be shown")
                image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
                small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        output = io.BytesIO()
        small.save(output, "PNG")
        return output.getvalue()
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise most kinds on broken files
        raise ImageError(f"the image of item {key} cannot be read") from error
