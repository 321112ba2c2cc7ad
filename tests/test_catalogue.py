"""Catalogue data sets prepared from small archives in the byte format of the real downloads."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from iamcl2r_jax.data import catalogue, sources

CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IMAGENET = "http://www.image-net.org/data/downsample//"


def _records(rng, count, num_classes):
    """Images [N, H, W, C] and labels [N], each class at least once when count allows."""
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, (np.arange(count) * 7 % num_classes).astype(np.uint8)


def _cifar_bytes(images, *labels):
    rows = [np.stack(labels, 1), images.transpose(0, 3, 1, 2).reshape(len(images), -1)]
    return np.concatenate(rows, 1).tobytes()


def _tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip_npz(name, images, labels):
    npz, buffer = io.BytesIO(), io.BytesIO()
    np.savez(npz, data=images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels=labels)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, npz.getvalue())
    return buffer.getvalue()


def _cifar100_archive(rng, count=200):
    splits = {"train": _records(rng, count, 100), "test": _records(rng, 100, 100)}
    names = [f"fine{c}" for c in range(100)]
    files = {
        f"cifar-100-binary/{split}.bin": _cifar_bytes(images, labels // 5, labels)
        for split, (images, labels) in splits.items()
    }
    files["cifar-100-binary/fine_label_names.txt"] = "\n".join([*names, ""]).encode()
    coarse = "\n".join([f"coarse{c}" for c in range(20)] + [""])
    files["cifar-100-binary/coarse_label_names.txt"] = coarse.encode()
    return _tar_gz(files), splits, tuple(names)


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
            monkeypatch.setitem(known, url, _info(content, filename))
        return str(tmp_path)

    return place


def _info(content, filename):
    checksum = hashlib.sha256(content).hexdigest()
    return checksums.UrlInfo(len(content), checksum, filename)


def test_cifar100_is_read_by_the_catalogues_builder(place):
    archive, splits, names = _cifar100_archive(np.random.default_rng(0))
    data_dir = place("cifar100", CIFAR100, archive)
    for split, (images, labels) in splits.items():
        got = sources.load("cifar100", split, image_size=32, data_dir=data_dir)
        # In the archive's order, byte for byte.
        np.testing.assert_array_equal(got.images, images)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.class_names == names

    builder = tfds.builder("cifar100", data_dir=data_dir)
    assert type(builder) is tfds.builder_cls("cifar100")
    assert builder.is_prepared()
    assert str(builder.version) == str(tfds.builder_cls("cifar100").VERSION)
    images, labels = splits["train"]
    source = builder.as_data_source("train")
    assert len(source) == len(labels)
    for example in source:
        index = int(example["id"].decode().removeprefix("train_"))
        np.testing.assert_array_equal(example["image"], images[index])
        assert (example["label"], example["coarse_label"]) == (labels[index], labels[index] // 5)


def test_only_the_prepared_set_and_the_archive_stay_on_the_disk(place, tmp_path):
    data_dir = place("cifar100", CIFAR100, _cifar100_archive(np.random.default_rng(0))[0])
    sources.load("cifar100", "test", image_size=32, data_dir=data_dir)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*incomplete*"))


def test_class_names_are_known_once_prepared(place):
    archive, _, names = _cifar100_archive(np.random.default_rng(0))
    data_dir = place("cifar100", CIFAR100, archive)
    before = sources.describe("cifar100", data_dir=data_dir)
    assert (len(before.class_names), before.splits) == (100, ())
    sources.load("cifar100", "test", image_size=32, data_dir=data_dir)
    after = sources.describe("cifar100", data_dir=data_dir)
    assert (after.class_names, set(after.splits)) == (names, {"train", "test"})


def test_cifar10(place):
    rng = np.random.default_rng(1)
    batches = [_records(rng, 20, 10) for _ in range(5)]
    test = _records(rng, 30, 10)
    prefix = "cifar-10-batches-bin/"
    files = {f"{prefix}data_batch_{i}.bin": _cifar_bytes(*b) for i, b in enumerate(batches, 1)}
    files[prefix + "test_batch.bin"] = _cifar_bytes(*test)
    names = tuple(f"class{c}" for c in range(10))
    files[prefix + "batches.meta.txt"] = "\n".join([*names, ""]).encode()
    data_dir = place("cifar10", CIFAR10, _tar_gz(files))
    train = [np.concatenate(part) for part in zip(*batches, strict=True)]
    for split, (images, labels) in {"train": train, "test": test}.items():
        got = sources.load("cifar10", split, image_size=32, data_dir=data_dir)
        np.testing.assert_array_equal(got.images, images)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.class_names == names


def test_mnist(place):
    rng = np.random.default_rng(2)
    expected = {}
    for split, prefix, count in (("train", "train", 40), ("test", "t10k", 20)):
        # Every image has its own first pixel, by which it is found in the stored order.
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count)
        labels = (np.arange(count) % 10).astype(np.uint8)
        packed = struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        place("mnist", f"{MNIST}{prefix}-images-idx3-ubyte.gz", gzip.compress(packed))
        packed = struct.pack(">2i", 2049, count) + labels.tobytes()
        data_dir = place("mnist", f"{MNIST}{prefix}-labels-idx1-ubyte.gz", gzip.compress(packed))
        expected[split] = images, labels
    for split, (images, labels) in expected.items():
        got = sources.load("mnist", split, image_size=28, data_dir=data_dir)
        order = got.images[:, 0, 0, 0]
        assert sorted(order) == list(range(len(labels)))
        np.testing.assert_array_equal(got.images, np.repeat(images[order][..., None], 3, -1))
        np.testing.assert_array_equal(got.labels, labels[order])
    assert type(tfds.builder("mnist", data_dir=data_dir)) is tfds.builder_cls("mnist")


def test_imagenet_resized(place):
    rng = np.random.default_rng(3)
    expected = {}
    for split, name in (("train", "train_data_batch_1.npz"), ("validation", "val_data.npz")):
        images = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
        images[:, 0, 0, 0] = np.arange(60)
        labels = np.arange(60) * 17 % 1000
        url = f"{IMAGENET}Imagenet32_{'train' if split == 'train' else 'val'}_npz.zip"
        # The labels of the download count from one.
        data_dir = place("imagenet_resized", url, _zip_npz(name, images, labels + 1))
        expected[split] = images, labels
    for split, (images, labels) in expected.items():
        got = sources.load("imagenet_resized/32x32", split, image_size=32, data_dir=data_dir)
        order = got.images[:, 0, 0, 0]
        assert sorted(order) == list(range(60))
        np.testing.assert_array_equal(got.images, images[order])
        np.testing.assert_array_equal(got.labels, labels[order])
        assert got.class_names[0] == "n02119789"

        first = sources.load(
            "imagenet_resized/32x32", split, image_size=32, data_dir=data_dir, num_classes=100
        )
        np.testing.assert_array_equal(first.labels, got.labels[got.labels < 100])
        np.testing.assert_array_equal(first.images, got.images[got.labels < 100])
        assert len(first.class_names) == 100


def test_an_archive_that_is_not_the_catalogues_is_refused(place, tmp_path):
    archive, _, _ = _cifar100_archive(np.random.default_rng(0))
    data_dir = place("cifar100", CIFAR100, archive, register=False)
    with pytest.raises(sources.DataError, match="wrong checksum") as error:
        sources.load("cifar100", "train", image_size=32, data_dir=data_dir)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cifar100" / "3.0.2").exists()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _move(monkeypatch, archive, url):
    """Lets the catalogue's CIFAR-100 live at another address."""
    base = tfds.builder_cls("cifar100")
    info = base._cifar_info.fget(base)._replace(url=url)
    monkeypatch.setattr(base, "_cifar_info", property(lambda self: info))
    monkeypatch.setitem(base.url_infos, url, _info(archive, url.rsplit("/", 1)[1]))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_downloads_from_the_builders_url(tmp_path, monkeypatch):
    archive, splits, _ = _cifar100_archive(np.random.default_rng(4), count=50)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "cifar-100-binary.tar.gz").write_bytes(archive)
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-100-binary.tar.gz"
        _move(monkeypatch, archive, url)
        got = sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path / "data"))
        _move(monkeypatch, archive, url.replace("cifar", "absent"))
        with pytest.raises(sources.DataError, match=r"HTTP code: 404.*put that file into"):
            sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path / "other"))
        server.shutdown()
    np.testing.assert_array_equal(got.images, splits["train"][0])


