"""Named data sets as arrays: folders, TFDS sets, and the errors for what is not there."""

import importlib.util
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from iamcl2r_jax.data import catalogue, sources
from iamcl2r_jax.system.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class TinySource(tfds.core.GeneratorBasedBuilder):
    """Twelve greyscale images of 6 by 4; the value of the pixels says which."""

    VERSION = tfds.core.Version("1.0.0")
    generated = 0

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 4, 1)),
                    "label": tfds.features.ClassLabel(names=["zebra", "ant", "cow"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        type(self).generated += 1
        for i in range(count):
            image = Image.fromarray(np.full((6, 4), 10 * i, np.uint8))
            yield i, {"image": image, "label": i % 3}


class NeedsTensorflow(TinySource):
    """Yields an array, which TFDS encodes with TensorFlow."""

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.zeros((6, 4, 1), np.uint8), "label": i % 3}


class BreaksOnTheWay(TinySource):
    """Fails after the first examples are written."""

    def _generate_examples(self, count):
        yield from list(super()._generate_examples(count))[:2]
        raise RuntimeError("first line\nsecond line")


class OpensWithAPackage(TinySource):
    """A set whose description already needs a package that is not there."""

    def _info(self):
        import no_such_package  # noqa: F401


class OpensWithTensorflow(TinySource):
    """A set whose description already needs TensorFlow, as that of COCO."""

    def _info(self):
        raise ImportError("No module named 'tensorflow'", name="tensorflow")


class Unlabelled(TinySource):
    """A split without labels, as some of the catalogue's test splits are."""

    def _generate_examples(self, count):
        for key, example in super()._generate_examples(count):
            yield key, {**example, "label": -1}


def _save(path, color, *, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


def _error(name, split="train", **options):
    """The message of the error that `load` raises, which must be one line."""
    with pytest.raises(InputError) as error:
        sources.load(name, split, **{"image_size": 8, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    """Two splits; the classes are named so that creation and sorted order differ."""
    root = tmp_path / "pictures"
    _save(root / "train" / "zebra" / "2.jpg", RED)
    _save(root / "train" / "zebra" / "10.bmp", GREEN)
    _save(root / "train" / "ant" / "b.png", BLUE)
    _save(root / "train" / "ant" / "a.PNG", RED)
    _save(root / "test" / "zebra" / "1.png", RED)
    _save(root / "test" / "zebra" / "2.png", RED)
    return root


def test_folder(folder):
    name = f"folder:{folder}"
    assert sources.describe(name) == sources.Description(("ant", "zebra"), ("test", "train"))
    train = sources.load(name, "train", image_size=8)
    assert (train.images.dtype, train.images.shape) == (np.uint8, (4, 8, 8, 3))
    assert train.labels.dtype == np.int32
    assert train.class_names == ("ant", "zebra")
    # Classes sorted, then files by name as text: a.PNG, b.png, 10.bmp, 2.jpg.
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1])
    np.testing.assert_allclose(train.images[:, 4, 4], [RED, BLUE, GREEN, RED], atol=2)


def test_a_label_means_the_same_in_every_split_of_a_folder(folder):
    test = sources.load(f"folder:{folder}", "test", image_size=8)
    np.testing.assert_array_equal(test.labels, [1, 1])
    assert test.class_names == ("ant", "zebra")


def test_folder_ignores_what_is_no_image(folder):
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    (folder / "train" / "ant" / ".hidden.png").write_text("not an image")
    (folder / "train" / "README.md").write_text("not a class")
    (folder / ".git").mkdir()
    assert len(sources.load(f"folder:{folder}", "train", image_size=8)) == 4
    assert sources.describe(f"folder:{folder}").splits == ("test", "train")


def _as_loaded(tmp_path, image, size=8, **options):
    path = tmp_path / "s" / "c" / "image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    loaded = sources.load(f"folder:{tmp_path}", "s", image_size=size, min_per_class=1)
    return loaded.images[0]


def test_greyscale_is_repeated(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    loaded = _as_loaded(tmp_path, Image.fromarray(pixels))
    np.testing.assert_array_equal(loaded, np.repeat(pixels[..., None], 3, -1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    pixels = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    loaded = _as_loaded(tmp_path, Image.fromarray(pixels))
    np.testing.assert_array_equal(loaded[..., 0], pixels >> 8)


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (0, 0, 4, 8))
    loaded = _as_loaded(tmp_path, image, transparency=0)
    assert (loaded[:, :4] == BLUE).all()
    assert (loaded[:, 4:] == 255).all()
    loaded = _as_loaded(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    np.testing.assert_allclose(loaded, 127, atol=1)


@pytest.mark.parametrize("size", [(24, 8), (9, 30), (7, 7), (41, 40)])
def test_odd_sizes_keep_the_middle_and_its_aspect_ratio(tmp_path, size):
    # Red, with a green square, as large as fits, in the middle.
    side = min(size)
    image = Image.new("RGB", size, RED)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste(GREEN, (left, top, left + side, top + side))
    loaded = _as_loaded(tmp_path, image, size=16)
    assert loaded.shape == (16, 16, 3)
    assert (loaded[2:-2, 2:-2] == GREEN).all()


def test_camera_orientation_is_respected(tmp_path):
    image = Image.new("RGB", (8, 8), RED)
    image.paste(GREEN, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    loaded = _as_loaded(tmp_path, image, exif=exif)
    assert (loaded[:4] == RED).all()
    assert (loaded[4:] == GREEN).all()


def test_unreadable_file_is_named(folder):
    bad = folder / "train" / "zebra" / "broken.png"
    cut_off = (folder / "test" / "zebra" / "1.png").read_bytes()[:50]
    for content in (b"", b"GIF87a, but not really", cut_off):
        bad.write_bytes(content)
        assert str(bad) in _error(f"folder:{folder}")
    bad.unlink()
    Image.new("F", (8, 8), 0.5).save(bad.with_suffix(".tif"))
    assert "mode 'F' have no known range" in _error(f"folder:{folder}")


def test_class_with_too_few_images(folder):
    (folder / "train" / "ant" / "b.png").rename(folder / "train" / "ant" / "b.heic")
    message = _error(f"folder:{folder}", min_per_class=2)
    assert "'ant' has 1 image(s), 1 other file (.heic 1) passed over, at least 2" in message
    # A gallery may hold one image per class.
    assert len(sources.load(f"folder:{folder}", "train", image_size=8)) == 3
    (folder / "train" / "ant" / "a.PNG").unlink()
    assert "'ant' has 0 image" in _error(f"folder:{folder}")


@pytest.mark.parametrize("kind", ["jfif", "jpe", "avif", "webp", "jp2", "tga", "ico"])
def test_what_pillow_reads_is_read(folder, kind):
    Image.init()
    if f".{kind}" not in Image.registered_extensions():
        pytest.skip(f"Pillow has no plugin for {kind} here")
    _save(folder / "train" / "ant" / f"c.{kind}", BLUE)
    images = sources.load(f"folder:{folder}", "train", image_size=8).images
    np.testing.assert_allclose(images[2, 4, 4], BLUE, atol=8)
    assert not sources.passed_over(f"folder:{folder}", "train")


def test_no_other_program_is_asked_to_draw_an_image(folder):
    """Pillow would hand it to Ghostscript."""
    Image.new("RGB", (8, 8)).save(folder / "train" / "ant" / "c.png", "EPS")
    assert "c.png is unreadable (cannot identify image file" in _error(f"folder:{folder}")


def test_what_is_passed_over_is_counted(folder):
    assert sources.passed_over(f"folder:{folder}", "train") == ""
    for name in ("a.HEIC", "b.heic", "notes.txt", "LICENSE", "more/1.png", "raw/1.png"):
        file = folder / "train" / "ant" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("?")
    (folder / "train" / "zebra" / "c.heic").write_text("?")
    assert sources.passed_over(f"folder:{folder}", "train") == (
        f"data set 'folder:{folder}', split 'train': "
        "5 other files (.heic 3, .txt 1, without an ending 1) and 2 subfolders passed over"
    )
    assert sources.passed_over(f"folder:{folder}", "test") == ""
    assert sources.passed_over("tiny_source", "train") == ""


def test_what_systems_leave_in_folders_does_not_count(folder):
    name = f"folder:{folder}"
    known = sources.describe(name), sources.load(name, "train", image_size=8).digest()
    for place in (folder, folder / "train", folder / "train" / "ant"):
        for file in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini"):
            (place / file).write_bytes(b"\0other")
        for directory in ("@eaDir", "__MACOSX", "lost+found"):
            (place / directory).mkdir()
            (place / directory / "a.png").write_bytes(b"\0other")
    assert (sources.describe(name), sources.load(name, "train", image_size=8).digest()) == known
    assert sources.passed_over(name, "train") == ""


def test_what_cannot_be_read_is_not_called_broken(folder):
    file = folder / "train" / "ant" / "b.png"
    file.unlink()
    file.symlink_to(file.name)  # opening it is an error, for root as well
    message = _error(f"folder:{folder}")
    assert f"{file} cannot be read (" in message
    assert "remove" not in message


def test_paths_that_glob_takes_for_patterns(folder, tmp_path):
    place = tmp_path / "[a]*?"
    folder.rename(place)
    assert len(sources.load(f"folder:{place}", "train", image_size=8)) == 4
    for _ in range(2):  # prepares, and reads
        loaded = sources.load("tiny_source", "train", image_size=4, data_dir=str(place))
        assert len(loaded) == 12


def test_empty_folders(tmp_path):
    assert "is not a directory" in _error(f"folder:{tmp_path / 'absent'}")
    assert "is not a directory" in _error("folder:")
    name = f"folder:{tmp_path}"
    assert "has no splits" in _error(name)
    (tmp_path / "train").mkdir()
    assert "has no classes" in _error(name)
    _save(tmp_path / "test" / "ant" / "1.png", RED)
    _save(tmp_path / "test" / "ant" / "2.png", RED)
    assert "'train' is empty" in _error(name)
    assert "its splits are test, train" in _error(name, "validation")


def test_tfds_set(tmp_path):
    train = sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    assert (train.images.dtype, train.images.shape) == (np.uint8, (12, 4, 4, 3))
    assert train.labels.dtype == np.int32
    # Class names in the data set's order, not sorted.
    assert train.class_names == ("zebra", "ant", "cow")
    number = train.images[:, 0, 0, 0] // 10
    assert sorted(number) == list(range(12))
    assert (train.images == train.images[:, :1, :1, :1]).all()
    np.testing.assert_array_equal(train.labels, number % 3)


def test_nothing_is_left_among_the_temporary_files(tmp_path, monkeypatch):
    temporary, data_dir = tmp_path / "temporary", str(tmp_path / "data")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sources.describe("tiny_source", data_dir=data_dir)
    sources.load("tiny_source", "train", image_size=4, data_dir=data_dir)
    _error("breaks_on_the_way", data_dir=data_dir)
    with catalogue.without_leftovers():
        builder = tfds.builder("cifar100", data_dir=data_dir)
    catalogue.without_tensorflow(builder, data_dir)
    assert not list(temporary.iterdir())


def test_tfds_set_is_prepared_once_and_read_in_one_order(tmp_path):
    TinySource.generated = 0
    before = sources.describe("tiny_source", data_dir=str(tmp_path))
    assert before == sources.Description(("zebra", "ant", "cow"), ())
    assert not (tmp_path / "tiny_source").exists()
    first = sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    assert TinySource.generated == 2  # one per split
    again = sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    assert TinySource.generated == 2
    assert sources.describe("tiny_source", data_dir=str(tmp_path)).splits == ("test", "train")
    # A second preparation elsewhere stores the same order.
    other = sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path / "other"))
    for images in (again.images, other.images):
        np.testing.assert_array_equal(first.images, images)


def test_tfds_slices_and_first_classes(tmp_path):
    whole = sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    part = sources.load("tiny_source", "train[:5]", image_size=4, data_dir=str(tmp_path))
    np.testing.assert_array_equal(part.images, whole.images[:5])
    first = sources.load(
        "tiny_source", "train", image_size=4, data_dir=str(tmp_path), num_classes=2
    )
    np.testing.assert_array_equal(first.images, whole.images[whole.labels < 2])
    assert first.class_names == ("zebra", "ant")
    for count in (0, 4):
        message = _error("tiny_source", data_dir=str(tmp_path), num_classes=count)
        assert message.startswith(f"num_classes={count}")


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("cifar101", "train", "near it: cifar10_1, cifar10, cifar100"),
        ("two words", "train", "malformed"),
        ("", "train", "malformed"),
        ("1e999", "train", "malformed"),
        ("mnist:1", "train", "malformed"),
        ("٣", "train", "malformed"),
        ("mnist/foo", "train", "has no configuration 'foo'"),
        ("imagenet_resized/33x33", "train", "8x8, 16x16, 32x32, 64x64"),
        ("imdb_reviews", "train", "its features are text, label"),
        ("tiny_source", "dev", "its splits are test, train"),
        ("tiny_source", "train[", "its splits are test, train"),
        ("tiny_source", "train[:0]", "is empty"),
        ("unlabelled", "train", "without a label"),
        ("mnist:1.0.0", "train", "there is no such version of it, only 3.0.1"),
        ("tiny_source:2.0.0", "train", "there is no such version of it, only 1.0.0"),
        ("opens_with_a_package", "train", "cannot be opened: install the package no_such_package"),
        ("opens_with_tensorflow", "train", "needs TensorFlow to be prepared, once: pip install"),
    ],
)
def test_tfds_errors(tmp_path, name, split, expected):
    """None of them is damage, and nothing is to be removed for it."""
    message = _error(name, split, data_dir=str(tmp_path))
    assert expected in message
    assert "damaged" not in message
    assert "remove" not in message


def test_a_bucket_without_the_package_for_it(tmp_path):
    message = _error("tiny_source", data_dir="gs://bucket/sets")
    assert "cannot be opened: " in message
    assert "gcsfs" in message


def test_records_that_cannot_be_read_are_not_called_damaged(tmp_path):
    sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    (file,) = (tmp_path / "tiny_source").rglob("*-train.array_record*")
    file.unlink()
    file.symlink_to(file.name)
    message = _error("tiny_source", data_dir=str(tmp_path))
    assert f"{file} cannot be read (" in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("glyphs/tiny_stream", 52), ("glyphs/tiny_digits", 10), ("handwriting", 10)],
)
def test_own_builders_are_found(tmp_path, name, num_classes):
    description = sources.describe(name, data_dir=str(tmp_path))
    assert len(description.class_names) == num_classes
    assert not list(tmp_path.iterdir())


