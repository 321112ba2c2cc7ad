"""Takes over PyTorch checkpoints as models of ours, and gives ours back in their layout.

The official code's network is a trunk, `backbone.*`, a bias-free linear map to the feature,
`fc1.weight` [d, C], and the fixed simplex, `fc2.weight` [K, d]. Our variables are the same tensors
under other names, channels last. A classifier in torchvision's layout (trunk without a prefix and
a head of its own) is taken over as a starting point: its trunk, under a new map to the feature.

Reading needs no PyTorch (`torch_files.py`); writing `.pt` files does, and `.safetensors` files need
their package. Both are in the optional extra `torch`.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from iamcl2r_jax import simplex
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints, expected_variables
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.layers import linear_init
from iamcl2r_jax.models.stored import (
    EXTERNAL,
    Architecture,
    ImageInput,
    Metadata,
    Model,
    Requirement,
    load_model,
    save_model,
)
from iamcl2r_jax.system import runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import import torch_files

_RESNET = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
_SENET = {"shortcut_conv": "shortcut.0", "attention.squeeze": "fc1", "attention.excite": "fc2"}
_REGNET = {
    "shortcut_conv": "shortcut.0",
    "shortcut_bn": "shortcut.1",
    "attention.squeeze": "se.se1",
    "attention.excite": "se.se2",
}
# Names within a block of each backbone: ours and theirs.
_BLOCK_NAMES = {
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "senet18": _SENET,
    "regnety_400mf": _REGNET,
}
_LEAF_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Heads of classifiers without a simplex; they are known, and not taken over.
_OTHER_HEADS = ("fc.weight", "fc.bias", "linear.weight", "linear.bias")
# What is fed to the networks: by the official code, and by torchvision.
_OFFICIAL_IMAGE = {"size": 32, "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
_IMAGENET_IMAGE = {"size": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
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


def load(
    path: str, backbone: str, *, num_features: int | None = None, key: jax.Array | None = None
) -> Variables:
    """The variables of `models.create(backbone, ...)` that a PyTorch checkpoint holds.

    See `read` for arguments and errors.
    """
    return read(path, backbone, num_features=num_features, key=key).variables


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

    Returns:
      The network.

    Raises:
      InputError: if the file cannot be read, a tensor is missing, left over, of another shape
        or not finite, or the simplex is not ours. All such tensors are named.
    """
    if backbone not in _BLOCK_NAMES:
        raise InputError(
            f"backbone={backbone!r} cannot be imported; there are {', '.join(_BLOCK_NAMES)}"
        )
    stored = _official_names(path, torch_files.read_state_dict(path))
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
    architecture = Architecture.of(backbone, dim, _options(backbone, stored))
    try:
        model = architecture.module()
    except ValueError as error:
        raise InputError(f"checkpoint {path} does not fit: {error}") from None
    expected = traverse_util.flatten_dict(expected_variables(model, image_size=32))
    new_map = None if "fc1.weight" in stored else _map_without_file(drop_in, expected, key)

    variables, problems, known = {}, [], set()
    for leaf_path, leaf in expected.items():
        name = torch_name(leaf_path, backbone)
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
        heads = [name for name in _OTHER_HEADS if f"backbone.{name}" in stored]
        known |= {f"backbone.{name}" for name in heads}
    unknown = [torch_files.shown(name) for name in stored if name not in known]
    problems += [f"{name} is not part of the model" for name in unknown]
    if problems:
        # A file in torchvision's layout has the trunk's names without the prefix.
        problems = [p if drop_in else p.removeprefix("backbone.") for p in problems]
        raise InputError(f"checkpoint {path} does not fit {backbone}: {'; '.join(problems)}")
    return Imported(
        architecture, traverse_util.unflatten_dict(variables), drop_in, difference, tuple(heads)
    )


