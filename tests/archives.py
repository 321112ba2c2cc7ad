"""Small archives in the byte format of the catalogue's downloads, and where to put them."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IMAGENET32 = {
    "train": "http://www.image-net.org/data/downsample//Imagenet32_train_npz.zip",
    "validation": "http://www.image-net.org/data/downsample//Imagenet32_val_npz.zip",
}

BIRDS = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
BIRD_MASKS = "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz?download=1"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Puts a file where TFDS looks for manual downloads, with its checksum in the catalogue."""

    def place(name, url, content, *, register=True):
        filename = url.rsplit("/", 1)[1].removesuffix("?download=1")
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
    npz = io.BytesIO()
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    # The labels of the download count from one.
    np.savez(npz, data=data, labels=labels + 1)
    return _zip({name: npz.getvalue()})


def birds(rng, num_classes=4, per_class=4):
    """The archives of photographs and of masks, and what they hold.

    That is, for each file name as the catalogue has it: split, label, label name, image size
    (height, width), bounding box (left, top, width, height in pixels) and mask [H, W].
    """
    files, masks, expected, tables = {}, {}, {}, {"images": [], "split": [], "boxes": []}
    for label in range(num_classes):
        for n in range(per_class):
            number = len(expected) + 1
            height, width = 20 + label, 24 + n
            name = f"{label + 1:03}.Grey_Bird{label}/Grey_Bird{label}_{n:04}_{number}.jpg"
            box = (2.0, 3.0, 10.0 + n, 12.0)
            mask = (rng.random((height, width)) < 0.5).astype(np.uint8) * 255
            split = "train" if n % 2 else "test"
            pixels = np.full((height, width, 3), 10 * number, np.uint8)
            files[f"CUB_200_2011/images/{name}"] = _encoded(pixels, "jpeg")
            masks[f"segmentations/{name[:-4]}.png"] = _encoded(mask, "png")
            tables["images"].append(f"{number} {name}")
            tables["split"].append(f"{number} {int(split == 'train')}")
            tables["boxes"].append(f"{number} {' '.join(map(str, box))}")
            expected[f"CUB_200_2011/images/{name}"] = (
                split,
                label,
                f"grey_bird{label}",
                (height, width),
                box,
                mask,
            )
    for table, lines in zip(
        ("images", "train_test_split", "bounding_boxes"), tables.values(), strict=True
    ):
        files[f"CUB_200_2011/{table}.txt"] = _lines(lines)
    return _tar_gz(files), _tar_gz(masks), expected


def tiny_imagenet(rng, num_classes=3, per_class=5):
    """The zip of TinyImageNet: as it is published, but for fewer and smaller images."""
    root = "tiny-imagenet-200"
    wnids = [f"n{100 + c:08}" for c in range(num_classes)]
    files = {f"{root}/wnids.txt": _lines(wnids), f"{root}/words.txt": _lines(wnids)}
    validation = []
    for wnid in wnids:
        names = [f"{wnid}_{n}.JPEG" for n in range(per_class)]
        for name in names:
            files[f"{root}/train/{wnid}/images/{name}"] = _photograph(rng)
        boxes = [f"{name}\t0\t0\t7\t7" for name in names]
        files[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = _lines(boxes)
    for n in range(2 * num_classes):
        files[f"{root}/val/images/val_{n}.JPEG"] = _photograph(rng)
        files[f"{root}/test/images/test_{n}.JPEG"] = _photograph(rng)
        validation.append(f"val_{n}.JPEG\t{wnids[n % num_classes]}\t0\t0\t7\t7")
    files[f"{root}/val/val_annotations.txt"] = _lines(validation)
    return _zip(files)


def celeba(rng, images_of_identity, partition_of_identity):
    """The three files of CelebA that its folder is made from, by name; images in random order."""
    owners = rng.permutation(np.repeat(list(images_of_identity), list(images_of_identity.values())))
    names = [f"{n:06}.jpg" for n in range(1, len(owners) + 1)]
    return {
        "img_align_celeba.zip": _zip({f"img_align_celeba/{n}": _photograph(rng) for n in names}),
        "identity_CelebA.txt": _lines(f"{n} {i}" for n, i in zip(names, owners, strict=True)),
        "list_eval_partition.txt": _lines(
            f"{n} {partition_of_identity[i]}" for n, i in zip(names, owners, strict=True)
        ),
    }


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


def _photograph(rng):
    return _encoded(rng.integers(0, 256, (8, 8, 3), np.uint8), "jpeg")


def _encoded(pixels, encoding):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, encoding)
    return buffer.getvalue()


def _zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
