"""A run that compiles in seconds, for tests that start processes.

As a program it is launch/main.py with this file as its config: the arguments are further flags.
"""

import pathlib
import runpy
import sys
from functools import partial

import flax.linen as nn
from ml_collections import ConfigDict

from iamcl2r_jax import config, models

ROOT = pathlib.Path(__file__).parents[1]


class Smallest(nn.Module):
    """Two dense layers, with statistics of the whole batch between them."""

    num_features: int
    width: int = 4
    stem: str = "imagenet"  # that the default configuration gives every backbone

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(self.num_features, name="projection")(nn.relu(x))


def register(patch):
    """Lends the network to the registry, until the `pytest.MonkeyPatch` is undone."""
    patch.setitem(models.BACKBONES, "smallest", partial(Smallest))


def get_config():
    models.BACKBONES["smallest"] = partial(Smallest)
    c = config.default()
    c.name = "smallest"
    c.num_slots = 128
    c.stream.initial_classes = 20
    c.stream.increment = 40
    c.stream.limit_per_class = 8
    c.stream.test_split = "test[:10%]"
    c.memory_per_class = 4
    c.replacements.tasks = (1,)
    c.replacements.classes = (4,)
    digits = config.evaluation("glyphs/digits", query_split="train[:10%]")
    with c.unlocked():
        c.evaluations = ConfigDict({"digits": digits})
    c.metrics = ("identification",)
    for part in (c, c.replacements.recipe):
        part.image.size = 16
        part.image.augmentation_options.crop_flip.padding = 2
        part.model.backbone = "smallest"
        part.model.options.width = 8
        part.train.epochs = 2
        part.train.batch_size = 16
        part.train.learning_rate = 1e-3
        part.saving.every_epochs = 1
    c.tracking.report = False
    c.replacements.recipe.train_split = "train[:25%]"
    return c


if __name__ == "__main__":
    program = str(ROOT / "launch" / "main.py")
    cache = f"--compilation_cache={ROOT}/.cache/jax"
    sys.argv = [program, f"--config={__file__}", cache, *sys.argv[1:]]
    runpy.run_path(program, run_name="__main__")
