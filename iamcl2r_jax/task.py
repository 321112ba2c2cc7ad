"""One task of a compared system: what it starts from, trains with and knows of the classes."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import checkpoints, heads, methods, simplex, training
from iamcl2r_jax.centres import ClassCentres
from iamcl2r_jax.config import ConfigError
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation import FeatureExtractor
from iamcl2r_jax.parallel import batch_sharding
from iamcl2r_jax.pretraining import ExternalModel, image_options
from iamcl2r_jax.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Model:
    """A model: its architecture and its variables.

    Attributes:
      spec: see `checkpoints.model_spec`.
      variables: as its module's `.apply` takes them, a learnable head among the parameters.
      slots: first row of the classifier that it was trained on, and one past the last.
      trained: false for the random variables from which a run without an external model starts.
    """

    spec: dict[str, Any]
    variables: training.Variables
    slots: tuple[int, int]
    trained: bool = True

    @classmethod
    def of(cls, external: ExternalModel) -> "Model":
        """An external model."""
        return cls(external.spec, external.variables, tuple(external.record["slots"]))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one architecture."""

    epoch: training.CompiledEpoch
    features: FeatureExtractor


class ProgramsBySpec:
    """Compiled programs by architecture, made when first asked for.

    Raises:
      ConfigError: if the devices cannot share a batch.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self._made: dict[str, Programs] = {}
        try:
            self._batch_sharding = batch_sharding(config.train.batch_size)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def of(self, spec: dict[str, Any]) -> Programs:
        """The programs for models of this architecture."""
        name = json.dumps(spec, sort_keys=True)
        if name not in self._made:
            self._made[name] = self._make(spec)
        return self._made[name]

    def traces(self) -> int:
        """How often a train program was traced."""
        return sum(programs.epoch.traces for programs in self._made.values())

    def _make(self, spec: dict[str, Any]) -> Programs:
        config = self._config
        model = checkpoints.create_model(spec)
        method = methods.get(config.method)
        options = image_options(config.image)
        program = training.Program(
            model=model,
            old_model=model if method.uses_old_model else None,
            loss=partial(method.loss, **config.method_options[config.method]),
            head=method.head,
            image_options=options,
            batch_size=config.train.batch_size,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
            batch_sharding=self._batch_sharding,
        )
        return Programs(training.CompiledEpoch(program), FeatureExtractor(model, options))


def first_model(config: ConfigDict) -> Model:
    """Random variables of the configured architecture, and a random head if it is learnable."""
    spec = checkpoints.model_spec(
        config.model.backbone, config.num_classes - 1, config.model.options.to_dict()
    )
    variables = _random_variables(config, spec, _key(config, _FIRST))
    if heads.is_learnable(methods.get(config.method).head):
        variables = _with_random_head(config, spec, variables, 0)
    return Model(spec, variables, (0, 0), trained=False)


# Task t trains with fold_in(key, t); of the same run's key these make others.
_FIRST, _HEADS, _FRESH = (np.uint32(2**32 - n) for n in (1, 2, 3))


def _key(config: ConfigDict, purpose: np.uint32) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


def _random_variables(config: ConfigDict, spec: dict[str, Any], key: jax.Array):
    return training.init_variables(checkpoints.create_model(spec), key, config.image.size)


def _with_random_head(config: ConfigDict, spec: dict[str, Any], variables: Any, task: int):
    key = jax.random.fold_in(_key(config, _HEADS), task)
    rows = heads.random_rows(key, config.num_classes, spec["num_features"])
    return heads.attach(variables, rows)


def start_variables(
    config: ConfigDict, task: int, start: Model, *, replaced: bool
) -> training.Variables:
    """From what a task trains: the old model `start`, but for what the method makes anew.

    A learnable head starts anew when the model is replaced, since the external model's is that of
    other classes. A method that retrains starts anew at every task without replacement.
    """
    method = methods.get(config.method)
    variables = start.variables
    if method.retrains and start.trained and not replaced:
        key = jax.random.fold_in(_key(config, _FRESH), task)
        variables = _random_variables(config, start.spec, key)
    if replaced and heads.is_learnable(method.head):
        variables = _with_random_head(config, start.spec, variables, task)
    return variables


def with_task_centres(
    config: ConfigDict,
    stream: Stream,
    task: int,
    model: Model,
    programs: Programs,
    centres: ClassCentres,
) -> ClassCentres:
    """Adds the centres of a task's classes, by the model after that task."""
    indices = stream.train_indices(task)
    rows = simplex.downstream_slot(stream.train.labels[indices], config.num_classes)
    features = programs.features(model.variables, stream.train.images[indices])
    return centres.with_classes(features, rows)


