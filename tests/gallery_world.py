"""Galleries of a few random vectors and tiny images, with models that are matrix products.

No JAX: a process that is started to be killed is up in a moment.
"""

import pathlib

import numpy as np
from PIL import Image

from iamcl2r_jax.gallery import Gallery, ModelInfo, NewItem
from iamcl2r_jax.gallery.embedder import Embedders

WIDTH = 32
SIZE = 8  # of the images


def info(name, **changes):
    """A model called by one character; its digest repeats it."""
    fields = {
        "digest": name * 64,
        "num_slots": WIDTH + 1,
        "width": WIDTH,
        "slots": (0, 5),
        "image": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3},
        "path": name,
    }
    return ModelInfo(**(fields | changes))


def units(count, seed):
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Product:
    """An embedder: pixels times a random matrix of its own."""

    def __init__(self, path):
        self.info = info(path)
        rng = np.random.default_rng(ord(path))
        self._matrix = rng.standard_normal((SIZE * SIZE * 3, WIDTH))

    def __call__(self, images):
        features = (images.reshape(len(images), -1) / 255 - 0.5) @ self._matrix
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def embedders():
    return Embedders(Product)


def write_image(path, seed):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_images(root, count, classes=3):
    for n in range(count):
        write_image(pathlib.Path(root) / f"class{n % classes}" / f"{n}.png", n)


def entries(start, stop, classes=3):
    return [NewItem(f"item{n}", label=f"class{n % classes}") for n in range(start, stop)]


def new_gallery(directory, count=0, **options):
    """A gallery served by model a with vectors `units(count, 0)`."""
    gallery = Gallery.create(str(directory), info("a"), name="a", **options)
    if count:
        gallery.add(entries(0, count), {"a": units(count, 0)})
    return gallery


def pass_gate(gallery, name="b", **options):
    """Registers a model and notes that it is compatible, as a gate would."""
    gallery.register(info(name), name)
    options = {"compatible": True, "details": {}} | options
    return gallery.record_gate(name, **options)


def promoted(gallery, name="b", **options):
    pass_gate(gallery, name, **options)
    gallery.canary(0.5)
    gallery.promote()


def keys(hits):
    return [[hit.item.key for hit in of_query] for of_query in hits]
