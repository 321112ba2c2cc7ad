"""The configuration of a run: its fields, what they may hold, and the files it is read from.

A file in `configs/` starts from `default()` or `default_pretrain()` and changes fields; `validate`
and `validate_pretrain` then refuse what cannot work, before any work starts: all checks here raise
`InputError`, one line that names the field, its value and what would be right. A new field is a
line in `fields`.
"""

from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax import methods, models, simplex
from iamcl2r_jax.config import bounds, fields
from iamcl2r_jax.config.fields import (
    SHIPPED,
    WITHOUT_EFFECT,
    choose_backbone,
    default,
    default_pretrain,
    evaluation,
    makes_external_models,
    set_recipe,
)
from iamcl2r_jax.config.stored import as_config, differences, load, without_unused_options
from iamcl2r_jax.methods import heads
from iamcl2r_jax.system import paths
from iamcl2r_jax.system.errors import InputError

__all__ = [
    "SHIPPED",
    "WITHOUT_EFFECT",
    "check_stream",
    "choose_backbone",
    "default",
    "default_pretrain",
    "differences",
    "evaluation",
    "load",
    "makes_external_models",
    "recorded",
    "set_recipe",
    "validate",
    "validate_pretrain",
    "without_unused_options",
]


def validate(config: ConfigDict) -> None:
    """Checks a lifelong run's configuration without touching data or models."""
    bounds.check(config, fields.RUN)
    _check_paths(config)
    _check_network(config)
    _check_seeds(config)
    _check_tasks(config)
    _check_teacher(config)
    if config.replacements.tasks and makes_external_models(config):
        _check_recipe(config)
    for field in ("evaluations", "metrics"):
        if not config[field]:
            raise InputError(f"{field}={bounds.shown(config[field])}: must hold at least one")


def validate_pretrain(config: ConfigDict) -> None:
    """Checks a pre-training configuration without touching data or models."""
    bounds.check(config, fields.PRETRAIN)
    _check_paths(config)
    _check_network(config)
    _check_classes(config, config.classes)


def recorded(written: dict[str, Any]) -> ConfigDict:
    """The configuration of a run that has written it as JSON, checked.

    Options of methods, optimisers and augmentations that are not in use are those of today: one
    that is added or removed leaves all other runs readable.
    """
    config = as_config(written, default())
    validate(config)
    return config


def check_stream(config: ConfigDict, num_stream_classes: int, num_tasks: int) -> None:
    """Checks a run's configuration against the stream it names."""
    for field in ("tasks", "retrain"):
        if max(tasks := config.replacements[field], default=0) >= num_tasks:
            raise InputError(
                f"replacements.{field}={tasks}: the stream has {num_tasks} tasks, "
                f"0 to {num_tasks - 1}"
            )
    made = config.replacements.classes if makes_external_models(config) else ()
    external = max(made, default=0) if config.replacements.tasks else 0
    simplex.check_slots(num_stream_classes, external, config.num_slots)


def _check_paths(config: ConfigDict) -> None:
    r = config.get("replacements", {})
    for path in (config.data_dir, *(r and (r.directory, r.watch, *r.checkpoints))):
        paths.check_storage(path)


def _check_network(config: ConfigDict, prefix: str = "") -> None:
    try:
        models.create(config.model.backbone, config.num_slots - 1, **config.model.options)
    except InputError as error:
        raise InputError(f"{prefix}model.options: {error}") from None
    image, name = config.image, config.image.augmentation
    if (padding := image.augmentation_options[name].get("padding", 0)) > image.size:
        raise InputError(
            f"{prefix}image.augmentation_options.{name}.padding={padding}: must be at most "
            f"image.size={image.size}"
        )


def _check_classes(config: ConfigDict, classes: int, prefix: str = "") -> None:
    if classes > config.num_slots:
        raise InputError(
            f"{prefix}classes={classes}: must be at most num_slots={config.num_slots}, "
            "the simplex's classes"
        )


def _check_seeds(config: ConfigDict) -> None:
    last = config.seed + config.num_seeds - 1
    if not fields.SEED.accepts(last):
        raise InputError(
            f"num_seeds={config.num_seeds}: the last seed, seed + num_seeds - 1 = {last}, must be "
            f"{fields.SEED.describe()}"
        )
    if config.num_seeds > 1 and config.replacements.watch:
        raise InputError(
            f"num_seeds={config.num_seeds}: must be 1 with replacements.watch, since a model may "
            "arrive for one seed and not for another"
        )


def _check_tasks(config: ConfigDict) -> None:
    r = config.replacements
    for field in ("tasks", "retrain"):
        if list(r[field]) != sorted(set(r[field])):
            raise InputError(
                f"replacements.{field}={r[field]}: must be different tasks in increasing order"
            )
    if both := sorted(set(r.tasks) & set(r.retrain)):
        raise InputError(
            f"replacements.retrain={r.retrain}: task {both[0]} is in replacements.tasks={r.tasks} "
            "too; a task starts from an external model or from random variables"
        )
    field = "classes" if makes_external_models(config) else "checkpoints"
    if r.tasks and len(r[field]) != len(r.tasks):
        raise InputError(
            f"replacements.{field}={r[field]}: must name one model for each of "
            f"replacements.tasks={r.tasks}"
        )


def _check_teacher(config: ConfigDict) -> None:
    weight = config.replacements.replaced_weight
    if weight and not methods.get(config.method).uses_old_model:
        raise InputError(
            f"replacements.replaced_weight={weight}: must be 0 with method={config.method!r}, "
            "whose loss reads no old model"
        )


def _check_recipe(config: ConfigDict) -> None:
    recipe, prefix = config.replacements.recipe, "replacements.recipe."
    _check_network(recipe, prefix)
    for classes in config.replacements.classes:
        _check_classes(recipe, classes, prefix)
    for field in ("size", "mean", "std"):
        if recipe.image[field] != config.image[field]:
            raise InputError(
                f"{prefix}image.{field}={recipe.image[field]}: must equal "
                f"image.{field}={config.image[field]}, since the run's images are its input"
            )
    wanted = methods.get(config.method).external_head
    if recipe.head not in (heads.SIMPLEX, wanted):
        raise InputError(
            f"{prefix}head={recipe.head!r}: method={config.method!r} takes external models with "
            f"head={wanted!r}, and sets it by itself"
        )
    if recipe.num_slots != config.num_slots:
        raise InputError(
            f"{prefix}num_slots={recipe.num_slots}: must equal num_slots={config.num_slots}, since "
            "the simplex is the interface"
        )
