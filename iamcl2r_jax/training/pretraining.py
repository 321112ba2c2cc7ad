"""External models: models that somebody else pre-trained, with the d-Simplex or a learnable head.

An external model is stored as every model is (`models/stored.py`); its metadata say besides on what
data set and classes it was trained, with what configuration, versions, command and machine.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax import methods, simplex
from iamcl2r_jax.config import differences, makes_external_models, validate_pretrain
from iamcl2r_jax.data import sources, streaming
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints, init_variables
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.stored import (
    EXTERNAL,
    Architecture,
    ImageInput,
    Metadata,
    Model,
    load_model,
    save_model,
)
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import DamagedError, InputError, LockedError
from iamcl2r_jax.system.parallel import batch_sharding
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import tracking
from iamcl2r_jax.training.context import image_options, optimizer
from iamcl2r_jax.training.external import external_paths, load_external, recipe_of
from iamcl2r_jax.training.fit import cosine_schedule, fit
from iamcl2r_jax.training.resume import ProgressStore
from iamcl2r_jax.training.step import CompiledEpoch, OldModel, Program, TaskData


def pretrain(
    config: ConfigDict,
    paths: Mapping[int, str],
    reporter: Reporter,
    preemption: Preemption | None = None,
    *,
    command: str | None = None,
) -> dict[int, Model]:
    """Trains models on growing subsets of classes, each from scratch.

    Class y of the data set takes slot y, the row y of a learnable head. The result for n classes
    does not depend on which other numbers of classes are asked for at the same time, nor on
    whether it was stopped and called again.

    Args:
      config: see `config.default_pretrain`; its `classes` is not read.
      paths: for each number of classes, the directory to write its checkpoint to.
      reporter: shows the progress.
      preemption: saves and raises `PreemptedError` once requested.
      command: how the program that calls this was started, for the metadata.

    Returns:
      The model of each number of classes, as saved.

    Raises:
      InputError: before any training.
      LockedError: if another process makes one of these models.
      DivergenceError: if training left the finite numbers.
    """
    preemption = preemption or Preemption()
    for classes, path in paths.items():
        validate_pretrain(_with_classes(config, classes))
        checkpoints.check_free(path)
    distributed.check_same("configuration", config.to_dict() | {"paths": sorted(paths.items())})
    train, test = _load_images(config, max(paths))
    for split in filter(None, (config.train_split, config.test_split)):
        if line := sources.passed_over(config.dataset, split):
            reporter.message(line)
    trainer = _Trainer(config, train, test, reporter, preemption)
    made = {}
    for classes, path in sorted(paths.items()):
        place = _progress_place(path)
        with files.one_writer(place):
            # Again: until the lock was had, another process may have made it. The first process
            # of a job has the lock, so that what it sees holds.
            there = distributed.any_process(distributed.is_first() and checkpoints.exists(path))
            if there:
                made[classes] = load_model(path)
            else:
                made[classes] = trainer.make(classes, path, place, command)
        if there:
            reporter.message(f"external model {path}: another process has made it meanwhile")
            tidy(path, reporter)
    distributed.wait_for_all("external models saved")
    return made


def external_models(
    config: ConfigDict, reporter: Reporter, preemption: Preemption, command: str | None = None
) -> dict[int, Model]:
    """The external model of each replacement, by task; those with a recipe are made if missing.

    They are made with the head that the method asks for, and those given must have it. With
    `config.SHIPPED`, those that come with the package are not made.
    """
    recipe, made = recipe_of(config), makes_external_models(config)
    paths, missing = external_paths(config)
    # What is there is checked before what is missing is trained.
    loaded = {path: load_external(config, path) for path in paths if path not in missing.values()}
    if made:
        for path in loaded:
            tidy(path, reporter)
    if missing:
        recipe.data_dir = recipe.data_dir or config.data_dir
        pretrain(recipe, missing, reporter, preemption, command=command)
        loaded |= {path: load_external(config, path) for path in missing.values()}
    tasks = config.replacements.tasks
    return {task: loaded[path] for task, path in zip(tasks, paths, strict=bool(paths))}


def _with_classes(config: ConfigDict, classes: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.classes = classes
    return config


def _load_images(config: ConfigDict, classes: int) -> tuple[ImageSet, ImageSet | None]:
    """Training and held-out images of the first `classes` classes."""
    options = {
        "image_size": config.image.size,
        "data_dir": config.data_dir or None,
        "num_classes": classes,
    }
    known = len(sources.describe(config.dataset, data_dir=options["data_dir"]).class_names)
    if known < classes:
        raise InputError(f"classes={classes}: {config.dataset} has only {known} classes")
    train = sources.load(config.dataset, config.train_split, min_per_class=2, **options)
    if not config.test_split:
        return train, None
    return train, sources.load(config.dataset, config.test_split, **options)


def tidy(path: str, reporter: Reporter) -> None:
    """Removes what a process left that was killed when it had just finished this model.

    What cannot be removed is mentioned.
    """
    place = _progress_place(path)
    if distributed.is_first() and epath.Path(place).exists():
        try:
            with files.one_writer(place):
                complaint = files.discard(place)
        except LockedError:  # that process is alive, and about to do so itself
            return
        except files.WriteError as error:
            complaint = str(error)
        if complaint:
            reporter.message(complaint)


def _progress_place(path: str) -> str:
    """Where the training of the model at `path` keeps where it stands; the path says the recipe."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.progress")


