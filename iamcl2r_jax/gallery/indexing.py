"""Adds images: reads, embeds by every model that the gallery needs, and writes."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from iamcl2r_jax.data.images import suffixes
from iamcl2r_jax.gallery import images
from iamcl2r_jax.gallery.embedder import Embedder, Embedders
from iamcl2r_jax.gallery.errors import OutdatedError, Refused
from iamcl2r_jax.gallery.gallery import Gallery
from iamcl2r_jax.gallery.images import Picture
from iamcl2r_jax.gallery.records import NewItem
from iamcl2r_jax.system.errors import InputError

_ATTEMPTS = 5  # of a batch, while upgrades begin


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to be added: where it is read from, and what is stored of it.

    Attributes:
      key: see `NewItem`.
      path: of the file; kept as it is.
    """

    key: str
    path: str
    label: str | None = None


@dataclasses.dataclass
class Added:
    """What became of the images: numbers of the items, and (key, reason) of unreadable files."""

    items: list[int] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def sources(directory: str) -> list[Source]:
    """The image files below a directory, sorted, with relative paths as keys.

    The label is the name of the directory that a file lies in; None at the top. Hidden files and
    directories are passed over.

    Raises:
      InputError: if there is no such directory.
    """
    if not os.path.isdir(directory):
        raise InputError(f"images={directory}: must be a directory of image files")
    found = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes())):
                path = os.path.join(folder, name)
                key = os.path.relpath(path, directory)
                label = os.path.basename(os.path.dirname(key)) or None
                found.append(Source(key, os.path.abspath(path), label))
    return found


def add_files(
    gallery: Gallery,
    embedders: Embedders,
    files: Iterable[Source],
    *,
    batch: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Added:
    """Adds image files, a transaction a batch; what is unreadable is passed over and listed.

    Args:
      gallery, embedders: to add to, and those of its models.
      files: what to add; a known key is replaced.
      batch: images at a time.
      progress: called with the number of images done, after each batch.
    """
    added, files = Added(), list(files)
    for start in range(0, len(files), batch):
        some = files[start : start + batch]
        items, pictures = [], []
        sizes = {model.info.image["size"] for model in gallery.writing_models()}
        for source in some:
            try:
                _check_name(source)
                picture = images.read(source.path)
                for size in sizes:
                    picture.at(size)
            except images.ImageError as error:
                added.unreadable.append((source.key, str(error)))
                continue
            path = _stored_path(gallery, source.path)
            items.append(NewItem(source.key, picture.digest, path, source.label))
            pictures.append(picture)
        if items:
            added.items += add_pictures(gallery, embedders, items, pictures)
        progress(len(some))
    return added


def _check_name(source: Source) -> None:
    """Raises `ImageError` for names that the database cannot hold."""
    try:
        "".join((source.key, source.path, source.label or "")).encode()
    except UnicodeEncodeError:
        raise images.ImageError(f"the name {source.path!a} is not UTF-8") from None


def _stored_path(gallery: Gallery, path: str) -> str:
    """Relative for images inside the gallery, so that it can be moved with them."""
    relative = os.path.relpath(path, gallery.directory)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def add_pictures(
    gallery: Gallery, embedders: Embedders, items: Sequence[NewItem], pictures: Sequence[Picture]
) -> list[int]:
    """Embeds images by all models that the gallery needs, and adds them in one transaction.

    Returns:
      The numbers of the items.

    Raises:
      ImageError: if one cannot be read; then none is added.
      Refused: if upgrades begin faster than the images are embedded.
    """
    vectors: dict[str, np.ndarray] = {}
    for _ in range(_ATTEMPTS):
        for model in gallery.writing_models():
            if model.name not in vectors:
                vectors[model.name] = embed(embedders[model], pictures)
        try:
            return gallery.add(items, vectors)
        except OutdatedError:
            continue
    raise Refused("upgrades begin faster than new items are embedded; try again")


def embed(embedder: Embedder, pictures: Sequence[Picture]) -> np.ndarray:
    """Unit features float32 [N, D] of images.

    Raises:
      ImageError: if one cannot be read.
    """
    size = embedder.info.image["size"]
    return embedder(np.stack([picture.at(size) for picture in pictures]))