def to_torch_state_dict(variables: Variables, backbone: str) -> dict[str, np.ndarray]:
    """A model of ours in the layout of the official code, the simplex included.

    Args:
      variables: {"params", "batch_stats"} of `models.create(backbone, ...)`.
      backbone: a key of `models.BACKBONES`.

    Returns:
      NumPy arrays by the official names. Where trunk and feature are of one size and the map
      between them is the identity, `fc1.weight` is left out, as in the official network.
    """
    if backbone not in _BLOCK_NAMES:
        raise ValueError(
            f"backbone={backbone!r} cannot be exported; there are {', '.join(_BLOCK_NAMES)}"
        )
    state = {}
    for leaf_path, leaf in traverse_util.flatten_dict(variables).items():
        name = torch_name(leaf_path, backbone)
        state[name] = np.ascontiguousarray(_to_torch(np.asarray(leaf), name))
        if name.endswith("running_var"):
            # PyTorch only counts with it when BatchNorm has no momentum.
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    dim, trunk = state["fc1.weight"].shape
    if dim == trunk and np.array_equal(state["fc1.weight"], np.eye(dim)):
        del state["fc1.weight"]
    return state | {"fc2.weight": simplex.dsimplex(dim + 1)}


def torch_name(leaf_path: Sequence[str], backbone: str) -> str:
    """The official name of a variable, e.g. of ("params", "layer1_0", "conv1", "kernel")."""
    _, *modules, leaf = leaf_path
    if modules == ["projection"]:
        return "fc1.weight"
    name = re.sub(r"^layer(\d+)_(\d+)", r"layer\1.\2", ".".join(modules))
    for ours, theirs in _BLOCK_NAMES[backbone].items():
        name = name.replace(ours, theirs)
    return f"backbone.{name}.{_LEAF_NAMES[leaf]}"


def import_model(
    path: str,
    backbone: str,
    output: str,
    *,
    num_classes: int | None = None,
    classes: int | None = None,
    dataset: str = "",
    image: dict[str, Any] | None = None,
    seed: int = 0,
) -> list[str]:
    """Writes what a PyTorch checkpoint holds as an external model (`pretraining.py`).

    Args:
      path: the PyTorch checkpoint.
      backbone: a key of `models.BACKBONES`.
      output: directory of the external model; it must not exist.
      num_classes: K; only needed for a checkpoint without simplex.
      classes: how many classes it was pre-trained on, in slots 0, 1, ...; the weights do not tell,
        and without it no run can check that its own classes take other slots.
      dataset: name of the data that it was trained on.
      image: its input, any of "size", "mean" and "std"; by default the official code's CIFAR
        values, or torchvision's ImageNet values for a checkpoint without simplex.
      seed: of the map to the feature, for a checkpoint without one.

    Returns:
      Lines that say what was done.

    Raises:
      InputError: see `read`.
    """
    if checkpoints.exists(output):
        raise InputError(f"checkpoint {output} exists already; choose another directory")
    imported = read(
        path,
        backbone,
        num_features=None if num_classes is None else num_classes - 1,
        key=jax.random.key(seed),
    )
    num_classes = imported.architecture.num_features + 1
    if classes is not None and not 0 <= classes <= num_classes:
        raise InputError(f"classes={classes}: must be in 0..{num_classes}, the simplex's")
    if image and not all(len(image.get(name, "rgb")) == 3 for name in ("mean", "std")):
        raise InputError(f"image={image}: mean and std must be three numbers each")
    image = (_OFFICIAL_IMAGE if imported.drop_in else _IMAGENET_IMAGE) | (image or {})
    image = {name: tuple(v) if name != "size" else v for name, v in image.items()}
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {
        "dataset": dataset,
        "accuracy": None,
        "source": {
            "file": os.path.basename(path),
            "sha256": digest,
            "classes_known": classes is not None,
            "drop_in": imported.drop_in,
            "seed": None if imported.drop_in else seed,
        },
        "versions": runtime.versions(),
    }
    metadata = Metadata(
        kind=EXTERNAL,
        architecture=imported.architecture,
        head=heads.SIMPLEX,
        num_slots=num_classes,
        slots=(0, classes or 0),
        image=ImageInput(**image),
        about=about,
    )
    save_model(output, Model(metadata, imported.variables))
    return _summary(path, output, imported, metadata)


