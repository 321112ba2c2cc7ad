"""Real handwriting for open-set evaluation: the scanned digits that scikit-learn bundles."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from iamcl2r_jax.data import rendering

FULL_INK = 16  # largest value in a scan
_SIDE = rendering.CAP_HEIGHT  # of an enlarged scan, pixels
_CORNER = ((rendering.IMAGE_SIZE - _SIDE) // 2, rendering.BASELINE - _SIDE)  # its left and top


class Handwriting(tfds.core.GeneratorBasedBuilder):
    """The 1,797 scans of handwritten digits, 8x8 values 0..16, as 32x32 RGB images.

    Polarity: dark ink (16 becomes black) on a white ground, as on paper. A scan has ink from top
    to bottom; bicubic interpolation brings it to the height of a capital, 16 pixels, and it
    stands where one stands in `glyphs`. Were it to fill the frame, its strokes would be twice as
    thick as those of any typeface and be cut at the border.

    Of each class, in the order of the source, every third scan goes to the gallery, beginning with
    the first, and the others are the queries.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=(
                "Scans of handwritten digits; `train` holds the queries, `test` the gallery."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(rendering.IMAGE_SIZE, rendering.IMAGE_SIZE, 3),
                        encoding_format="png",
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=(
                "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
                "UCI Machine Learning Repository, 1998, doi:10.24432/C50P49"
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        return {
            "train": self._generate_examples(gallery=False),
            "test": self._generate_examples(gallery=True),
        }

    def _generate_examples(self, gallery: bool) -> Iterator[tuple[int, dict]]:
        from sklearn.datasets import load_digits  # only where the set is prepared

        scans = load_digits()
        for label in range(10):
            for place, index in enumerate(np.flatnonzero(scans.target == label)):
                if (place % 3 == 0) == gallery:
                    yield int(index), {"image": _placed(scans.images[index]), "label": label}


def _placed(scan: np.ndarray) -> Image.Image:
    """A scan [8, 8], values 0 (paper) to 16 (ink), as a 32x32 RGB image."""
    grey = Image.fromarray(np.round(255 * (1 - scan / FULL_INK)).astype(np.uint8))
    image = Image.new("RGB", (rendering.IMAGE_SIZE, rendering.IMAGE_SIZE), "white")
    image.paste(grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), _CORNER)
    return image
