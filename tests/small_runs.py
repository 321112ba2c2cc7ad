"""Whole runs that take seconds: plain images, networks of two layers, external models at hand."""

from functools import partial

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from quick import initial_variables

from iamcl2r_jax import config, methods, models
from iamcl2r_jax.models import stored

SIZE, K, STREAM = 8, 12, 6
BACKBONES = {"small": 8, "wide": 16}  # channels of the layer between


class Small(nn.Module):
    """Two layers and a normalisation: all kinds of variables, next to no compile time."""

    num_features: int
    hidden: int = 8

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(self.hidden)(images.reshape(len(images), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_features, use_bias=False, name="projection")(x)


def register(monkeypatch):
    """Lends the small networks to the registry."""
    for name, hidden in BACKBONES.items():
        monkeypatch.setitem(models.BACKBONES, name, partial(Small, hidden=hidden))


def register_for_good():
    """The same in a process of its own."""
    models.BACKBONES.update({name: partial(Small, hidden=of) for name, of in BACKBONES.items()})


def write_images(root, **folders):
    """Folders of plain, separable classes: a random pattern each, and noise.

    Args:
      root: where to make them.
      **folders: number of classes of each; by default `stream` and `open`.
    """
    rng = np.random.default_rng(0)
    for name, classes in (folders or {"stream": STREAM, "open": 4}).items():
        for label in range(classes):
            pattern = rng.uniform(0, 255, (SIZE, SIZE, 3))
            for split, count in (("train", 5), ("test", 3)):
                directory = root / name / split / f"class{label}"
                directory.mkdir(parents=True)
                for n in range(count):
                    pixels = np.clip(pattern + rng.normal(0, 30, pattern.shape), 0, 255)
                    Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{n}.png")


def small_config(images, method="hoc", backbone="small", **options):
    """Three tasks of two classes without replacements."""
    c = config.default()
    c.name, c.method, c.num_slots = "small", method, K
    c.image.size, c.image.augmentation_options.crop_flip.padding = SIZE, 1
    c.model.backbone = backbone
    c.train.epochs, c.train.batch_size = 2, 4
    c.train.learning_rate, c.train.final_learning_rate = 0.05, 0.01
    c.stream.dataset = f"folder:{images / 'stream'}"
    c.stream.initial_classes = c.stream.increment = 2
    c.memory_per_class = 2
    c.replacements.tasks = c.replacements.classes = ()
    with c.unlocked():
        c.model.options = ConfigDict(options)
        c.evaluations = ConfigDict({"open": config.evaluation(f"folder:{images / 'open'}")})
    c.metrics = ("identification",)
    c.tracking.report = False
    return c


def save_external(
    path, c, classes, *, accuracy=None, seed=0, backbone="small", num_slots=K, **options
):
    """Writes an external model that fits the run of `c`: random variables in place of training."""
    metadata = stored.Metadata(
        kind=stored.EXTERNAL,
        architecture=stored.Architecture.of(backbone, num_slots - 1, options),
        head=methods.get(c.method).external_head,
        num_slots=num_slots,
        slots=(0, classes),
        image=stored.ImageInput.of(c.image),
        about={"accuracy": accuracy},
    )
    variables = initial_variables(stored.expected_variables(metadata), seed)
    stored.save_model(str(path), stored.Model(metadata, variables))
    return str(path)
