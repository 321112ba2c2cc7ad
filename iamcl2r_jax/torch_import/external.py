"""PyTorch checkpoints as external models of ours."""

import hashlib
import os
from typing import Any

import jax

from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import EXTERNAL, ImageInput, Metadata, Model, save_model
from iamcl2r_jax.system import runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import.reading import Imported, read

# What is fed to the networks: by the official code, and by torchvision.
_OFFICIAL_IMAGE = {"size": 32, "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
_IMAGENET_IMAGE = {"size": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


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
