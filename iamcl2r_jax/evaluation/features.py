"""What models make of an evaluation's images: features, extracted once for each model."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax.data.augment import ImageOptions, normalize_images
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.evaluation.maps import Fitted
from iamcl2r_jax.models.stored import Model
from iamcl2r_jax.system import parallel

_BATCH_SIZE = 256
_BATCHES_PER_CALL = 8  # at most; a call computes those that hold an image
# Batches and batch size of a call for few large images, whose padding would take much memory.
_SMALLER_CALLS = ((1, 32), (1, _BATCH_SIZE))
_LARGE = 2**25  # bytes of a whole call, 32 MiB


class FeatureExtractor:
    """Runs a model over images in batches of few shapes, so that it is compiled once.

    A call of the compiled program loops over several batches: what it derives from the model's
    variables is computed once for all of them, and their arrays are allocated once. The devices of
    the process share each batch. Small images always come in calls of one shape; few large ones
    come in smaller calls, each shape of which is compiled when it is first used.
    """

    def __init__(self, model: nn.Module, image_options: ImageOptions):
        """Of a model that maps images [B, H, W, 3] to features [B, D]."""
        self.model = model

        def features(variables, images):
            return model.apply(variables, normalize_images(images, image_options), train=False)

        @jax.jit
        def features_of_batches(variables, batches, count):
            def add_batch(index, found):
                return found.at[index].set(features(variables, batches[index]))

            one = jax.eval_shape(features, variables, batches[0])
            found = jnp.zeros((len(batches), *one.shape), one.dtype)
            return jax.lax.fori_loop(0, count, add_batch, found)

        self._features_of_batches = features_of_batches

    def __call__(self, variables: dict[str, Any], images: np.ndarray) -> np.ndarray:
        """Features float32 [N, D] of uint8 images [N, H, W, 3]."""
        num_batches, batch_size = call_shape(images)
        sharding = parallel.local_sharding(batch_size)
        variables = parallel.replicate(variables, sharding)
        split = None if sharding is None else parallel.split_blocks(sharding)
        capacity, parts = num_batches * batch_size, []
        for start in range(0, len(images), capacity):
            part = images[start : start + capacity]
            padding = [(0, capacity - len(part))] + [(0, 0)] * 3
            batches = np.pad(part, padding).reshape(-1, batch_size, *images.shape[1:])
            count = -(-len(part) // batch_size)
            batches = jax.device_put(batches, split)
            parts.append(self._features_of_batches(variables, batches, count))
        found = np.concatenate(jax.device_get(parts))
        return found.reshape(-1, found.shape[-1])[: len(images)]


def call_shape(images: np.ndarray) -> tuple[int, int]:
    """How many batches of how many images a call of the program takes."""
    bytes_per_image = images[0].size * images.itemsize
    if _BATCHES_PER_CALL * _BATCH_SIZE * bytes_per_image > _LARGE:
        for num_batches, batch_size in _SMALLER_CALLS:
            if len(images) <= num_batches * batch_size:
                return num_batches, batch_size
    return _BATCHES_PER_CALL, _BATCH_SIZE


@dataclasses.dataclass(frozen=True)
class Features:
    """An evaluation's features by one model.

    Attributes:
      query: float32 [Q, D].
      gallery: float32 [N, D].
      forward: the map that brings a gallery of the model before to this one, without its images;
        None leaves stored galleries as they are.
    """

    query: np.ndarray
    gallery: np.ndarray
    forward: Fitted | None = None


def forward_map(model: Model) -> Fitted | None:
    """The map of `Features.forward` that a model was saved with, if its method fits one."""
    return None if model.adapter is None else Fitted("fan", model.adapter)


def embed(extractor: FeatureExtractor, model: Model, evaluation: Evaluation) -> Features:
    """One feature pass: a model over the queries and the gallery of an evaluation."""
    return Features(
        query=extractor(model.variables, evaluation.query.images),
        gallery=extractor(model.variables, evaluation.gallery.images),
        forward=forward_map(model),
    )
