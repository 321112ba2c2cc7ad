"""Decoded images that are kept beside a data set: the same arrays, or decoded once more."""

import os

import numpy as np
import pytest

from iamcl2r_jax.data import decoded, images, sources


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A prepared data set, `load(**options)` and the number of images that were decoded."""
    calls = []

    def counted(*args, decode=images.decode, **kwargs):
        calls.append(args)
        return decode(*args, **kwargs)

    monkeypatch.setattr(images, "decode", counted)

    def load(**options):
        calls.clear()
        options = {"split": "test", "image_size": 8} | options
        loaded = sources.load("glyphs/tiny_digits", data_dir=str(tmp_path), **options)
        return loaded, len(calls)

    load()
    return tmp_path / "glyphs" / "tiny_digits" / "2.0.0", load


def kept(place):
    return sorted((place / decoded.DIRECTORY).iterdir())


def test_the_next_load_decodes_nothing_and_gives_the_same(world):
    place, load = world
    found, number = load()
    assert number == 0
    (file,) = kept(place)
    file.unlink()
    expected, number = load()
    assert number == len(expected) == 100
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.class_names == expected.class_names


@pytest.mark.parametrize(
    ("options", "number"),
    [({"image_size": 9}, 100), ({"split": "test[:10%]"}, 10), ({"num_classes": 3}, 30)],
)
def test_each_way_to_load_has_its_own(world, options, number):
    place, load = world
    assert load(**options)[1] == number
    assert load(**options)[1] == 0
    assert load()[1] == 0
    assert len(kept(place)) == 2


def test_other_files_of_the_data_set_are_decoded(world):
    place, load = world
    os.utime(place / "dataset_info.json", ns=(1, 1))
    assert load()[1] == 100


@pytest.mark.parametrize("seed", range(5))
def test_damage_is_noticed(world, seed):
    place, load = world
    expected, _ = load()
    (file,) = kept(place)
    rng, content = np.random.default_rng(seed), bytearray(file.read_bytes())
    content[rng.integers(len(content) // 4, len(content) // 2)] ^= 1 << rng.integers(8)
    file.write_bytes(content if seed else content[: len(content) // 2])
    found, number = load()
    assert number == 100
    np.testing.assert_array_equal(found.images, expected.images)
    assert load()[1] == 0


def test_what_cannot_be_written_is_not_kept(world):
    place, load = world
    (file,) = kept(place)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert load()[1] == load()[1] == 100
    assert not [child for child in place.iterdir() if child.name.startswith(".")]


def test_large_sets_are_not_kept(world, monkeypatch):
    _, load = world
    monkeypatch.setattr(decoded, "LARGEST", 100 * 9 * 9 * 3 - 1)
    assert load(image_size=9)[1] == load(image_size=9)[1] == 100
