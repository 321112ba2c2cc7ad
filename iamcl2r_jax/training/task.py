"""One task of a compared system: what it starts from, trains with and knows of the classes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import methods, simplex
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation.maps import fan
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.centres import ClassCentres
from iamcl2r_jax.models import init_variables
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.stored import TASK, UNTRAINED, Architecture, ImageInput, Metadata, Model
from iamcl2r_jax.system.errors import DivergenceError
from iamcl2r_jax.training.context import Context
from iamcl2r_jax.training.step import OldModel, TaskData


def first_model(config: ConfigDict) -> Model:
    """Random variables of the configured architecture, and a random head if it is learnable."""
    head = methods.get(config.method).head
    architecture = Architecture.of_config(config)
    variables = init_variables(architecture.module(), _key(config, _FIRST), config.image.size)
    if heads.is_learnable(head):
        variables = _with_random_head(config, architecture, variables, 0)
    metadata = Metadata(
        UNTRAINED, architecture, head, config.num_slots, (0, 0), ImageInput.of(config.image)
    )
    return Model(metadata, variables)


def new_architecture(config: ConfigDict, task: int, start: Model) -> Architecture:
    """Architecture of the model that a task trains: that of the old model `start`.

    Where the protocol retrains, it is the configured one: replacements may have brought others.
    """
    retrains = task in config.replacements.retrain
    return Architecture.of_config(config) if retrains else start.architecture


# Task t trains with fold_in(key, t); of the same run's key these make others.
_FIRST, _HEADS, _FRESH, _ADAPTERS = (np.uint32(2**32 - n) for n in (1, 2, 3, 4))


def _key(config: ConfigDict, purpose: np.uint32) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


def _with_random_head(config: ConfigDict, architecture: Architecture, variables: Any, task: int):
    key = jax.random.fold_in(_key(config, _HEADS), task)
    rows = heads.random_rows(key, config.num_slots, architecture.num_features)
    return heads.attach(variables, rows)


def start_variables(config: ConfigDict, task: int, start: Model, *, replaced: bool) -> Variables:
    """From what a task trains: the old model `start`, but for what the method starts at random.

    A learnable head starts at random when the model is replaced, since the external model's is of
    other classes. At a task where the protocol retrains, and with a method that retrains at every
    task without replacement, everything does.
    """
    method = methods.get(config.method)
    architecture, variables = new_architecture(config, task, start), start.variables
    fresh = method.retrains and start.trained and not replaced
    fresh = fresh or task in config.replacements.retrain
    if fresh:
        key = jax.random.fold_in(_key(config, _FRESH), task)
        variables = init_variables(architecture.module(), key, config.image.size)
    if (fresh or replaced) and heads.is_learnable(method.head):
        variables = _with_random_head(config, architecture, variables, task)
    return variables


def with_task_centres(
    context: Context, task: int, model: Model, centres: ClassCentres
) -> ClassCentres:
    """Adds the centres of a task's classes, by the model after that task."""
    train = context.stream.train
    indices = context.stream.train_indices(task)
    rows = simplex.downstream_slot(train.labels[indices], context.config.num_slots)
    extract = context.programs.features(model.architecture)
    return centres.with_classes(extract(model.variables, train.images[indices]), rows)


def with_adapter(
    context: Context, task: int, previous: Model, model: Model
) -> tuple[Model, dict[str, Any]]:
    """The model after a task with an adapter from the model of the task before.

    Both embed the task's training images, as they are stored. Raises `DivergenceError` if its
    training left the finite numbers.

    Returns:
      The model, and what its record says of the adapter: its hidden width and the metrics of
      `fan.fit`.
    """
    config, stream = context.config, context.stream
    head = methods.get(config.method).head
    learnable = heads.is_learnable(head)
    indices = stream.train_indices(task)
    images = stream.train.images[indices]
    old, new = (
        context.programs.features(m.architecture)(m.variables, images) for m in (previous, model)
    )
    pairs = fan.make_pairs(
        old,
        new,
        simplex.downstream_slot(stream.train.labels[indices], config.num_slots),
        max(len(stream.train_indices(t)) for t in range(len(stream.tasks))),
    )
    adapter, metrics, diverged = fan.fit(
        fan.Settings(**config.adapter),
        head,
        pairs,
        jnp.asarray(model.classifier_rows()),
        jnp.asarray(model.metadata.known_rows) if learnable else None,
        jax.random.fold_in(_key(config, _ADAPTERS), task),
    )
    if diverged >= 0:
        title = f"adapter of task {task + 1}/{len(stream.tasks)}"
        raise DivergenceError(None, int(diverged), title, field="adapter.learning_rate")
    described = {name: float(value) for name, value in metrics.items()}
    described["hidden"] = config.adapter.hidden
    return dataclasses.replace(model, adapter=jax.device_get(adapter)), described


