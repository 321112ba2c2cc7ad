"""Catalogue data sets prepared from small archives in the byte format of the real downloads."""

import dataclasses
import functools
import gzip
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading

import archives
import numpy as np
import pytest
import tensorflow_datasets as tfds

from iamcl2r_jax.data import catalogue, sources
from iamcl2r_jax.system.errors import InputError

place = archives.place  # a fixture


def test_cifar100_is_read_by_the_catalogues_builder(place):
    archive, splits, names = archives.cifar100(np.random.default_rng(0))
    data_dir = place("cifar100", archives.CIFAR100, archive)
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
    data_dir = place("cifar100", archives.CIFAR100, archives.cifar100(np.random.default_rng(0))[0])
    sources.load("cifar100", "test", image_size=32, data_dir=data_dir)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*incomplete*"))


def test_class_names_are_known_once_prepared(place):
    archive, _, names = archives.cifar100(np.random.default_rng(0))
    data_dir = place("cifar100", archives.CIFAR100, archive)
    before = sources.describe("cifar100", data_dir=data_dir)
    assert (len(before.class_names), before.splits) == (100, ())
    sources.load("cifar100", "test", image_size=32, data_dir=data_dir)
    after = sources.describe("cifar100", data_dir=data_dir)
    assert (after.class_names, set(after.splits)) == (names, {"train", "test"})


def test_cifar10(place):
    rng = np.random.default_rng(1)
    archive, splits, names = archives.cifar10(rng)
    data_dir = place("cifar10", archives.CIFAR10, archive)
    for split, (images, labels) in splits.items():
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
        url = f"{archives.MNIST}{prefix}-images-idx3-ubyte.gz"
        place("mnist", url, gzip.compress(packed))
        packed = struct.pack(">2i", 2049, count) + labels.tobytes()
        url = f"{archives.MNIST}{prefix}-labels-idx1-ubyte.gz"
        data_dir = place("mnist", url, gzip.compress(packed))
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
        archive = archives.imagenet32(name, images, labels)
        data_dir = place("imagenet_resized", archives.IMAGENET32[split], archive)
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


def test_caltech_birds(place):
    photographs, masks, expected = archives.birds(np.random.default_rng(5))
    place("caltech_birds2011", archives.BIRDS, photographs)
    data_dir = place("caltech_birds2011", archives.BIRD_MASKS, masks)
    for split in ("train", "test"):
        got = sources.load("caltech_birds2011", split, image_size=16, data_dir=data_dir)
        # Every photograph has its own grey, by which it is found in the stored order.
        found = sorted(zip(got.images.mean((1, 2, 3)).round(-1), got.labels, strict=True))
        assert found == [
            (10 * number, label)
            for number, (part, label, *_) in enumerate(expected.values(), 1)
            if part == split
        ]
        assert len(got.class_names) == 200

    builder = tfds.builder("caltech_birds2011", data_dir=data_dir)
    assert type(builder) is tfds.builder_cls("caltech_birds2011")
    read = {
        e["image/filename"].decode(): e
        for s in ("train", "test")
        for e in builder.as_data_source(s)
    }
    assert read.keys() == expected.keys()
    for name, (_, label, label_name, size, box, mask) in expected.items():
        example = read[name]
        left, top, width, height = box
        assert (example["label"], example["label_name"].decode()) == (label, label_name)
        assert example["image"].shape[:2] == size
        ends = np.divide([top, left, top + height, left + width], [*size, *size])
        np.testing.assert_allclose(example["bbox"], np.minimum(ends, 1), rtol=1e-6)
        np.testing.assert_array_equal(example["segmentation_mask"][..., 0], mask)


def test_celeb_a_has_no_classes_in_the_catalogue(tmp_path):
    with pytest.raises(InputError, match=r"no pair of an 8-bit image and a class label"):
        sources.load("celeb_a", "train", image_size=8, data_dir=str(tmp_path))


def test_an_archive_that_is_not_the_catalogues_is_refused(place, tmp_path):
    archive, _, _ = archives.cifar100(np.random.default_rng(0))
    data_dir = place("cifar100", archives.CIFAR100, archive, register=False)
    with pytest.raises(InputError, match="wrong checksum") as error:
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
    monkeypatch.setitem(base.url_infos, url, archives.url_info(archive, url.rsplit("/", 1)[1]))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_downloads_from_the_builders_url(tmp_path, monkeypatch):
    archive, splits, _ = archives.cifar100(np.random.default_rng(4), train=50)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "cifar-100-binary.tar.gz").write_bytes(archive)
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-100-binary.tar.gz"
        _move(monkeypatch, archive, url)
        got = sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path / "data"))
        _move(monkeypatch, archive, url.replace("cifar", "absent"))
        with pytest.raises(InputError, match=r"HTTP code: 404.*put that file into"):
            sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path / "other"))
        server.shutdown()
    np.testing.assert_array_equal(got.images, splits["train"][0])


def test_no_network_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar-100-binary.tar.gz"
        _move(monkeypatch, b"", url)
        with pytest.raises(InputError) as error:
            sources.load("cifar100", "train", image_size=32, data_dir=str(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    assert url in message
    assert str(tmp_path / "downloads" / "manual") in message


def test_tensorflow_is_never_imported(place, tmp_path):
    """Preparing where it is missing, and reading where it is installed."""
    archive, _, _ = archives.cifar100(np.random.default_rng(0))
    data_dir = place("cifar100", archives.CIFAR100, archive)
    info = dataclasses.astuple(archives.url_info(archive, "cifar-100-binary.tar.gz"))
    program = f"""
import sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from iamcl2r_jax.data import sources
tfds.builder_cls("cifar100").url_infos[{archives.CIFAR100!r}] = checksums.UrlInfo(*{info!r})
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
    with catalogue.without_leftovers():
        builder = tfds.builder("svhn_cropped", data_dir=str(tmp_path))
    assert catalogue.without_tensorflow(builder, str(tmp_path)) is builder
