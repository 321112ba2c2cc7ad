"""The embedded default: characters of typefaces, randomly distorted, as TFDS sets.

The three configurations stand in for the three data sets of the paper: `external` for the images on
which replacement models are pre-trained (ImageNet32), `latin` for the stream (CIFAR-100) and
`digits` for open-set evaluation on classes never trained on (CIFAR-10).
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from iamcl2r_jax.data import alphabets, rendering


@dataclasses.dataclass(eq=False, kw_only=True)
class GlyphsConfig(tfds.core.BuilderConfig):
    """One set of characters.

    Attributes:
        characters: the classes, in the order of their labels.
        train_per_class: images of each class in the split `train`.
        test_per_class: images of each class in the split `test`.
        seed: another seed gives other images of the same classes.
    """

    characters: tuple[str, ...]
    train_per_class: int
    test_per_class: int
    seed: int = 0


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Characters at 32x32 RGB: random face, size, slant, place, colours, blur and noise.

    An image is a pure function of version, configuration name, seed, split, character and index
    (given the typefaces of the installed matplotlib and the rasteriser of the installed Pillow).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        GlyphsConfig(
            name="latin",
            description="The stream: 52 Latin letters.",
            characters=alphabets.LATIN,
            train_per_class=300,
            test_per_class=50,
        ),
        GlyphsConfig(
            name="external",
            description="Pre-training: Greek, Cyrillic and symbols, mixed in every prefix.",
            characters=alphabets.EXTERNAL,
            train_per_class=120,
            test_per_class=20,
        ),
        GlyphsConfig(
            name="digits",
            description="Open-set evaluation: `train` holds the queries, `test` the gallery.",
            characters=alphabets.DIGITS,
            train_per_class=200,
            test_per_class=50,
        ),
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
        for label, character in enumerate(config.characters):
            faces = alphabets.faces(character)
            for index in range(per_class):
                rng = _generator(self.version, config.name, config.seed, split, character, index)
                image = rendering.random_image(faces, character, rng)
                yield f"{label}_{index}", {"image": image, "label": label}


def _generator(*name: object) -> np.random.Generator:
    """A generator of its own for each name: no image depends on those before it."""
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
