"""Labelled image sets as arrays: TFDS sets by name, and folders of image files.

A set is named either as in the TFDS catalogue (`cifar100`, `imagenet_resized/32x32`) or among this
package's own builders (`glyphs/stream`, `handwriting`), or as `folder:DIR` with the layout of
TFDS's `ImageFolder`, `DIR/<split>/<class>/<image file>`. A TFDS set that is not in `data_dir` is
prepared there once, in TFDS's ArrayRecord format; reading never imports TensorFlow.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from iamcl2r_jax.data import folders, tfds_sets
from iamcl2r_jax.system.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images with their labels, in a stable order.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int32 [N], indices into `class_names`.
        class_names: one name per class; a class may have no image in this split.

    Raises:
        InputError: there are not as many labels as images, or a label names no class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise InputError(
                f"{len(self.images)} images with {len(self.labels)} labels; each needs one"
            )
        known = len(self.class_names)
        # Below zero they would count from the end.
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= known))
        if wrong.size:
            raise InputError(
                f"image {wrong[0]} has label {self.labels[wrong[0]]}: must be in 0..{known - 1}, "
                f"since there are {known} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 of images and labels, in hexadecimal."""
        sha256 = hashlib.sha256(np.ascontiguousarray(self.images))
        sha256.update(np.ascontiguousarray(self.labels))
        return sha256.hexdigest()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One open-set evaluation.

    Attributes:
        query: images searched for, embedded by the newer model.
        gallery: images searched in, embedded by the older model.
    """

    query: ImageSet
    gallery: ImageSet

    @cached_property
    def queries_in_gallery(self) -> int:
        """How many queries are also images of the gallery, pixel by pixel."""
        stored = set(_image_digests(self.gallery.images))
        return sum(digest in stored for digest in _image_digests(self.query.images))


def _image_digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in np.ascontiguousarray(images)]


def refuse_equal_sets(what: str, evaluation: Evaluation) -> None:
    """Raises `InputError`, which names the queries as `what`, if every query would find itself."""
    if evaluation.queries_in_gallery == len(evaluation.query):
        raise InputError(
            f"{what}: all {len(evaluation.query):,} images are also in the gallery, where every "
            "query would find itself; name other images"
        )


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a data set without preparing or decoding it.

    Attributes:
        class_names: one name per class; the numbers "0", "1", ... where TFDS learns the names only
            when it prepares the set (CIFAR).
        splits: names of the splits; empty where TFDS knows them only once the set is prepared.
    """

    class_names: tuple[str, ...]
    splits: tuple[str, ...]


def describe(name: str, split: str | None = None, *, data_dir: str | None = None) -> Description:
    """Class and split names of a data set, without preparing it or decoding an image.

    Args:
        name: TFDS name or `folder:DIR`.
        split: folder sets only: name only the classes that this split has, not those of all splits.
        data_dir: TFDS directory; None for TFDS's default.

    Raises:
        InputError: there is no such data set, or it has no classes.
    """
    if name.startswith(folders.PREFIX):
        return Description(folders.classes(name, split), folders.splits(name))
    return Description(*tfds_sets.describe(name, data_dir))


def load(
    name: str,
    split: str,
    *,
    image_size: int,
    data_dir: str | None = None,
    num_classes: int | None = None,
    min_per_class: int = 1,
) -> ImageSet:
    """Loads one split into memory, preparing the data set first if need be.

    Images are brought to three channels (greyscale is repeated, transparency is laid over white)
    and to `image_size` squared: the largest centred square is cut out and resized (bicubic,
    antialiased), so that the aspect ratio is kept and the ends of the longer side are lost. Sixteen
    bits become the upper eight, and of an animation the first picture counts. In a folder the files
    count that have the name of an image that Pillow reads; `passed_over` is about the others.

    The order is stable. For TFDS it is the stored one, which TFDS derives from the examples' keys;
    sets whose examples have an `id` (CIFAR: the position in the archive) come in its order, so
    that "the first images of a class" are those of the original archive. For a folder it is
    class by class, file names sorted.

    Args:
        name: TFDS name or `folder:DIR`.
        split: split name; for TFDS also a slice such as `train[:10%]`.
        image_size: height and width of the images returned.
        data_dir: TFDS directory; None for TFDS's default ($TFDS_DATA_DIR, ~/tensorflow_datasets).
        num_classes: keep only the first so many classes (the others are not even decoded).
        min_per_class: folder sets only: the least number of images that a class directory of this
            split may hold.

    Raises:
        InputError: see the message.
    """
    if image_size < 1:
        raise InputError(f"image_size={image_size}: must be at least 1")
    if name.startswith(folders.PREFIX):
        return ImageSet(*folders.load(name, split, image_size, num_classes, min_per_class))
    return ImageSet(*tfds_sets.load(name, split, image_size, data_dir, num_classes))


def passed_over(name: str, split: str) -> str:
    """One line on what a folder's split holds that is not read; "" if there is no such thing."""
    return folders.passed_over(name, split) if name.startswith(folders.PREFIX) else ""


def select_classes(image_set: ImageSet, classes: Sequence[int]) -> ImageSet:
    """The images of the given classes, relabelled 0, 1, ... in the order of `classes`."""
    relabel = np.full(len(image_set.class_names), -1, np.int32)
    relabel[list(classes)] = np.arange(len(classes), dtype=np.int32)
    labels = relabel[image_set.labels]
    keep = labels >= 0
    names = tuple(image_set.class_names[c] for c in classes)
    return ImageSet(image_set.images[keep], labels[keep], names)


def limit_per_class(image_set: ImageSet, limit: int | None) -> ImageSet:
    """The first `limit` images of each class, in the order of the set; None keeps all."""
    if limit is None:
        return image_set
    if limit < 1:
        raise InputError(f"limit_per_class={limit}: must be at least 1, or None for all images")
    by_class = np.argsort(image_set.labels, kind="stable")
    counts = np.bincount(image_set.labels, minlength=len(image_set.class_names))
    rank = np.empty(len(image_set), np.int64)
    rank[by_class] = np.arange(len(image_set)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = rank < limit
    return ImageSet(image_set.images[keep], image_set.labels[keep], image_set.class_names)
