"""The embedded default: characters of typefaces, varied at random, as TFDS sets.

Four configurations stand in for the data sets of the paper: `external` for the images on which
replacement models are pre-trained (ImageNet32), `stream` for the stream (CIFAR-100), `digits` and
`unseen` for open-set evaluation on classes never trained on (CIFAR-10). The same names with
`_clean` are images that vary as little as those of version 1, so that networks tell classes apart
by details that are each network's own. Those with `tiny_` are few such images, for tests.
"""

import dataclasses
from collections.abc import Iterator

import tensorflow_datasets as tfds

from iamcl2r_jax.data import alphabets, drawing, rendering
from iamcl2r_jax.data.rendering import Variation


@dataclasses.dataclass(eq=False, kw_only=True)
class GlyphsConfig(tfds.core.BuilderConfig):
    """One set of characters.

    Attributes:
        characters: the classes, in the order of their labels.
        train_per_class: images of each class in the split `train`.
        test_per_class: images of each class in the split `test`.
        variation: how much the images of a class differ.
        seed: another seed gives other images of the same classes.
    """

    characters: tuple[str, ...]
    train_per_class: int
    test_per_class: int
    variation: Variation = rendering.VARIED
    seed: int = 0


_SETS = {  # classes, images of each to train or search with, and to test or search in
    "stream": ("The stream: 52 Latin letters and 48 others.", alphabets.STREAM, 300, 50),
    "external": ("Pre-training: scripts and signs.", alphabets.EXTERNAL, 120, 20),
    "digits": ("Evaluation: `train` holds queries, `test` a gallery.", alphabets.DIGITS, 300, 50),
    "unseen": ("Evaluation: as digits, of 100 characters.", alphabets.UNSEEN, 25, 10),
}
_TINY_SETS = {
    "tiny_stream": ("For tests: the first of `stream`.", alphabets.STREAM[:52], 40, 10),
    "tiny_external": ("For tests: the first of `external`.", alphabets.EXTERNAL[:40], 80, 10),
    "tiny_digits": ("For tests: few digits.", alphabets.DIGITS, 40, 10),
}


def _configurations(sets: dict, variation: Variation, suffix: str = "") -> list[GlyphsConfig]:
    return [
        GlyphsConfig(
            name=f"{name}{suffix}",
            description=description,
            characters=characters,
            train_per_class=train,
            test_per_class=test,
            variation=variation,
        )
        for name, (description, characters, train, test) in sets.items()
    ]


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Characters at 32x32 RGB: random face, size, slant, place, colours, clutter, blur and noise.

    An image is a pure function of version, configuration (name, variation and seed), split,
    character and index, given the typefaces of the installed matplotlib and the rasteriser of the
    installed Pillow.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "First release.",
        "2.0.0": "Images vary as natural ones do; as many classes as in the paper.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        *_configurations(_SETS, rendering.VARIED),
        *_configurations(_SETS, rendering.CLEAN, "_clean"),
        *_configurations(_TINY_SETS, rendering.CLEAN),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Characters of the typefaces that matplotlib ships, drawn at random.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(rendering.IMAGE_SIZE, rendering.IMAGE_SIZE, 3),
                        encoding_format="png",
                    ),
                    "label": tfds.features.ClassLabel(names=self.builder_config.characters),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://matplotlib.org/stable/users/explain/text/fonts.html",
            citation="The DejaVu, STIX and Computer Modern typefaces, as shipped with matplotlib.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        return {
            "train": self._generate_examples("train", self.builder_config.train_per_class),
            "test": self._generate_examples("test", self.builder_config.test_per_class),
        }

    def _generate_examples(self, split: str, per_class: int) -> Iterator[tuple[str, dict]]:
        config = self.builder_config
        drawn = drawing.draw_classes(
            config.characters,
            per_class,
            config.variation,
            *(self.version, config.name, config.seed, split),
        )
        for label, images in enumerate(drawn):
            for index, image in enumerate(images):
                yield f"{label}_{index}", {"image": image, "label": label}
