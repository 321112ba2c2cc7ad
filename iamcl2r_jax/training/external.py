"""The external models of a run: where they are kept, and whether the run can take them up."""

import hashlib
import json
import os
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax import methods
from iamcl2r_jax.config import (
    SHIPPED,
    WITHOUT_EFFECT,
    default_pretrain,
    makes_external_models,
    without_unused_options,
)
from iamcl2r_jax.data import sources
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import EXTERNAL, ImageInput, Model, load_model
from iamcl2r_jax.training.inputs import stream_size


def recipe_of(config: ConfigDict) -> ConfigDict:
    """The recipe of a run's external models, with the head that its method asks for."""
    recipe = config.replacements.recipe.copy_and_resolve_references()
    recipe.head = methods.get(config.method).external_head
    recipe.tracking.tensorboard = config.tracking.tensorboard
    return recipe


def external_paths(config: ConfigDict) -> tuple[tuple[str, ...], dict[int, str]]:
    """The path of the model of each replacement, and by number of classes of those to be made."""
    replacements, recipe = config.replacements, recipe_of(config)
    paths = tuple(replacements.checkpoints)
    if not makes_external_models(config):
        return paths, {}
    if not replacements.tasks:
        return (), {}
    shipped = shipped_path if paths == SHIPPED else lambda *_: None
    paths = tuple(
        shipped(recipe, classes) or checkpoint_path(replacements.directory, recipe, classes)
        for classes in replacements.classes
    )
    missing = {
        classes: path
        for classes, path in zip(replacements.classes, paths, strict=True)
        if not checkpoints.exists(path)
    }
    return paths, missing


def checkpoint_path(directory: str, recipe: ConfigDict, classes: int) -> str:
    """Where the model that `recipe` makes of the first `classes` classes is kept.

    The name ends in a digest of the recipe, so that another recipe never finds this model.
    """
    text = json.dumps(_identity(recipe, classes), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return os.path.join(directory, f"{recipe.name}-{classes}-{digest}")


def _identity(recipe: ConfigDict, classes: int) -> dict[str, Any]:
    """What a recipe's result depends on."""
    identity = without_unused_options(recipe.to_dict()) | {"classes": classes}
    for field in ("data_dir", "name", *WITHOUT_EFFECT):
        del identity[field]
    return identity


def shipped_path(recipe: ConfigDict, classes: int) -> str | None:
    """The model that comes with this package and that `recipe` makes of so many classes."""
    if _identity(recipe, classes) != _identity(default_pretrain(), classes):
        return None
    path = os.path.join(os.path.dirname(sources.__file__), "external", f"glyphs-{classes}")
    return path if checkpoints.exists(path) else None


def load_external(config: ConfigDict, path: str) -> Model:
    """An external model that this run can take up; `InputError` if it cannot."""
    return load_model(
        path,
        kind=EXTERNAL,
        head=methods.get(config.method).external_head,
        num_slots=config.num_slots,
        image=ImageInput.of(config.image),
        stream_classes=stream_size(config)[0],
    )
