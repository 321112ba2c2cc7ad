"""Labelled image sets as arrays: TFDS sets by name, and folders of image files.

A set is named either as in the TFDS catalogue (`cifar100`, `imagenet_resized/32x32`) or among this
package's own builders (`glyphs/latin`, `handwriting`), or as `folder:DIR` with the layout of TFDS's
`ImageFolder`, `DIR/<split>/<class>/<image file>`. A TFDS set that is not in `data_dir` is prepared
there once, in TFDS's ArrayRecord format; reading never imports TensorFlow.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import io
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import requests
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image, ImageOps
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import py_utils

from iamcl2r_jax.data import catalogue
from iamcl2r_jax.system import distributed
from iamcl2r_jax.system.errors import InputError

FOLDER_PREFIX = "folder:"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# TFDS registers a builder when its module is imported.
OWN_BUILDERS = {
    "glyphs": "iamcl2r_jax.data.glyphs",
    "handwriting": "iamcl2r_jax.data.handwriting",
}
_READ_BATCH = 1024


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

    Returns:
        The description.

    Raises:
        InputError: there is no such data set, or it has no classes.
    """
    if name.startswith(FOLDER_PREFIX):
        root = _folder_root(name)
        return Description(_folder_classes(name, root, split), _folder_splits(name, root))
    builder = _builder(name, data_dir)
    _, label_key = _keys(name, builder)
    class_names = tuple(builder.info.features[label_key].names)
    return Description(class_names, tuple(sorted(builder.info.splits)))


def load(
    name: str,
    split: str,
    *,
    image_size: int,
    data_dir: str | None = None,
    num_classes: int | None = None,
    min_per_class: int = 2,
) -> ImageSet:
    """Loads one split into memory, preparing the data set first if need be.

    Images are brought to three channels (greyscale is repeated, transparency is laid over white)
    and to `image_size` squared: the largest centred square is cut out and resized (bicubic,
    antialiased), so that the aspect ratio is kept and the ends of the longer side are lost. Sixteen
    bits become the upper eight, and of an animation the first picture counts.

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
            split may hold. One image cannot be both query and gallery, hence 2; a gallery of one
            image per class is asked for with 1.

    Returns:
        The image set.

    Raises:
        InputError: see the message.
    """
    if image_size < 1:
        raise InputError(f"image_size={image_size}: must be at least 1")
    read = _load_folder if name.startswith(FOLDER_PREFIX) else _load_tfds
    return read(name, split, image_size, data_dir, num_classes, min_per_class)


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


def to_rgb(image: Image.Image, image_size: int) -> np.ndarray:
    """A Pillow image as uint8 [image_size, image_size, 3]; see `load` for the rules."""
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


# --- TFDS -------------------------------------------------------------------------------------


def _load_tfds(name, split, image_size, data_dir, num_classes, min_per_class) -> ImageSet:
    del min_per_class
    builder = _builder(name, data_dir)
    image_key, label_key = _keys(name, builder)
    with distributed.first_alone_first(f"{name} prepared"):
        if not _is_prepared(builder):
            _prepare(name, data_dir)
        builder = _builder(name, data_dir)
        if not _is_prepared(builder):  # TFDS leaves alone a directory that is there already
            raise _damaged(name, builder.data_dir, "its dataset_info.json is missing")
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError, AssertionError):  # which of them, depends on what is malformed
        raise _no_such_split(name, split, builder.info.splits) from None
    if count == 0:
        raise InputError(f"data set {name!r}: split {split!r} is empty")
    features = builder.info.features
    has_id = "id" in features and isinstance(features["id"], tfds.features.Text)
    # Images are decoded below, and only those that are kept.
    encoded = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    try:
        source = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in encoded}
        )
    except NotImplementedError:
        raise InputError(
            f"data set {name!r} is stored as {builder.info.file_format.value} in "
            f"{builder.data_dir}, which only TensorFlow reads; name another data_dir, where it "
            "will be prepared as array_record"
        ) from None
    except Exception as error:  # of the reader, which tells damage by checksums of its own
        raise _damaged(name, builder.data_dir, _one_line(error)) from error
    class_names = _first_classes(name, features[label_key].names, num_classes)

    # Memory is only taken by the rows that are filled.
    images = _room_for(name, split, count, image_size)
    labels = np.empty(count, np.int32)
    ids = []
    kept = 0
    for example in _examples(name, builder, split, source, count):
        if example[label_key] < 0:
            raise InputError(f"split {split!r} of data set {name!r} has images without a label")
        if example[label_key] >= len(features[label_key].names):
            raise _damaged(name, builder.data_dir, f"label {example[label_key]} is out of range")
        if example[label_key] >= len(class_names):
            continue
        try:
            with Image.open(io.BytesIO(example[image_key])) as image:
                images[kept] = to_rgb(image, image_size)
        except Exception as error:  # Pillow's decoders raise most kinds on broken files
            raise _damaged(name, builder.data_dir, _one_line(error)) from error
        labels[kept] = example[label_key]
        if has_id:
            ids.append(example["id"])
        kept += 1
    images, labels = images[:kept], labels[:kept]
    if has_id:
        order = np.argsort(np.array(ids), kind="stable")
        images, labels = images[order], labels[order]
    return ImageSet(images, labels, class_names)