def export_model(directory: str, output: str) -> list[str]:
    """Writes a checkpoint of ours as a PyTorch one.

    Args:
      directory: an external model, or a task of a run.
      output: file to make, `.pt` or `.pth` ({"net": state dict}; needs torch) or `.safetensors`.

    Returns:
      Lines that say what was done.

    Raises:
      InputError: if the checkpoint is no d-Simplex model, a package is missing, or the file
        exists or has another suffix.
    """
    writers = {".pt": _write_torch, ".pth": _write_torch, ".safetensors": _write_safetensors}
    target = Path(output)
    if target.suffix not in writers:
        raise InputError(f"output={output}: its name must end in {', '.join(writers)}")
    if target.exists():
        raise InputError(f"output={output} exists already; remove it or choose another name")

    model = load_model(directory, Requirement(head=heads.SIMPLEX))
    backbone, options = model.architecture.backbone, model.architecture.options
    state = to_torch_state_dict(model.variables, backbone)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        writers[target.suffix](draft, state)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    options = ", ".join(f"{name} {value}" for name, value in options)
    return [f"exported {backbone} ({options}) with {len(state)} tensors: {output}"]


def _official_names(path: str, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by their official names, whichever spelling of them the file has."""
    parallel = all(name.startswith("module.") for name in stored)  # DataParallel's
    official = any(re.match(r"(module\.)?(backbone|fc1|fc2)\.", name) for name in stored)
    renamed = {}
    for name, value in stored.items():
        new = name.removeprefix("module.") if parallel else name
        new = new.replace(".blocks.", ".") if official else f"backbone.{new}"
        if new in renamed:
            raise InputError(
                f"checkpoint {path} holds {torch_files.shown(new)} twice, with and without .blocks"
            )
        renamed[new] = value
    return renamed


def _feature_dim(path: str, stored: dict[str, np.ndarray]) -> int:
    """D, from the shape of the map to the feature or else of the simplex."""
    name, axis = ("fc1.weight", 0) if "fc1.weight" in stored else ("fc2.weight", 1)
    shape = stored[name].shape
    if len(shape) != 2 or not shape[axis]:
        raise InputError(f"checkpoint {path}: {name} is {list(shape)}, needs two dimensions")
    return shape[axis]


def _options(backbone: str, stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """The backbone's options that the shape of its first convolution tells."""
    first = stored.get("backbone.conv1.weight")
    options = {"width": 64}
    if first is not None and first.ndim == 4:
        options["width"] = first.shape[0]
    if _BLOCK_NAMES[backbone] is _RESNET:
        small = first is not None and first.shape[-1:] == (3,)
        options["stem"] = "small" if small else "imagenet"
    return options


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
    needed = _to_torch(np.broadcast_to(np.float32(0), shape), name).shape
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


def _to_torch(value: np.ndarray, name: str) -> np.ndarray:
    """A variable in PyTorch's order of dimensions, as a view."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    # The linear layers of the attention are written there as 1x1 convolutions.
    return value.T if value.ndim < 2 or name == "fc1.weight" else value.T[:, :, None, None]


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


def _summary(path: str, output: str, imported: Imported, metadata: Metadata) -> list[str]:
    leaves, source = jax.tree.leaves(imported.variables["params"]), metadata.about["source"]
    options = ", ".join(f"{name} {value}" for name, value in imported.architecture.options)
    lines = [
        f"imported {imported.architecture.backbone} ({options}) from {path}: "
        f"{sum(leaf.size for leaf in leaves):,} parameters, sha256 {source['sha256']}"
    ]
    if imported.drop_in:
        lines.append(
            f"its simplex of K={metadata.num_slots} is ours (largest difference "
            f"{imported.simplex_difference:.1g})"
        )
        if not source["classes_known"]:
            lines.append(
                "how many classes it was trained on is not known (--classes): a run cannot check "
                "that its own classes take other slots of the simplex"
            )
    else:
        lines.append(
            f"only the trunk: the map to {imported.architecture.num_features} features is new "
            f"(seed {source['seed']}), so this is a starting point for training, not a drop-in "
            "replacement"
        )
    if imported.ignored:
        lines.append(f"not taken over: {', '.join(imported.ignored)}")
    return [*lines, f"external model: {output}"]


def _write_torch(path: Path, state: dict[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"writing {path.suffix} files needs PyTorch: pip install "
            '"iamcl2r_jax[torch]"; or choose an output that ends in .safetensors'
        ) from None
    torch.save({"net": {name: torch.from_numpy(value) for name, value in state.items()}}, path)


def _write_safetensors(path: Path, state: dict[str, np.ndarray]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise InputError(
            "writing .safetensors files needs the package safetensors: pip install "
            '"iamcl2r_jax[torch]"'
        ) from None
    save_file(state, path, metadata={"format": "pt"})
