"""A lifelong run so small that it can be started a hundred times: data, network and configuration.

Everything of a real run is in it (pre-training, replacements, memory, evaluation), on images of
8x8 pixels in a folder. Its network is one linear layer and a normalisation: compiled in no time.
"""

import pathlib
from functools import partial

import flax.linen as nn
import numpy as np
from PIL import Image

from iamcl2r_jax import config, models

SIZE, NUM_SLOTS, NUM_TASKS = 8, 12, 3
STREAM, EXTERNAL, OPEN = "abcdef", "uvw", "xy"  # the classes' names


class OneLayer(nn.Module):
    """A linear map and a normalisation, the smallest network with all kinds of variables."""

    num_features: int
    width: int = 1  # unused; an option, as other backbones have

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(self.num_features, name="projection")(images.reshape(len(images), -1))
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def register():
    """Makes the network known as backbone "one_layer"."""
    models.BACKBONES["one_layer"] = partial(OneLayer)


def write_images(root: pathlib.Path) -> None:
    """The images, seeded: split `train` with six of each class, `test` with three."""
    rng = np.random.default_rng(0)
    for name, classes in (("stream", STREAM), ("external", EXTERNAL), ("open", OPEN)):
        for label in classes:
            colour = rng.integers(0, 200, (SIZE, SIZE, 3))
            for split, count in (("train", 6), ("test", 3)):
                directory = root / name / split / label
                directory.mkdir(parents=True)
                for i in range(count):
                    pixels = colour + rng.integers(0, 56, colour.shape)
                    Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{i}.png")


def get_config(root: str):
    """The configuration of the run on `root`; external models are kept beside the images."""
    register()
    c = config.default()
    c.name = "small"
    c.num_slots = NUM_SLOTS
    for part, epochs in ((c, 3), (c.replacements.recipe, 4)):
        part.image.size = SIZE
        part.image.augmentation_options.crop_flip.padding = 1
        part.model.backbone = "one_layer"
        part.model.options = {"width": 1}
        part.train.epochs = epochs
        part.train.batch_size = 4
        part.train.learning_rate = 0.01
        part.train.final_learning_rate = 0.001
        part.saving.every_epochs = 1
        part.saving.every_seconds = 0.0
        part.saving.steps_per_call = 2
    c.stream.dataset = f"folder:{root}/stream"
    c.stream.initial_classes = 2
    c.stream.increment = 2
    c.memory_per_class = 2
    c.replacements.tasks = (0, 2)
    c.replacements.classes = (2, 3)
    c.replacements.directory = f"{root}/models"
    c.replacements.recipe.name = "small"
    c.replacements.recipe.dataset = f"folder:{root}/external"
    del c.evaluations.digits, c.evaluations.handwriting
    c.evaluations.open = config.evaluation(f"folder:{root}/open")
    c.metrics = ("identification",)
    c.tracking.tensorboard = c.tracking.report = False
    return c