def _examples(name, builder, split, source, count) -> Iterator[dict]:
    """The examples of a split, read batch by batch.

    The reader tells damage by checksums of its own, but takes the number of records from the set's
    metadata, which has none.
    """
    damage = partial(_damaged, name, builder.data_dir)
    try:
        for part in set(re.findall(r"\w+", split)) & set(builder.info.splits):
            whole = builder.info.splits[part]
            readers = [ArrayRecordReader(str(path)) for path in whole.filepaths]
            stored = sum(reader.num_records() for reader in readers)
            for reader in readers:
                reader.close()
            if stored != whole.num_examples:
                raise damage(f"{part} has {stored} records, its metadata {whole.num_examples}")
        for start in range(0, count, _READ_BATCH):
            yield from source.__getitems__(range(start, min(start + _READ_BATCH, count)))
    except InputError:
        raise
    except Exception as error:
        raise damage(_one_line(error)) from error


def _damaged(name: str, directory: object, why: str) -> InputError:
    return InputError(
        f"data set {name!r} in {directory} is damaged ({why}); remove that directory to have it "
        "prepared again"
    )


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder that `name` stands for, in the catalogue or among our own."""
    if not re.fullmatch(r"\w+(/[\w.\-]+)?(:[\d.*]+)?", name):
        raise InputError(
            f"data set name {name!r} is malformed; write NAME, NAME/CONFIG or 'folder:DIR'"
        )
    base, _, config = name.partition(":")[0].partition("/")
    if base in OWN_BUILDERS:
        importlib.import_module(OWN_BUILDERS[base])
    try:
        with catalogue.without_leftovers():
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = [*OWN_BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(base, known)
        hint = f" (near it: {', '.join(near)})" if near else ""
        raise InputError(
            f"data set {name!r} is unknown{hint}; name a TFDS data set, one of "
            f"{', '.join(OWN_BUILDERS)}, or a folder as 'folder:DIR'"
        ) from None
    except ValueError as error:
        configs = list(tfds.builder_cls(base).builder_configs)
        if config and config not in configs:
            known = f"its configurations are {', '.join(configs)}" if configs else "it has none"
            raise InputError(
                f"data set {base!r} has no configuration {config!r}; {known}"
            ) from None
        raise InputError(f"data set {name!r} cannot be opened: {_one_line(error)}") from error
    except OSError:
        raise
    except Exception as error:  # of the parsers of its metadata
        directory = data_dir or tfds.core.constants.DATA_DIR
        raise _damaged(name, f"{directory}/{base}", _one_line(error)) from error


def _keys(name: str, builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of the image and of the label among the features of a data set."""
    features = builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    if (
        len(keys) != 2
        or not all(key in features for key in keys)
        or not isinstance(features[keys[0]], tfds.features.Image)
        or features[keys[0]].np_dtype != np.uint8
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise InputError(
            f"data set {name!r} has no pair of an 8-bit image and a class label; "
            f"its features are {', '.join(features)}"
        )
    return keys


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS reads the splits from the directory that it renames into place at the very end; its own
    # `is_prepared` warns of every set that is not there yet.
    return bool(builder.info.splits)


def _prepare(name: str, data_dir: str | None) -> None:
    """Downloads and writes a data set; TFDS renames it into place when all of it is there."""
    builder = _builder(name, data_dir)
    writer = catalogue.without_tensorflow(builder, data_dir)
    downloads = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / "downloads"
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS would try for minutes before it admits that there is no network.
        with (
            py_utils.temporary_assignment(downloader, "MAX_RETRIES", 3),
            _silence_for_own(name),
        ):
            writer.download_and_prepare(
                download_dir=str(downloads),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format=tfds.core.FileFormat.ARRAY_RECORD,
            )
    except Exception as error:
        if _is_prepared(_builder(name, data_dir)):
            return  # another process was first, so that the rename found its directory there
        raise InputError(_why_not_prepared(name, downloads, error)) from error


def _silence_for_own(name: str) -> contextlib.AbstractContextManager:
    """TFDS announces a download, with its size; our own sets download nothing."""
    if name.partition("/")[0] in OWN_BUILDERS:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def _why_not_prepared(name: str, downloads: pathlib.Path, error: Exception) -> str:
    """One line for why TFDS could not prepare a data set, and what to do about it."""
    cause = error
    while cause is not None:
        if isinstance(cause, ImportError):
            missing = cause.name or _one_line(cause)
            if "tensorflow" in missing:
                return (
                    f"data set {name!r} needs TensorFlow to be prepared, once: "
                    "pip install 'iamcl2r_jax[prepare]' and start again (reading needs none)"
                )
            return f"data set {name!r} cannot be prepared: install the package {missing}"
        if isinstance(cause, requests.exceptions.RequestException | tfds.download.DownloadError):
            request = getattr(cause, "request", None)
            reason = f"{type(cause).__name__}: {request.url}" if request else _one_line(cause)
            return (
                f"data set {name!r} cannot be downloaded ({reason}); connect to the network, "
                f"or put that file into {downloads / 'manual'}"
            )
        cause = cause.__cause__ or cause.__context__
    return f"data set {name!r} cannot be prepared: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _first_classes(name: str, names: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    if num_classes is not None and not 1 <= num_classes <= len(names):
        raise InputError(f"num_classes={num_classes}: data set {name!r} has 1 to {len(names)}")
    return tuple(names[:num_classes])


def _room_for(name: str, split: str, count: int, image_size: int) -> np.ndarray:
    try:
        return np.empty((count, image_size, image_size, 3), np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an address can say
        raise InputError(
            f"data set {name!r}: the {count} images of split {split!r} need "
            f"{count * image_size**2 * 3 / 2**30:.0f} GiB at image_size={image_size}; choose a "
            "smaller image.size"
        ) from None


def _no_such_split(name: str, split: str, splits: Sequence[str]) -> InputError:
    known = ", ".join(sorted(splits))
    return InputError(f"data set {name!r} has no split {split!r}; its splits are {known}")


# --- Folders ----------------------------------------------------------------------------------


def _load_folder(name, split, image_size, data_dir, num_classes, min_per_class) -> ImageSet:
    del data_dir
    root = _folder_root(name)
    splits = _folder_splits(name, root)
    if split not in splits:
        raise _no_such_split(name, split, splits)
    class_names = _first_classes(name, _folder_classes(name, root), num_classes)
    files, labels = [], []
    for directory in _visible(root / split):
        if not directory.is_dir() or directory.name not in class_names:
            continue
        found = [f for f in _visible(directory) if f.suffix.lower() in IMAGE_SUFFIXES]
        if len(found) < min_per_class:
            raise InputError(
                f"data set {name!r}, split {split!r}: class {directory.name!r} has {len(found)} "
                f"image(s), at least {min_per_class} needed; add images ({' '.join(IMAGE_SUFFIXES)}"
                ") or remove the directory"
            )
        files += found
        labels += [class_names.index(directory.name)] * len(found)
    if not files:
        raise InputError(
            f"data set {name!r}: split {split!r} is empty; add {root / split}/<class>/"
        )
    images = _room_for(name, split, len(files), image_size)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                # Cameras store the turn of the picture beside its pixels.
                images[i] = to_rgb(ImageOps.exif_transpose(image), image_size)
        except Exception as error:  # Pillow's decoders raise most kinds on broken files
            raise InputError(
                f"data set {name!r}: image file {file} is unreadable ({_one_line(error)}); "
                "replace or remove it"
            ) from error
    return ImageSet(images, np.array(labels, np.int32), class_names)


def _folder_root(name: str) -> pathlib.Path:
    path = name.removeprefix(FOLDER_PREFIX)
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise InputError(
            f"data set {name!r}: {path!r} is not a directory; it must hold one "
            "directory per split, DIR/<split>/<class>/<image file>"
        )
    return root


def _folder_splits(name: str, root: pathlib.Path) -> tuple[str, ...]:
    splits = tuple(p.name for p in _visible(root) if p.is_dir())
    if not splits:
        raise InputError(
            f"data set {name!r} has no splits; it must hold one directory per split, "
            "DIR/<split>/<class>/<image file>"
        )
    return splits


def _folder_classes(name: str, root: pathlib.Path, split: str | None = None) -> tuple[str, ...]:
    """Classes of all splits together, sorted, so that a label means the same in each; or of one."""
    splits = _folder_splits(name, root)
    if split is not None and split not in splits:
        raise _no_such_split(name, split, splits)
    classes = {
        p.name for s in ([split] if split else splits) for p in _visible(root / s) if p.is_dir()
    }
    if not classes:
        raise InputError(
            f"data set {name!r} has no classes{f' in split {split!r}' if split else ''}; each "
            "split must hold one directory per class, DIR/<split>/<class>/<image file>"
        )
    return tuple(sorted(classes))


def _visible(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in directory.iterdir() if not p.name.startswith("."))
