"""Checkpoints as functions from images to unit features; all that a gallery uses of the trunk."""

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.records import Model, ModelInfo
from iamcl2r_jax.system.errors import InputError

# JAX and the models take seconds to import, so that they are imported when one is loaded.
_BATCHES = (1, 8, 32, 128)  # shapes that are compiled; images are padded to the next


class Embedder(Protocol):
    """A model that embeds images."""

    info: ModelInfo

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Unit features float32 [N, D] of images uint8 [N, size, size, 3]."""


def describe(path: str) -> ModelInfo:
    """What a gallery needs to know of the checkpoint at `path`; its checksums are verified.

    Raises:
      InputError: if there is none, it is damaged, or it does not say what it is.
    """
    from iamcl2r_jax.models.stored import load_metadata

    return _info(path, load_metadata(path))


def _info(path: str, metadata: Any) -> ModelInfo:
    from etils import epath

    from iamcl2r_jax.models import checkpoints
    from iamcl2r_jax.system import files

    return ModelInfo(
        # Of the manifest, which holds the digests of all other files.
        digest=files.digest(epath.Path(path) / checkpoints._MANIFEST),
        num_slots=metadata.num_slots,
        width=metadata.architecture.num_features,
        slots=metadata.slots,
        image=metadata.image.to_json(),
        path=os.path.abspath(path),
    )


class CheckpointEmbedder(Embedder):
    """The `Embedder` of a checkpoint; threads may share it."""

    def __init__(self, path: str):
        """Loads a checkpoint; raises as `describe`."""
        import jax

        from iamcl2r_jax.data.augment import ImageOptions, normalize_images
        from iamcl2r_jax.models.stored import load_model

        model = load_model(path)
        self.info = _info(path, model.metadata)
        image = model.metadata.image
        options = ImageOptions(image.mean, image.std)
        module = model.architecture.module()
        self._variables = jax.device_put(model.variables)
        self._features = jax.jit(
            lambda variables, images: module.apply(
                variables, normalize_images(images, options), train=False
            )
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        size = self.info.image["size"]
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise InputError(
                f"images: must be uint8 [N, {size}, {size}, 3], got {images.dtype} "
                f"{list(images.shape)}"
            )
        parts = [np.empty((0, self.info.width), np.float32)]
        for start in range(0, len(images), _BATCHES[-1]):
            some = images[start : start + _BATCHES[-1]]
            batch = next(batch for batch in _BATCHES if batch >= len(some))
            padded = np.pad(some, [(0, batch - len(some))] + [(0, 0)] * 3)
            parts.append(np.asarray(self._features(self._variables, padded))[: len(some)])
        return unit(np.concatenate(parts), f"checkpoint {self.info.path}")


def unit(features: np.ndarray, source: str) -> np.ndarray:
    """Features float32 [N, D] of unit length.

    Raises:
      InputError: naming their source, if one is not finite or is zero.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(f"{source}: a feature is not finite or is zero")
    return (features / lengths).astype(np.float32)


class Embedders:
    """The embedders of a gallery's models, each loaded from its directory when first asked for."""

    def __init__(self, load: Callable[[str], Embedder] = CheckpointEmbedder):
        self._load, self._loaded, self._lock = load, {}, threading.Lock()

    def __getitem__(self, model: Model) -> Embedder:
        """The embedder of a registered model.

        Raises:
          InputError: if its checkpoint cannot be loaded.
          Refused: if the checkpoint is another one than was registered.
        """
        with self._lock:
            digest = model.info.digest
            if digest not in self._loaded:
                embedder = self._load(model.info.path)
                if embedder.info.digest != digest:
                    raise Refused(
                        f"checkpoint {model.info.path} is no longer the one registered as model "
                        f"{model.name}; put that one back, or register this one under another name"
                    )
                self._loaded[digest] = embedder
            return self._loaded[digest]