def _refuse_other_origin(train: ImageSet, place: str) -> None:
    """Raises `InputError` if a training left here began with other images, labels or numerics."""
    noted = os.path.join(place, "data.json")
    here = {"train": train.digest()} | runtime.numerics()
    try:
        there = files.read_json(noted)
    except DamagedError as error:
        raise DamagedError(f"{error}; move {place} away") from None
    if there is None and any(child.name.isdigit() for child in epath.Path(place).iterdir()):
        raise InputError(
            f"{noted}, which tells from what images the training there comes, is missing; "
            f"move {place} away"
        )
    if there is not None and there["train"] != here["train"]:
        raise InputError(
            f"the images or labels are not those that the pre-training in {place} began with; "
            "restore the data set, or move that directory away"
        )
    if there is not None and (differing := differences(there, here)):
        raise InputError(
            f"the pre-training in {place} began with JAX set up otherwise "
            f"({'; '.join(differing)}); set it as it was, or move that directory away"
        )
    files.write_json(noted, here)


class _Trainer:
    """One compiled program and one data set for all numbers of classes."""

    def __init__(
        self,
        config: ConfigDict,
        train: ImageSet,
        test: ImageSet | None,
        reporter: Reporter,
        preemption: Preemption,
    ):
        self._config, self._images, self._test = config, train, test
        self._reporter, self._preemption = reporter, preemption
        self._learnable = heads.is_learnable(config.head)
        self._architecture = Architecture.of_config(config)
        model = self._architecture.module()
        options = image_options(config.image)
        self._epoch = CompiledEpoch(
            Program(
                model=model,
                old_model=None,
                loss=methods.get("er" if self._learnable else "simplex").loss,
                head=config.head,
                image_options=options,
                batch_size=config.train.batch_size,
                optimizer=optimizer(config.train),
                batch_sharding=batch_sharding(config.train.batch_size),
            )
        )
        self._features = FeatureExtractor(model, options)
        slots = simplex.external_slot(train.labels)
        self._dataset = streaming.place(
            train.images, slots, config.resident_gib, self._epoch.program.batch_sharding
        )

    def make(self, classes: int, path: str, place: str, command: str | None) -> Model:
        """Trains the model of the first `classes` classes and saves it at `path`."""
        config, started = self._config, time.monotonic()
        if distributed.is_first():
            _refuse_other_origin(self._images, place)
        store = ProgressStore(place, config.saving, self._reporter)
        with tracking.open_tracker(config, place) as tracker:
            model, history = self.train(classes, store, on_epoch=partial(tracker.epochs, 0))
            accuracy = self.held_out_accuracy(model)
            seconds = time.monotonic() - started
            tracker.task(
                {"task": 0, "history": history, "task_accuracy": accuracy, "seconds": seconds}
            )
        about = {
            "dataset": config.dataset,
            "class_names": list(self._images.class_names[:classes]),
            "config": files.as_json(_with_classes(config, classes).to_dict()),
            "accuracy": accuracy,
            "history": history,
            "seconds": seconds,
            "command": command,
            "environment": runtime.environment(),
        }
        metadata = dataclasses.replace(model.metadata, about=about)
        model = dataclasses.replace(model, metadata=metadata, path=path)
        if distributed.is_first():
            save_model(path, model, tracking.written(place))
        store.clear()
        self._reporter.message(
            f"external model on {classes} classes of {config.dataset}"
            f"{'' if accuracy is None else f', held-out accuracy {accuracy:.1%}'}: {path}"
        )
        return model

    def train(
        self,
        classes: int,
        store: ProgressStore,
        on_epoch: Callable[[Sequence[dict[str, float]]], None],
    ) -> tuple[Model, list[dict[str, float]]]:
        """Trains on the first `classes` classes: the model and each epoch's metrics."""
        config, train, labels = self._config, self._config.train, self._images.labels
        metadata = Metadata(
            kind=EXTERNAL,
            architecture=self._architecture,
            head=config.head,
            num_slots=config.num_slots,
            slots=(0, classes),
            image=ImageInput.of(config.image),
        )
        key = jax.random.fold_in(jax.random.key(config.seed), classes)
        key_init, key_fit = jax.random.split(key)
        variables = init_variables(self._features.model, key_init, config.image.size)
        if config.zero_projection:
            variables = _with_zero_projection(variables)
        if self._learnable:
            # No number of classes is that large: this key is no other's.
            key_heads = jax.random.fold_in(jax.random.key(config.seed), np.uint32(2**32 - 1))
            key_head = jax.random.fold_in(key_heads, classes)
            rows = heads.random_rows(key_head, config.num_slots, config.num_slots - 1)
            variables = heads.attach(variables, rows)
        fixed = None if self._learnable else jnp.asarray(simplex.dsimplex(config.num_slots))
        capacity = max(len(labels), train.batch_size)
        known = jnp.asarray(metadata.known_rows)
        variables, history = fit(
            f"pre-training on {classes} classes",
            self._epoch,
            variables,
            TaskData(
                old=OldModel({}, jnp.asarray(False)),
                classifier=fixed,
                dataset=self._dataset,
                new=make_pool(np.flatnonzero(labels < classes), capacity),
                memory=make_pool(np.zeros(0, np.int32), capacity),
                classes=methods.Classes(active=known, new=known),
            ),
            cosine_schedule(train.learning_rate, train.final_learning_rate, train.epochs),
            key_fit,
            store=store,
            steps_per_call=config.saving.steps_per_call,
            reporter=self._reporter,
            preemption=self._preemption,
            on_epoch=on_epoch,
        )
        return Model(metadata, variables), list(history)

    def held_out_accuracy(self, model: Model) -> float | None:
        """Top-1 accuracy on held-out images; None without such images."""
        if self._test is None:
            return None
        held_out = np.flatnonzero(self._test.labels < model.metadata.slots[1])
        features = self._features(model.variables, self._test.images[held_out])
        return model.accuracy(features, simplex.external_slot(self._test.labels[held_out]))


def _with_zero_projection(variables: Variables) -> Variables:
    """The variables with zeros for the last layer, the linear map; it must be called projection."""
    params = variables["params"]
    if "projection" not in params:
        raise InputError(
            "zero_projection=True: the backbone has no layer called projection, only "
            f"{', '.join(params)}; set it to False, or name its last layer so"
        )
    zeros = jax.tree.map(jnp.zeros_like, params["projection"])
    return {**variables, "params": {**params, "projection": zeros}}