def task_classes(
    config: ConfigDict, stream: Stream, task: int, start: Model, centres: ClassCentres
) -> methods.Classes:
    """What the method knows of the classes while it trains a task from `start`."""
    row = np.arange(config.num_classes)
    active = seen_rows(config, stream, task)
    earlier = row > simplex.downstream_slot(stream.tasks[task].start, config.num_classes)
    known = (start.slots[0] <= row) & (row < start.slots[1])
    uses_centres = methods.get(config.method).uses_centres
    return methods.Classes(
        active=jnp.asarray(active),
        new=jnp.asarray(active & ~earlier),
        known=jnp.asarray(known),
        centres=jnp.asarray(centres.centres) if uses_centres else None,
        boundaries=jnp.asarray(centres.boundaries) if uses_centres else None,
    )


def seen_rows(config: ConfigDict, stream: Stream, task: int) -> np.ndarray:
    """Rows of the classifier whose stream classes are seen by the end of a task, bool [K]."""
    return np.arange(config.num_classes) >= config.num_classes - stream.tasks[task].stop


def task_indices(config: ConfigDict, stream: Stream, task: int) -> np.ndarray:
    """Positions in `stream.train` of what a task trains on, the memory aside."""
    if methods.get(config.method).retrains:
        return np.flatnonzero(stream.train.labels < stream.tasks[task].stop)
    return stream.train_indices(task)


def train_task(
    config: ConfigDict,
    stream: Stream,
    dataset: training.Dataset,
    memory: np.ndarray,
    task: int,
    start: Model,
    variables: training.Variables,
    classes: methods.Classes,
    programs: Programs,
    reporter: Reporter,
) -> tuple[Model, list[dict[str, float]]]:
    """Trains one task from `variables`, with `start` as the frozen teacher.

    Returns:
      The new model, and the metrics of each epoch.
    """
    train, num_tasks = config.train, len(stream.tasks)
    method = methods.get(config.method)
    pools = [task_indices(config, stream, t) for t in range(num_tasks)]
    most_new = max(map(len, pools))
    most_memory = config.memory_per_class * len(stream.train.class_names)
    old = training.OldModel(jax.device_put(start.variables), jnp.asarray(start.trained))
    rates = training.cosine_schedule(train.learning_rate, train.final_learning_rate, train.epochs)
    fixed = None if heads.is_learnable(method.head) else simplex.dsimplex(config.num_classes)
    title = f"task {task + 1}/{num_tasks}"
    history = []
    with reporter.stage(title, len(rates)) as stage:
        for state, metrics in training.fit(
            programs.epoch,
            programs.epoch.program.init_state(variables),
            old,
            None if fixed is None else jnp.asarray(fixed),
            dataset,
            make_pool(pools[task], max(most_new, train.batch_size)),
            make_pool(memory, max(most_memory, train.batch_size)),
            rates,
            jax.random.fold_in(jax.random.key(config.seed), task),
            classes,
        ):
            variables = state.variables
            history.append(metrics)
            stage.epoch(metrics)
    seen = (config.num_classes - stream.tasks[task].stop, config.num_classes)
    return Model(start.spec, jax.device_get(variables), seen), history


def task_accuracy(
    config: ConfigDict, stream: Stream, task: int, model: Model, programs: Programs
) -> float:
    """Top-1 accuracy of the classifier on held-out images of all stream classes seen so far.

    The simplex chooses among all K slots, external classes and unused ones included; a learnable
    head among the classes seen so far, as it has no rows for others.
    """
    head = methods.get(config.method).head
    seen = stream.seen_test_indices(task)
    slots = simplex.downstream_slot(stream.test.labels[seen], config.num_classes)
    features = programs.features(model.variables, stream.test.images[seen])
    if heads.is_learnable(head):
        rows, active = heads.rows_of(model.variables), seen_rows(config, stream, task)
    else:
        rows, active = simplex.dsimplex(config.num_classes), None
    chosen = heads.predict(head, features, rows, active)
    return float(np.mean(chosen == slots))
