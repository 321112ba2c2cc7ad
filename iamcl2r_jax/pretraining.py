"""External models: d-Simplex models that somebody else pre-trained.

An external model is a checkpoint (`checkpoints.py`) whose record says what is needed to use it
safely: architecture, K, slots used, data set, classes, configuration and versions.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import checkpoints, methods, runtime, simplex
from iamcl2r_jax.checkpoints import CheckpointError
from iamcl2r_jax.config import validate_pretrain
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.evaluation import FeatureExtractor
from iamcl2r_jax.progress import Reporter
from iamcl2r_jax.training import (
    CompiledEpoch,
    Dataset,
    OldModel,
    Program,
    Variables,
    cosine_schedule,
    expected_variables,
    fit,
    init_variables,
)


@dataclasses.dataclass(frozen=True)
class ExternalModel:
    """A loaded external model.

    Attributes:
      path: directory it was loaded from.
      spec: its architecture, see `checkpoints.model_spec`.
      variables: as its module's `.apply` takes them.
      record: what its checkpoint says of it.
    """

    path: str
    spec: dict[str, Any]
    variables: Variables
    record: dict[str, Any]


def image_options(image: ConfigDict) -> ImageOptions:
    """The configuration's `image` as the compiled program takes it."""
    return ImageOptions(tuple(image.mean), tuple(image.std), image.crop_padding, image.flip)


def checkpoint_path(directory: str, recipe: ConfigDict, classes: int) -> str:
    """Where the model that `recipe` makes of the first `classes` classes is kept.

    The name ends in a digest of the recipe, so that another recipe never finds this model.
    """
    identity = recipe.to_dict() | {"classes": classes}
    del identity["data_dir"], identity["name"]
    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return os.path.join(directory, f"{recipe.name}-{classes}-{digest}")


def pretrain(
    config: ConfigDict, paths: Mapping[int, str], reporter: Reporter
) -> dict[int, dict[str, Any]]:
    """Trains d-Simplex models on growing subsets of classes, each from scratch.

    Class y of the data set takes slot y. The result for n classes does not depend on which other
    numbers of classes are asked for at the same time.

    Args:
      config: see `config.default_pretrain`; its `classes` is not read.
      paths: for each number of classes, the directory to write its checkpoint to.
      reporter: shows the progress.

    Returns:
      The record of each checkpoint.

    Raises:
      ConfigError, DataError, CheckpointError: before any training.
    """
    for classes, path in paths.items():
        checked = ConfigDict(config)
        checked.classes = classes
        validate_pretrain(checked)
        if checkpoints.exists(path):
            raise CheckpointError(f"checkpoint {path} exists already; choose another directory")
    most = max(paths)
    load = {"image_size": config.image.size, "data_dir": config.data_dir or None}
    known = len(sources.describe(config.dataset, data_dir=load["data_dir"]).class_names)
    if known < most:
        raise sources.DataError(f"classes={most}: {config.dataset} has only {known} classes")
    train = sources.load(config.dataset, config.train_split, num_classes=most, **load)
    test = None
    if config.test_split:
        test = sources.load(config.dataset, config.test_split, num_classes=most, **load)

    spec = checkpoints.model_spec(
        config.model.backbone, config.num_classes - 1, config.model.options.to_dict()
    )
    model = checkpoints.create_model(spec)
    method = methods.get("simplex")
    options = image_options(config.image)
    epoch = CompiledEpoch(
        Program(
            model=model,
            old_model=None,
            loss=method.loss,
            image_options=options,
            batch_size=config.train.batch_size,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
        )
    )
    classifier = jnp.asarray(simplex.dsimplex(config.num_classes))
    dataset = Dataset(
        jnp.asarray(train.images), jnp.asarray(simplex.external_slot(train.labels), jnp.int32)
    )
    capacity = max(len(train), config.train.batch_size)
    extractor = FeatureExtractor(model, options)
    rates = cosine_schedule(
        config.train.learning_rate, config.train.final_learning_rate, config.train.epochs
    )

    records = {}
    for classes, path in sorted(paths.items()):
        key_init, key_fit = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), classes)
        )
        variables = init_variables(model, key_init, config.image.size)
        state = epoch.program.init_state(variables)
        history = []
        with reporter.stage(f"pre-training on {classes} classes", len(rates)) as stage:
            for state, metrics in fit(
                epoch,
                state,
                OldModel({}, jnp.asarray(False)),
                classifier,
                dataset,
                make_pool(np.flatnonzero(train.labels < classes), capacity),
                make_pool(np.zeros(0, np.int32), capacity),
                rates,
                key_fit,
            ):
                history.append(metrics)
                stage.epoch(metrics)
        variables = jax.device_get(state.variables)
        accuracy = None
        if test is not None:
            held_out = np.flatnonzero(test.labels < classes)
            features = extractor(variables, test.images[held_out])
            chosen = np.argmax(features @ np.asarray(classifier).T, axis=1)
            accuracy = float(np.mean(chosen == simplex.external_slot(test.labels[held_out])))
        records[classes] = {
            "kind": "external",
            "model": spec,
            "num_classes": config.num_classes,
            "slots": [0, classes],  # first and one past the last
            "dataset": config.dataset,
            "class_names": list(train.class_names[:classes]),
            "config": config.to_dict() | {"classes": classes},
            "accuracy": accuracy,
            "history": history,
            "versions": runtime.versions(),
        }
        checkpoints.save(path, variables, records[classes])
        held_out_text = "" if accuracy is None else f", held-out accuracy {accuracy:.1%}"
        reporter.message(f"external model on {classes} classes: {path}{held_out_text}")
    return records


def load_external(path: str, num_classes: int, image_size: int) -> ExternalModel:
    """Loads an external model for use with a simplex of `num_classes`.

    Args:
      path: directory of its checkpoint.
      num_classes: K of the run that takes it.
      image_size: of the run that takes it.

    Raises:
      CheckpointError: if it is not a finished checkpoint of an external model, was trained with
        another simplex, or its arrays are not those of its own architecture.
    """
    record = checkpoints.load_record(path)
    if record.get("kind") != "external":
        raise CheckpointError(
            f"checkpoint {path} is no external model; launch/pretrain.py makes such models"
        )
    if record["num_classes"] != num_classes:
        raise CheckpointError(
            f"checkpoint {path} was trained with a simplex of K={record['num_classes']}, "
            f"the run has num_classes={num_classes}; they must be equal"
        )
    expected = expected_variables(checkpoints.create_model(record["model"]), image_size)
    return ExternalModel(path, record["model"], checkpoints.load(path, expected), record)
