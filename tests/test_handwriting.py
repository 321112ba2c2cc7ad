"""The handwriting set: all scans, none changed, split as documented."""

import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from iamcl2r_jax.data import catalogue, rendering
from iamcl2r_jax.data.handwriting import Handwriting

TOP, LEFT, SIDE = rendering.BASELINE - 16, 8, 16  # where a scan stands


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    with catalogue.without_leftovers():
        builder = Handwriting(data_dir=tmp_path_factory.mktemp("handwriting"))
    builder.download_and_prepare(file_format="array_record")
    assert builder.info.features["label"].names == [str(i) for i in range(10)]
    assert "tensorflow" not in sys.modules
    examples = {name: list(builder.as_data_source(name)) for name in ("train", "test")}
    return {
        name: (np.stack([e["image"] for e in split]), np.array([e["label"] for e in split]))
        for name, split in examples.items()
    }


@pytest.fixture(scope="module")
def scans():
    return load_digits()


def shrunk(images):
    """The scans [N, 8, 8], values 0..16, that images show: the means of 2x2 pixels."""
    grey = images[:, TOP : TOP + SIDE, LEFT : LEFT + SIDE, 0]
    return 16 * (1 - grey.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)) / 255)


@pytest.fixture(scope="module")
def sources(splits, scans):
    """Of each split, the indices of the scans that its images resemble most."""
    return {
        name: cdist(shrunk(images).reshape(-1, 64), scans.data).argmin(axis=1)
        for name, (images, _) in splits.items()
    }


def test_images(splits):
    for images, _ in splits.values():
        assert images.shape[1:] == (32, 32, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images[..., 0], images[..., 1])
        np.testing.assert_array_equal(images[..., 0], images[..., 2])
        outside = np.ones((32, 32), bool)
        outside[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = False
        assert (images[:, outside] == 255).all()


def test_every_scan_is_in_one_split(sources):
    found = np.concatenate(list(sources.values()))
    np.testing.assert_array_equal(np.sort(found), np.arange(1797))


def test_labels_and_split(splits, sources, scans):
    for name, (_, labels) in splits.items():
        np.testing.assert_array_equal(labels, scans.target[sources[name]])
        for digit in range(10):
            of_class = np.flatnonzero(scans.target == digit)
            expected = of_class[::3] if name == "test" else np.delete(of_class, np.s_[::3])
            np.testing.assert_array_equal(np.sort(sources[name][labels == digit]), expected)


def test_an_image_shows_its_scan(splits, sources, scans):
    # Bicubic enlargement by two samples a quarter of a scan pixel off its centre. The mean of the
    # two samples gives the scan pixel itself this weight, the next ones and those after them these:
    weights = np.array([-0.0117, 0.0781, 0.8672, 0.0781, -0.0117])
    change = np.outer(weights, weights)
    change[2, 2] -= 1
    # Hence the largest change that any scan could suffer, and what rounding to 8 bits adds.
    bound = 16 * max(change[change > 0].sum(), -change[change < 0].sum()) + 16 / 255
    assert bound < 5
    for name, (images, _) in splits.items():
        difference = np.abs(shrunk(images) - scans.images[sources[name]])
        assert difference.max() < bound
        assert difference.mean() < 1  # of 16 levels


def test_polarity(splits):
    for images, _ in splits.values():
        assert np.median(images) == 255  # paper
        assert images.min() == 0  # ink