def test_no_network_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar-100-binary.tar.gz"
        _move(monkeypatch, b"", url)
        with pytest.raises(sources.DataError) as error:
            sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    assert url in message
    assert str(tmp_path / "downloads" / "manual") in message


def test_tensorflow_is_never_imported(place, tmp_path):
    """Preparing where it is missing, and reading where it is installed."""
    archive, _, _ = _cifar100_archive(np.random.default_rng(0))
    data_dir = place("cifar100", CIFAR100, archive)
    info = dataclasses.astuple(_info(archive, "cifar-100-binary.tar.gz"))
    program = f"""
import sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from iamcl2r_jax.data import sources
tfds.builder_cls("cifar100").url_infos[{CIFAR100!r}] = checksums.UrlInfo(*{info!r})
print(len(sources.load("cifar100", "train", image_size=32, data_dir={data_dir!r})))
assert tfds.builder("cifar100", data_dir={data_dir!r}).as_data_source("test")[0]["image"].any()
assert "tensorflow" not in sys.modules
"""
    fake = tmp_path / "fake" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    for path in ("", str(fake.parent)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "200"
        # TFDS's notice when one of its modules asked for TensorFlow and did not find it.
        assert "Failed to import TensorFlow" not in done.stdout


def test_other_sets_keep_the_catalogues_builder(tmp_path):
    builder = tfds.builder("svhn_cropped", data_dir=str(tmp_path))
    assert catalogue.without_tensorflow(builder, str(tmp_path)) is builder
