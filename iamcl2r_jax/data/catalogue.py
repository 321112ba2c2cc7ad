"""Data sets of the TFDS catalogue, prepared without TensorFlow.

The catalogue's own builders unpack archives, open files and encode images through TensorFlow. The
subclasses below replace just that and keep everything else, the URLs and checksums, the features
and the version, so that what they write is the catalogue's data set and its own builder reads it.
"""

import contextlib
import functools
import gzip
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.utils import py_utils


def without_tensorflow(
    builder: tfds.core.DatasetBuilder, data_dir: str | None
) -> tfds.core.DatasetBuilder:
    """A builder that prepares the same data set without TensorFlow; `builder` if there is none.

    Args:
        builder: the catalogue's builder.
        data_dir: the TFDS directory that it was made with.
    """
    if builder.name not in _BY_NAME:
        return builder
    config = builder.builder_config.name if builder.builder_config else None
    subclass = _subclass(builder.name)
    with without_leftovers():
        return subclass(data_dir=data_dir, config=config, version=str(builder.version))


def without_leftovers() -> contextlib.AbstractContextManager:
    """A context to make builders in, so that they leave no empty directories behind.

    For every set that is not prepared, TFDS makes a temporary directory, and leaves it, to fetch
    the set's metadata from a bucket into which it then does not look.
    """
    return py_utils.temporary_assignment(
        tfds.core.DatasetInfo, "initialize_from_bucket", lambda info: None
    )


@functools.cache
def _subclass(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    base = tfds.builder_cls(name)
    # TFDS would look for the checksums beside our module, hence `url_infos`.
    attributes = {"name": name, "url_infos": base.url_infos, "__module__": __name__}
    with registered.skip_registration():
        return type(base.__name__, (_BY_NAME[name], base), attributes)


class _Downloads:
    """TFDS's download manager, unpacking with the standard library in place of TensorFlow."""

    def __init__(self, manager: tfds.download.DownloadManager, scratch: pathlib.Path):
        self._manager = manager
        self._scratch = scratch

    def __getattr__(self, name):
        return getattr(self._manager, name)

    def download_and_extract(self, urls):
        paths = self._manager.download(urls)
        if isinstance(paths, dict):
            return {key: self._extract(path) for key, path in paths.items()}
        if isinstance(paths, list):
            return [self._extract(path) for path in paths]
        return self._extract(paths)

    def iter_archive(self, path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as file:
                        yield member.filename, file

    def _extract(self, path):
        target = self._scratch / pathlib.Path(path).stem
        if str(path).endswith((".tar.gz", ".tgz")):
            shutil.unpack_archive(path, target, "gztar", filter="data")
        else:
            with gzip.open(path) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        return target


class _WithoutTensorFlow:
    """What the subclasses share; unpacked files live only as long as the preparation."""

    def _download_and_prepare(self, dl_manager, download_config):
        with tempfile.TemporaryDirectory(dir=dl_manager.download_dir) as scratch:
            downloads = _Downloads(dl_manager, pathlib.Path(scratch))
            super()._download_and_prepare(downloads, download_config)


class _Cifar(_WithoutTensorFlow):
    """Records of the label bytes and 3,072 bytes of image, [3, 32, 32]."""

    def _generate_examples(self, split_prefix, filepaths):
        label_keys = self._cifar_info.label_keys
        index = 0
        for path in filepaths:
            records = np.fromfile(path, np.uint8).reshape(-1, len(label_keys) + 3 * 32 * 32)
            for record in records:
                labels, pixels = np.split(record, [len(label_keys)])
                image = np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
                example = dict(zip(label_keys, labels.tolist(), strict=True))
                example |= {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image)}
                yield index, example
                index += 1


class _Mnist(_WithoutTensorFlow):
    """IDX files: 16 bytes of header before the images [N, 28, 28], 8 before the labels [N]."""

    def _generate_examples(self, num_examples, data_path, label_path):
        del num_examples  # the checksums vouch for the files
        images = np.fromfile(data_path, np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.fromfile(label_path, np.uint8, offset=8).tolist()
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": label}


class _ImagenetResized(_WithoutTensorFlow):
    """NumPy archives, which the catalogue's builder itself reads without TensorFlow."""

    def _generate_examples(self, archive):
        for key, example in super()._generate_examples(archive):
            image = Image.fromarray(np.ascontiguousarray(example["image"]))
            yield key, {"image": image, "label": int(example["label"])}


class _CaltechBirds2011(_WithoutTensorFlow):
    """Photographs and their masks, and tables with a line for each photograph."""

    def _split_generators(self, dl_manager):
        info = self._caltech_birds_info
        photographs, masks = dl_manager.download_and_extract(
            [info.images_url, info.segmentations_url]
        )
        root = photographs / "CUB_200_2011"
        names, is_train, boxes = (
            dict(line.split(maxsplit=1) for line in (root / table).read_text().splitlines())
            for table in ("images.txt", "train_test_split.txt", "bounding_boxes.txt")
        )
        mask_of = {path.stem: path for path in masks.rglob("*.png")}
        examples = {tfds.Split.TRAIN: [], tfds.Split.TEST: []}
        for number, name in names.items():
            path = root / "images" / name
            split = tfds.Split.TRAIN if int(is_train[number]) else tfds.Split.TEST
            examples[split].append((path, mask_of[path.stem], boxes[number]))
        return {split: self._generate_examples(photographs, e) for split, e in examples.items()}

    def _generate_examples(self, photographs, examples):
        for path, mask_path, box in examples:
            with Image.open(mask_path) as image:
                mask = image.convert("L")
            x, y, width, height = map(float, box.split())
            number, _, label_name = path.parent.name.partition(".")
            name = path.relative_to(photographs).as_posix()
            yield (
                name,
                {
                    "image": path,
                    "image/filename": name,
                    "label": int(number) - 1,
                    "label_name": label_name.lower(),
                    "bbox": tfds.features.BBox(
                        ymin=min(y / mask.height, 1.0),
                        xmin=min(x / mask.width, 1.0),
                        ymax=min((y + height) / mask.height, 1.0),
                        xmax=min((x + width) / mask.width, 1.0),
                    ),
                    "segmentation_mask": mask,
                },
            )


_BY_NAME = {
    "caltech_birds2011": _CaltechBirds2011,
    "cifar10": _Cifar,
    "cifar100": _Cifar,
    "mnist": _Mnist,
    "fashion_mnist": _Mnist,
    "kmnist": _Mnist,
    "imagenet_resized": _ImagenetResized,
}