def test_image_size_must_be_positive(tmp_path):
    assert "image_size=0" in _error("tiny_source", image_size=0, data_dir=str(tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="TensorFlow is installed",
)
def test_tensorflow_needed_to_prepare_names_the_extra(tmp_path):
    assert "[prepare]" in _error("needs_tensorflow", data_dir=str(tmp_path))


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    assert "first line second line" in _error("breaks_on_the_way", data_dir=str(tmp_path))
    assert not list((tmp_path / "breaks_on_the_way").iterdir())


def test_a_set_that_another_process_prepared_meanwhile_is_used(tmp_path, monkeypatch):
    """Both write aside; the second finds the place taken when it renames."""
    prepare = TinySource._download_and_prepare

    def overtaken(self, **options):
        prepare(self, **options)
        monkeypatch.undo()
        sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))

    monkeypatch.setattr(TinySource, "_download_and_prepare", overtaken)
    assert len(sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))) == 12


def test_a_set_stored_for_tensorflow_only(tmp_path):
    sources.load("tiny_source", "train", image_size=4, data_dir=str(tmp_path))
    builder = tfds.builder("tiny_source", data_dir=str(tmp_path))
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "stored as tfrecord" in _error("tiny_source", data_dir=str(tmp_path))


def _numbered(labels, num_classes):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    names = tuple(f"class{c}" for c in range(num_classes))
    return sources.ImageSet(images, np.array(labels, np.int32), names)


def test_limit_per_class_keeps_the_first_of_each():
    given = _numbered([2, 0, 2, 2, 1, 0, 2], num_classes=4)
    limited = sources.limit_per_class(given, 2)
    np.testing.assert_array_equal(limited.labels, [2, 0, 2, 1, 0])
    np.testing.assert_array_equal(limited.images[:, 0, 0, 0], [0, 1, 2, 4, 5])
    assert limited.class_names == given.class_names
    assert sources.limit_per_class(given, None) is given
    with pytest.raises(InputError, match="limit_per_class=0"):
        sources.limit_per_class(given, 0)


def test_select_classes_relabels_in_the_order_asked_for():
    given = _numbered([2, 0, 2, 3, 1, 0], num_classes=4)
    selected = sources.select_classes(given, [3, 0])
    np.testing.assert_array_equal(selected.images[:, 0, 0, 0], [1, 3, 5])
    np.testing.assert_array_equal(selected.labels, [1, 0, 1])
    assert selected.labels.dtype == np.int32
    assert selected.class_names == ("class3", "class0")
