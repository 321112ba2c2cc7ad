"""Small checkpoints of this package's networks, for programs that load them."""

import jax
import numpy as np

from iamcl2r_jax.models import stored

IMAGE = stored.ImageInput(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def save_model(path, seed, num_slots=33):
    architecture = stored.Architecture.of(
        "resnet18", num_slots - 1, {"width": 4, "stem": "imagenet"}
    )
    metadata = stored.Metadata("external", architecture, "simplex", num_slots, (0, 3), IMAGE)
    rng = np.random.default_rng(seed)

    def leaf(where, shape):
        if where[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(shape.shape[:-1]))
            return rng.normal(0, scale, shape.shape).astype(np.float32)
        return (np.ones if where[-1].key in ("scale", "var") else np.zeros)(shape.shape, np.float32)

    variables = jax.tree_util.tree_map_with_path(leaf, stored.expected_variables(metadata))
    stored.save_model(str(path), stored.Model(metadata, variables))
