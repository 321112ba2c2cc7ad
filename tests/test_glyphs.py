"""The glyph sets: reproducible, complete, readable, and no class drawn like another."""

import dataclasses
import string
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.spatial.distance import cdist

from iamcl2r_jax.data import alphabets, catalogue, drawing, rendering
from iamcl2r_jax.data.glyphs import Glyphs, GlyphsConfig

CLASSES = alphabets.LATIN + alphabets.DIGITS + alphabets.POOL
CHARACTERS = ("A", "l", "7", "ђ", "☆")
TRAIN, TEST = 6, 4


def prepare(data_dir, **changes):
    """Prepares a tiny configuration; returns its builder."""
    options = {"characters": CHARACTERS, "train_per_class": TRAIN, "test_per_class": TEST}
    config = GlyphsConfig(name="tiny", **options | changes)
    with catalogue.without_leftovers():
        builder = Glyphs(config=config, data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    return builder


def read(builder, split):
    """Decoded images [N, 32, 32, 3] and labels [N] in the order on disk."""
    examples = list(builder.as_data_source(split))
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def pixels_by_character(builder, split):
    images, labels = read(builder, split)
    names = builder.info.features["label"].names
    return {n: {im.tobytes() for im in images[labels == i]} for i, n in enumerate(names)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_preparations_are_identical(tiny, tmp_path, split):
    images, labels = read(tiny, split)
    images_again, labels_again = read(prepare(tmp_path), split)
    np.testing.assert_array_equal(images, images_again)
    np.testing.assert_array_equal(labels, labels_again)


def test_another_seed_gives_other_images(tiny, tmp_path):
    ours, others = (pixels_by_character(b, "train") for b in (tiny, prepare(tmp_path, seed=1)))
    assert all(ours[c].isdisjoint(others[c]) for c in CHARACTERS)


def test_another_version_gives_other_images(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Glyphs, "VERSION", tfds.core.Version("9.0.0"))
    ours, others = (pixels_by_character(b, "train") for b in (tiny, prepare(tmp_path)))
    assert all(ours[c].isdisjoint(others[c]) for c in CHARACTERS)


def test_an_image_depends_on_no_other(tiny, tmp_path):
    fewer = prepare(tmp_path, characters=("☆", "A"), train_per_class=3)
    ours, subset = pixels_by_character(tiny, "train"), pixels_by_character(fewer, "train")
    assert all(subset[c] < ours[c] for c in ("☆", "A"))


def test_contents(tiny):
    for split, per_class in (("train", TRAIN), ("test", TEST)):
        images, labels = read(tiny, split)
        assert images.shape == (per_class * len(CHARACTERS), 32, 32, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), [per_class] * len(CHARACTERS))
    assert tiny.info.features["label"].names == list(CHARACTERS)
    assert "tensorflow" not in sys.modules


def test_splits_are_disjoint_and_free_of_repeats(tiny):
    drawn = [im.tobytes() for split in ("train", "test") for im in read(tiny, split)[0]]
    assert len(set(drawn)) == len(CHARACTERS) * (TRAIN + TEST)


def test_no_image_depends_on_the_number_of_processes():
    def drawn(processes):
        arguments = (CHARACTERS, 3, rendering.VARIED, "any", "identity")
        return list(drawing.draw_classes(*arguments, processes=processes))

    assert drawn(1) == drawn(2)


def test_strengths_differ(tiny, tmp_path):
    clean = prepare(tmp_path, variation=rendering.CLEAN)
    ours, others = (pixels_by_character(b, "train") for b in (tiny, clean))
    assert all(ours[c].isdisjoint(others[c]) for c in CHARACTERS)


def test_without_variation_all_images_of_a_face_are_one_drawing():
    none = rendering.Variation(
        **{f.name: 0 for f in dataclasses.fields(rendering.Variation) if f.type in (float, int)}
    )
    rng = np.random.default_rng(0)
    images = [
        np.asarray(rendering.random_image(("DejaVuSans",), "B", rng, none, ("☆",)))
        for _ in range(8)
    ]
    ink = rendering.draw("DejaVuSans", "B").reduce(2).crop((4, 4, 36, 36))
    expected = np.repeat(np.asarray(ink)[..., None], 3, axis=-1)
    # Black on white, or white on black.
    assert {image.tobytes() for image in images} == {expected.tobytes(), (255 - expected).tobytes()}


def test_clutter_and_cover_are_drawn():
    plain = dataclasses.replace(rendering.CLEAN, noise=0, gradient=0)
    covered = dataclasses.replace(plain, cover_probability=1.0, cover_side=(32, 32))
    cluttered = dataclasses.replace(plain, clutter=2)

    def colours(variation):
        rng = np.random.default_rng(0)
        image = rendering.random_image(("DejaVuSans",), "l", rng, variation, ("☆",))
        return len(np.unique(np.asarray(image).reshape(-1, 3), axis=0))

    assert colours(covered) == 1
    assert colours(cluttered) > colours(plain)


def test_ink_stands_out_from_the_ground():
    plain = dataclasses.replace(rendering.CLEAN, noise=0, gradient=0)
    rng = np.random.default_rng(0)
    for character in CLASSES:
        image = rendering.random_image(alphabets.faces(character), character, rng, plain)
        dark, light = image.convert("L").getextrema()
        # The two colours differ by this at least; blur leaves half of it in the thinnest strokes.
        least = 255 * (1 - 2 * plain.colour_range)
        assert light - dark > least / 2, character


def test_configurations():
    configs = {c.name: c for c in Glyphs.BUILDER_CONFIGS}
    classes = {name: configs[name].characters for name in ("external", "stream", "unseen")}
    assert {name: len(characters) for name, characters in classes.items()} == {
        "external": 600,
        "stream": 100,
        "unseen": 100,
    }
    assert configs["digits"].characters == tuple("0123456789")
    assert set(string.ascii_letters) < set(classes["stream"])
    roles = [*classes.values(), configs["digits"].characters, alphabets.CLUTTER]
    assert len(set().union(*roles)) == sum(map(len, roles))  # none in two roles
    assert configs["stream"].train_per_class == 300
    for name, config in configs.items():
        assert config.train_per_class > 0
        assert config.test_per_class > 0
        clean, tiny = name.endswith("_clean"), name.startswith("tiny_")
        assert config.variation == (rendering.CLEAN if clean or tiny else rendering.VARIED)
        if clean:
            assert config.characters == configs[name.removesuffix("_clean")].characters
        if tiny:
            assert len(config.characters) * config.train_per_class <= 3_200


@pytest.mark.parametrize("n", [100, 300, 600])
def test_a_prefix_of_the_external_classes_holds_every_script(n):
    def counts(characters):
        return np.array(
            [len(set(script) & set(characters)) for script in alphabets.SCRIPTS.values()]
        )

    expected = counts(alphabets.EXTERNAL) * n / 600
    np.testing.assert_allclose(counts(alphabets.EXTERNAL[:n]), expected, atol=2)
    assert counts(alphabets.EXTERNAL).sum() == 600


def test_every_class_is_drawn_whole_in_every_face_it_uses():
    for character in CLASSES:
        faces = alphabets.faces(character)
        assert len(faces) >= 3, character
        for face in faces:
            ink = np.asarray(rendering.draw(face, character)) > 127
            frame = ink[8:-8, 8:-8]  # without the margin, at twice the final resolution
            assert frame.sum() >= 40, (character, face)
            assert frame.sum() == ink.sum(), (character, face)


def test_no_class_is_the_box_of_a_missing_character():
    missing = "\U0010fffd"
    for face in rendering.FACES:
        assert not rendering.has_character(face, missing)
        box = rendering._font(face).getmask(missing)
        for character in CLASSES:
            if face in alphabets.faces(character):
                mask = rendering._font(face).getmask(character)
                assert mask.size != box.size or bytes(mask) != bytes(box), (character, face)


def overlap(face, characters, *, fitted=False):
    """How alike drawings of one face are: intersection over union of their ink.

    All share one em size and one baseline and are centred as in the images, at the resolution of
    the images, so that a letter and its larger capital differ.

    With `fitted` each drawing is enlarged until its ink fills the frame, so that size and place do
    not count. [C, C] in [0, 1]; 1 for the same drawing.
    """
    shrink = enlarged if fitted else lambda drawing: drawing.reduce(2)
    ink = np.stack(
        [np.asarray(shrink(rendering.draw(face, c)), np.float64).ravel() for c in characters]
    )
    # With a + b = sum and |a - b| = difference: min = (sum - difference) / 2, max with plus.
    difference = cdist(ink, ink, "cityblock")
    total = ink.sum(axis=1)
    both = np.add.outer(total, total)
    return (both - difference) / (both + difference)


def enlarged(drawing):
    """The ink of a drawing in the middle of a 32x32 frame, its longer side that of the frame."""
    ink = drawing.crop(drawing.getbbox())
    size = [max(1, round(side * rendering.IMAGE_SIZE / max(ink.size))) for side in ink.size]
    frame = Image.new("L", (rendering.IMAGE_SIZE, rendering.IMAGE_SIZE))
    corner = [(rendering.IMAGE_SIZE - side) // 2 for side in size]
    frame.paste(ink.resize(size, Image.Resampling.BILINEAR), tuple(corner))
    return frame


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("face", ["DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"])
def test_no_two_classes_are_alike(face, fitted):
    held = [c for c in CLASSES if face in alphabets.faces(c)]
    overlaps = overlap(face, held, fitted=fitted)
    given = np.array([c.isascii() and c.isalnum() for c in held])  # letters and digits
    np.fill_diagonal(overlaps, 0)
    assert np.max(overlaps[~given]) <= 0.65
    if not fitted:
        assert np.max(overlaps) < 0.95


@pytest.mark.parametrize("pair", ["AΑ", "AА", "ΠП", "oο"])
def test_overlap_finds_twins(pair):
    faces = [f for f in rendering.FACES if all(rendering.has_character(f, c) for c in pair)]
    assert np.median([overlap(f, pair)[0, 1] for f in faces]) > 0.85
    assert set(pair) - set(CLASSES)


def test_overlap_of_a_known_case():
    # The bar of a minus lies within that of a plus: the overlap is the ratio of their ink.
    def ink(character):
        return np.asarray(rendering.draw("DejaVuSans", character), float).sum()

    same, other = overlap("DejaVuSans", "+−")[0]
    assert same == 1
    assert other == pytest.approx(ink("−") / ink("+"), rel=0.01)


@pytest.mark.parametrize("pair", ["Cc", "Oo", "Ss", "Vv", "Ww", "Xx", "Zz"])
def test_size_tells_capitals_from_small_letters_in_clean_images(pair):
    def height(face, character):
        return np.ptp(np.nonzero(np.asarray(rendering.draw(face, character)) > 127)[0]) + 1

    for face in set(alphabets.faces(pair[0])) & set(alphabets.faces(pair[1])):
        smallest_capital = height(face, pair[0]) * (1 - rendering.CLEAN.scale)
        assert height(face, pair[1]) * (1 + rendering.CLEAN.scale) < smallest_capital, face


def test_capitals_are_of_one_height_in_all_faces():
    for face in rendering.FACES:
        top, bottom = rendering.draw(face, "H").getbbox()[1::2]
        assert (bottom - top) / 2 == pytest.approx(rendering.CAP_HEIGHT, abs=1)  # anti-aliasing


def test_errors_name_the_character():
    with pytest.raises(ValueError, match=r"character: '☆' is not in typeface cmr10"):
        rendering.draw("cmr10", "☆")
    with pytest.raises(ValueError, match=r"character: 'Α' is not a class"):
        alphabets.faces("Α")