def task_classes(
    config: ConfigDict, stream: Stream, task: int, centres: ClassCentres
) -> methods.Classes:
    """What the method knows of the classes while it trains a task."""
    label = simplex.downstream_slot(np.arange(config.num_slots), config.num_slots)
    active, earlier = label < stream.tasks[task].stop, label < stream.tasks[task].start
    uses_centres = methods.get(config.method).uses_centres
    return methods.Classes(
        active=jnp.asarray(active),
        new=jnp.asarray(active & ~earlier),
        centres=jnp.asarray(centres.centres) if uses_centres else None,
        boundaries=jnp.asarray(centres.boundaries) if uses_centres else None,
    )


def task_indices(config: ConfigDict, stream: Stream, task: int) -> np.ndarray:
    """Positions in `stream.train` of what a task trains on, the memory aside."""
    if methods.get(config.method).retrains or task in config.replacements.retrain:
        return np.flatnonzero(stream.train.labels < stream.tasks[task].stop)
    return stream.train_indices(task)


def teachers(config: ConfigDict, origin: Model, predecessor: Model | None) -> tuple[Model, ...]:
    """The frozen old models that a task's loss reads, of none to two.

    Args:
      config: its `replacements.replaced_weight` is α, the share of the replaced model.
      origin: from which the new model starts.
      predecessor: the model that `origin` replaces; None where none is replaced.

    Returns:
      () for a method without an old model; (origin,) for α = 0, as in the paper; the predecessor
      alone for α = 1; both otherwise. Where none is replaced, `origin` stands in for it.
    """
    weight, replaced = config.replacements.replaced_weight, predecessor or origin
    if not methods.get(config.method).uses_old_model:
        return ()
    if weight in (0, 1):
        return (replaced if weight else origin,)
    return (origin, replaced)


def task_data(
    context: Context, task: int, old: tuple[Model, ...], memory: np.ndarray, centres: ClassCentres
) -> TaskData:
    """What a task trains with, in shapes that are the same for all tasks.

    Args:
      context, task: of the run, and which.
      old: see `teachers`.
      memory: positions in the stream's training images, integer [M]; not used where the protocol
        retrains, on all images so far.
      centres: of the classes of earlier tasks.
    """
    config, stream = context.config, context.stream
    method = methods.get(config.method)
    pools = [task_indices(config, stream, t) for t in range(len(stream.tasks))]
    most_new = max(map(len, pools))
    most_memory = int(np.minimum(np.bincount(stream.train.labels), config.memory_per_class).sum())
    if task in config.replacements.retrain:
        memory = memory[:0]
    taught = [
        OldModel(
            jax.device_put(model.variables),
            jnp.asarray(model.trained),
            jnp.asarray(model.metadata.known_rows),
        )
        for model in old
    ]
    replaced = None
    if len(old) == 2:
        replaced = taught[1].replace(exists=jnp.asarray(old[1] is not old[0]))
    fixed = None if heads.is_learnable(method.head) else simplex.dsimplex(config.num_slots)
    return TaskData(
        old=taught[0] if taught else OldModel({}, jnp.asarray(False)),
        replaced=replaced,
        classifier=None if fixed is None else jnp.asarray(fixed),
        dataset=context.dataset,
        new=make_pool(pools[task], max(most_new, config.train.batch_size)),
        memory=make_pool(memory, max(most_memory, config.train.batch_size)),
        classes=task_classes(config, stream, task, centres),
    )


def trained_model(context: Context, task: int, start: Model, variables: Variables) -> Model:
    """The model that a task's training from `start` made."""
    config = context.config
    metadata = Metadata(
        kind=TASK,
        architecture=new_architecture(config, task, start),
        head=methods.get(config.method).head,
        num_slots=config.num_slots,
        slots=(config.num_slots - context.stream.tasks[task].stop, config.num_slots),
        image=ImageInput.of(config.image),
    )
    return Model(metadata, variables)


def task_accuracy(context: Context, task: int, model: Model) -> float:
    """Top-1 accuracy on held-out images of all stream classes seen so far."""
    test, seen = context.stream.test, context.stream.seen_test_indices(task)
    slots = simplex.downstream_slot(test.labels[seen], context.config.num_slots)
    extract = context.programs.features(model.architecture)
    return model.accuracy(extract(model.variables, test.images[seen]), slots)
