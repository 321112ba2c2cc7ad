"""PyTorch checkpoints taken over as variables of our models, strictly both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from iamcl2r_jax import simplex
from iamcl2r_jax.models import expected_variables
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.layers import linear_init
from iamcl2r_jax.models.stored import Architecture
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import import names, torch_files

_FLOATING_KINDS = "fV"  # bfloat16, which NumPy does not have, is of kind V
# float32 simplexes computed in another order differ by about 1e-7.
_SIMPLEX_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network taken from a PyTorch checkpoint.

    Attributes:
      architecture: of the network.
      variables: {"params", "batch_stats"} of NumPy float32 arrays.
      drop_in: whether its features are those of a d-Simplex model; if not, the map to the feature
        is new and the model is only a starting point for training.
      simplex_difference: largest difference between the file's simplex and ours, None without one.
      ignored: names of tensors in the file that were not taken over: a classifier's own head.
    """

    architecture: Architecture
    variables: Variables
    drop_in: bool
    simplex_difference: float | None
    ignored: tuple[str, ...]


def read(
    path: str, backbone: str, *, num_features: int | None = None, key: jax.Array | None = None
) -> Imported:
    """Takes over a PyTorch checkpoint, strictly both ways.

    Width and stem are read from the shapes. Weights in half precision or float64 become float32.
    Unlike the official code's own loading, which passes over what does not fit, every tensor must
    have its place, and the simplex must be the one that all models here share.

    Args:
      path: see `torch_files.read_state_dict`.
      backbone: a key of `models.BACKBONES`.
      num_features: dimension D of the feature. For a checkpoint without simplex it must be given;
        of others it must be what the checkpoint has, if it is given.
      key: draws the map to the feature for a checkpoint without one; not used for others.

    Raises:
      InputError: if the file cannot be read, a tensor is missing, left over, of another shape
        or not finite, or the simplex is not ours. All such tensors are named.
    """
    if backbone not in names.BLOCK_NAMES:
        raise InputError(
            f"backbone={backbone!r} cannot be imported; there are {', '.join(names.BLOCK_NAMES)}"
        )
    stored = names.official_names(path, torch_files.read_state_dict(path))
    drop_in = "fc1.weight" in stored or "fc2.weight" in stored
    dim = _feature_dim(path, stored) if drop_in else num_features
    if dim is None or (not drop_in and key is None):
        raise InputError(
            f"checkpoint {path} has no map to the feature (fc1.weight) and no simplex "
            "(fc2.weight), so it can only be a starting point: give num_classes, or num_features "
            "= num_classes - 1 and a key, for a new map to the feature"
        )
    if num_features not in (None, dim):
        raise InputError(
            f"checkpoint {path} has features of {dim} dimensions, not num_features={num_features} "
            "(num_classes - 1)"
        )
    architecture = Architecture.of(backbone, dim, names.options(backbone, stored))
    try:
        model = architecture.module()
    except ValueError as error:
        raise InputError(f"checkpoint {path} does not fit: {error}") from None
    expected = traverse_util.flatten_dict(expected_variables(model, image_size=32))
    new_map = None if "fc1.weight" in stored else _map_without_file(drop_in, expected, key)

    variables, problems, known = {}, [], set()
    for leaf_path, leaf in expected.items():
        name = names.torch_name(leaf_path, backbone)
        if name == "fc1.weight" and new_map is not None:
            variables[leaf_path] = new_map
            continue
        known.add(name)
        problem, variables[leaf_path] = _take(name, stored.get(name), leaf.shape)
        problems += [f"{name} {problem}"] if problem else []
    known |= {name.replace("running_mean", "num_batches_tracked") for name in known}
    difference, heads = None, []
    if drop_in:
        known.add("fc2.weight")
        problem, difference = _check_simplex(stored.get("fc2.weight"), dim)
        problems += [f"fc2.weight {problem}"] if problem else []
    else:
        heads = [name for name in names.OTHER_HEADS if f"backbone.{name}" in stored]
        known |= {f"backbone.{name}" for name in heads}
    unknown = [names.shown(name) for name in stored if name not in known]
    problems += [f"{name} is not part of the model" for name in unknown]
    if problems:
        # A file in torchvision's layout has the trunk's names without the prefix.
        problems = [p if drop_in else p.removeprefix("backbone.") for p in problems]
        raise InputError(f"checkpoint {path} does not fit {backbone}: {'; '.join(problems)}")
    return Imported(
        architecture, traverse_util.unflatten_dict(variables), drop_in, difference, tuple(heads)
    )


def _feature_dim(path: str, stored: dict[str, np.ndarray]) -> int:
    """D, from the shape of the map to the feature or else of the simplex."""
    name, axis = ("fc1.weight", 0) if "fc1.weight" in stored else ("fc2.weight", 1)
    shape = stored[name].shape
    if len(shape) != 2 or not shape[axis]:
        raise InputError(f"checkpoint {path}: {name} is {list(shape)}, needs two dimensions")
    return shape[axis]


def _map_without_file(drop_in: bool, expected: dict, key: jax.Array | None) -> np.ndarray | None:
    """The map to the feature for a file that has none, or None if it should have one."""
    shape = expected["params", "projection", "kernel"].shape
    if not drop_in:
        return np.asarray(linear_init(key, shape, np.float32))
    # The official network has no such map where trunk and feature are of one size.
    return np.eye(*shape, dtype=np.float32) if shape[0] == shape[1] else None


def _take(
    name: str, stored: np.ndarray | None, shape: tuple[int, ...]
) -> tuple[str, np.ndarray | None]:
    """What is wrong with a stored tensor ("" if nothing is), and the variable made of it."""
    needed = names.to_torch(np.broadcast_to(np.float32(0), shape), name).shape
    if stored is None:
        return f"is missing, needs {list(needed)}", None
    if stored.shape != needed:
        return f"is {list(stored.shape)}, needs {list(needed)}", None
    if stored.dtype.kind not in _FLOATING_KINDS:
        return f"is {stored.dtype}, needs floating point", None
    with np.errstate(over="ignore"):  # float64 beyond float32: found by the next line
        value = stored.astype(np.float32)
    if not np.isfinite(value).all():
        return "has values that are not finite", None
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
    return "", np.ascontiguousarray(value.reshape(shape))


def _check_simplex(stored: np.ndarray | None, dim: int) -> tuple[str, float | None]:
    """What is wrong with a stored simplex, and its largest difference from ours."""
    if stored is None:
        return f"is missing, needs {[dim + 1, dim]}", None
    if stored.shape != (dim + 1, dim) or dim < 1:
        return (
            f"is {list(stored.shape)}, needs {[dim + 1, dim]}: a simplex of K classes has K - 1 "
            "dimensions, and a model with a trained classifier cannot be a drop-in replacement",
            None,
        )
    if stored.dtype.kind not in _FLOATING_KINDS:
        return f"is {stored.dtype}, needs floating point", None
    ours = simplex.dsimplex(dim + 1)
    difference = np.abs(stored.astype(np.float32) - ours)
    largest = float(difference.max())
    rounding = float(jnp.finfo(stored.dtype).eps)
    if not (difference <= _SIMPLEX_TOLERANCE + rounding * np.abs(ours)).all():
        return f"is not our simplex of K={dim + 1}; the largest difference is {largest:.3g}", None
    return "", largest
