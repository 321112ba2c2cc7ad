"""Small archives in the byte format of the catalogue's downloads, and where to put them."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IMAGENET32 = {
    "train": "http://www.image-net.org/data/downsample//Imagenet32_train_npz.zip",
    "validation": "http://www.image-net.org/data/downsample//Imagenet32_val_npz.zip",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Puts a file where TFDS looks for manual downloads, with its checksum in the catalogue."""

    def place(name, url, content, *, register=True):
        filename = url.rsplit("/", 1)[1]
        manual = tmp_path / "downloads" / "manual"
        manual.mkdir(parents=True, exist_ok=True)
        (manual / filename).write_bytes(content)
        # The catalogue must know the URL that production will ask for.
        known = tfds.builder_cls(name).url_infos
        assert known[url].filename == filename
        if register:
            monkeypatch.setitem(known, url, url_info(content, filename))
        return str(tmp_path)

    return place


def cifar100(rng, train=200, test=100):
    """The archive, {split: (images [N, 32, 32, 3], labels [N])} and the names of the classes."""
    splits = {"train": _records(rng, train, 100), "test": _records(rng, test, 100)}
    names = tuple(f"fine{c}" for c in range(100))
    files = {
        f"cifar-100-binary/{split}.bin": _cifar_bytes(images, labels // 5, labels)
        for split, (images, labels) in splits.items()
    }
    files["cifar-100-binary/fine_label_names.txt"] = _lines(names)
    files["cifar-100-binary/coarse_label_names.txt"] = _lines(f"coarse{c}" for c in range(20))
    return _tar_gz(files), splits, names


def cifar10(rng, train=100, test=30):
    """As `cifar100`, with the training images in five files."""
    splits = {"train": _records(rng, train, 10), "test": _records(rng, test, 10)}
    names = tuple(f"class{c}" for c in range(10))
    prefix = "cifar-10-batches-bin/"
    parts = zip(*(np.split(part, 5) for part in splits["train"]), strict=True)
    files = {f"{prefix}data_batch_{i}.bin": _cifar_bytes(*part) for i, part in enumerate(parts, 1)}
    files[prefix + "test_batch.bin"] = _cifar_bytes(*splits["test"])
    files[prefix + "batches.meta.txt"] = _lines(names)
    return _tar_gz(files), splits, names


def imagenet32(name, images, labels):
    """A zip of the NumPy archive `name` with images [N, 32, 32, 3] and labels from zero."""
    npz, buffer = io.BytesIO(), io.BytesIO()
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    # The labels of the download count from one.
    np.savez(npz, data=data, labels=labels + 1)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, npz.getvalue())
    return buffer.getvalue()


def url_info(content, filename):
    """What the catalogue knows of a download."""
    return checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), filename)


def _records(rng, count, num_classes):
    """Images [N, H, W, C] and labels [N], each class at least once when count allows."""
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, (np.arange(count) * 7 % num_classes).astype(np.uint8)


def _cifar_bytes(images, *labels):
    rows = [np.stack(labels, 1), images.transpose(0, 3, 1, 2).reshape(len(images), -1)]
    return np.concatenate(rows, 1).tobytes()


def _lines(names):
    return "\n".join([*names, ""]).encode()


def _tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
