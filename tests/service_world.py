"""A gallery with cheap models and its service in this process, for tests."""

import hashlib
import io
from functools import partial

import numpy as np
from PIL import Image

from iamcl2r_jax.gallery import Gallery, ModelInfo, indexing
from iamcl2r_jax.gallery.embedder import Embedders, unit
from iamcl2r_jax.gallery.service import app, work
from iamcl2r_jax.gallery.service.settings import Settings

SIZE, WIDTH, TOKEN = 8, 16, "token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PROJECTION = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, WIDTH))


class Embedder:
    """A random projection; models differ a little by name, so that they are compatible."""

    def __init__(self, path):
        digest = hashlib.sha256(path.encode()).hexdigest()
        image = {"size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3}
        self.info = ModelInfo(digest, WIDTH + 1, WIDTH, (0, 4), image, path)
        own = np.random.default_rng(int(digest[:8], 16)).normal(size=PROJECTION.shape)
        self._projection = PROJECTION + 0.05 * own
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        pixels = images.reshape(len(images), -1) / 255 - 0.5
        return unit((pixels @ self._projection).astype(np.float32), self.info.path)


def png(pixels):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(classes=3, each=4, seed=0):
    """{key: (bytes of a PNG, label)} of plain, separable classes."""
    rng = np.random.default_rng(seed)
    made = {}
    for label in range(classes):
        pattern = rng.uniform(0, 255, (SIZE, SIZE, 3))
        for n in range(each):
            pixels = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255).astype(np.uint8)
            made[f"class{label}/{n}.png"] = (png(pixels), f"class{label}")
    return made


def gallery(directory, **options):
    """A gallery of `pictures`, with its files inside, and its embedders."""
    embedders = Embedders(Embedder)
    made = Gallery.create(str(directory), Embedder("old").info, name="old")
    images = directory / "pictures"
    sources = []
    for key, (content, label) in pictures(**options).items():
        path = images / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sources.append(indexing.Source(key, str(path), label))
    indexing.add_files(made, embedders, sources)
    return made, embedders


def service(made, embedders, **settings):
    """The application, working in threads of this process."""
    settings = {"token": TOKEN, "hosts": ("testserver",)} | settings
    return app.create(made, embedders, Settings(**settings), partial(work.do, made, embedders))


def gated(made, name="new", compatible=True, **details):
    """Registers a model and records what a gate found."""
    made.register(Embedder(name).info, name)
    made.record_gate(name, compatible=compatible, details=details)
