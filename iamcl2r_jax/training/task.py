"""One task of a compared system: what it starts from, trains with and knows of the classes."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import methods, simplex
from iamcl2r_jax.data import streaming
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation import adapters
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.centres import ClassCentres
from iamcl2r_jax.models import init_variables
from iamcl2r_jax.models.stored import (
    TASK,
    UNTRAINED,
    Architecture,
    ImageInput,
    Metadata,
    Model,
)
from iamcl2r_jax.reports.tracking import Tracker
from iamcl2r_jax.system.errors import DivergenceError
from iamcl2r_jax.system.parallel import batch_sharding
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import training
from iamcl2r_jax.training.pretraining import image_options, optimizer
from iamcl2r_jax.training.resume import ProgressStore, fit_resumably


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one architecture, and of one teacher's."""

    epoch: training.CompiledEpoch
    features: FeatureExtractor


class ProgramsByArchitecture:
    """Compiled programs by architecture, made when first asked for.

    Attributes:
      batch_sharding: of all of them, see `parallel.batch_sharding`.

    Raises:
      InputError: if the devices cannot share a batch.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self._made: dict[tuple[Architecture, Architecture], Programs] = {}
        self.batch_sharding = batch_sharding(config.train.batch_size)

    def of(self, architecture: Architecture, teacher: Architecture | None = None) -> Programs:
        """The programs for models of this architecture.

        Args:
          architecture: of the model.
          teacher: of the old model that it is trained with; by default the same.
        """
        if teacher is None or not methods.get(self._config.method).uses_old_model:
            teacher = architecture
        key = architecture, teacher
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def traces(self) -> int:
        """How often a train program was traced."""
        return sum(programs.epoch.traces for programs in self._made.values())

    def _make(self, architecture: Architecture, teacher: Architecture) -> Programs:
        config = self._config
        model = architecture.module()
        method = methods.get(config.method)
        options = image_options(config.image)
        program = training.Program(
            model=model,
            old_model=teacher.module() if method.uses_old_model else None,
            loss=partial(method.loss, **config.method_options[config.method]),
            head=method.head,
            image_options=options,
            batch_size=config.train.batch_size,
            optimizer=optimizer(config.train),
            batch_sharding=self.batch_sharding,
        )
        return Programs(training.CompiledEpoch(program), FeatureExtractor(model, options))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for all tasks of a run.

    Attributes:
      config: see `config.default`.
      stream: images of all tasks.
      dataset: the stream's training images, labelled by row of the classifier.
      programs: compiled programs by architecture.
      reporter: shows the progress.
      preemption: tells when to save and stop.
      tracker: is told of every epoch; by default tells nobody.
    """

    config: ConfigDict
    stream: Stream
    dataset: streaming.Dataset | streaming.HostDataset
    programs: ProgramsByArchitecture
    reporter: Reporter
    preemption: Preemption
    tracker: Tracker = dataclasses.field(default_factory=Tracker)


def stream_dataset(
    config: ConfigDict, stream: Stream, programs: ProgramsByArchitecture
) -> streaming.Dataset | streaming.HostDataset:
    """The stream's training images, labelled by row of the classifier, on the devices or not."""
    slots = simplex.downstream_slot(stream.train.labels, config.num_slots)
    return streaming.place(stream.train.images, slots, config.resident_gib, programs.batch_sharding)


def first_model(config: ConfigDict) -> Model:
    """Random variables of the configured architecture, and a random head if it is learnable."""
    head = methods.get(config.method).head
    architecture = _configured_architecture(config)
    variables = _random_variables(config, architecture, _key(config, _FIRST))
    if heads.is_learnable(head):
        variables = _with_random_head(config, architecture, variables, 0)
    metadata = Metadata(
        UNTRAINED, architecture, head, config.num_slots, (0, 0), ImageInput.of(config.image)
    )
    return Model(metadata, variables)


def _configured_architecture(config: ConfigDict) -> Architecture:
    return Architecture.of(config.model.backbone, config.num_slots - 1, config.model.options)


def new_architecture(config: ConfigDict, task: int, start: Model) -> Architecture:
    """Architecture of the model that a task trains: that of the old model `start`.

    Where the protocol retrains, it is the configured one: replacements may have brought others.
    """
    retrains = task in config.replacements.retrain
    return _configured_architecture(config) if retrains else start.architecture


# Task t trains with fold_in(key, t); of the same run's key these make others.
_FIRST, _HEADS, _FRESH, _ADAPTERS = (np.uint32(2**32 - n) for n in (1, 2, 3, 4))


def _key(config: ConfigDict, purpose: np.uint32) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


def _random_variables(config: ConfigDict, architecture: Architecture, key: jax.Array):
    return init_variables(architecture.module(), key, config.image.size)


def _with_random_head(config: ConfigDict, architecture: Architecture, variables: Any, task: int):
    key = jax.random.fold_in(_key(config, _HEADS), task)
    rows = heads.random_rows(key, config.num_slots, architecture.num_features)
    return heads.attach(variables, rows)


def start_variables(
    config: ConfigDict, task: int, start: Model, *, replaced: bool
) -> training.Variables:
    """From what a task trains: the old model `start`, but for what the method makes anew.

    A learnable head starts anew when the model is replaced, since the external model's is that of
    other classes. At a task where the protocol retrains, and with a method that retrains at every
    task without replacement, everything does.
    """
    method = methods.get(config.method)
    architecture, variables = new_architecture(config, task, start), start.variables
    fresh = method.retrains and start.trained and not replaced
    fresh = fresh or task in config.replacements.retrain
    if fresh:
        key = jax.random.fold_in(_key(config, _FRESH), task)
        variables = _random_variables(config, architecture, key)
    if (fresh or replaced) and heads.is_learnable(method.head):
        variables = _with_random_head(config, architecture, variables, task)
    return variables


def with_task_centres(
    setting: Setting, task: int, model: Model, centres: ClassCentres
) -> ClassCentres:
    """Adds the centres of a task's classes, by the model after that task."""
    train = setting.stream.train
    indices = setting.stream.train_indices(task)
    rows = simplex.downstream_slot(train.labels[indices], setting.config.num_slots)
    extract = setting.programs.of(model.architecture).features
    return centres.with_classes(extract(model.variables, train.images[indices]), rows)


def with_adapter(
    setting: Setting, task: int, previous: Model, model: Model
) -> tuple[Model, dict[str, Any]]:
    """The model after a task with an adapter from the model of the task before.

    Both embed the task's training images, as they are stored.

    Returns:
      The model, and what its record says of the adapter: its hidden width and the metrics of
      `adapters.fit`.

    Raises:
      DivergenceError: if its training left the finite numbers.
    """
    config, stream = setting.config, setting.stream
    head = methods.get(config.method).head
    learnable = heads.is_learnable(head)
    indices = stream.train_indices(task)
    images = stream.train.images[indices]
    old, new = (
        setting.programs.of(m.architecture).features(m.variables, images) for m in (previous, model)
    )
    pairs = adapters.make_pairs(
        old,
        new,
        simplex.downstream_slot(stream.train.labels[indices], config.num_slots),
        max(len(stream.train_indices(t)) for t in range(len(stream.tasks))),
    )
    adapter, metrics, diverged = adapters.fit(
        adapters.Settings(**config.adapter),
        head,
        pairs,
        jnp.asarray(model.classifier_rows()),
        jnp.asarray(seen_rows(config, stream, task)) if learnable else None,
        jax.random.fold_in(_key(config, _ADAPTERS), task),
    )
    if diverged >= 0:
        title = f"adapter of task {task + 1}/{len(stream.tasks)}"
        raise DivergenceError(None, int(diverged), title, field="adapter.learning_rate")
    described = {name: float(value) for name, value in metrics.items()}
    described["hidden"] = config.adapter.hidden
    return dataclasses.replace(model, adapter=jax.device_get(adapter)), described


def task_classes(
    config: ConfigDict, stream: Stream, task: int, start: Model, centres: ClassCentres
) -> methods.Classes:
    """What the method knows of the classes while it trains a task from `start`."""
    row = np.arange(config.num_slots)
    active = seen_rows(config, stream, task)
    earlier = row > simplex.downstream_slot(stream.tasks[task].start, config.num_slots)
    first, stop = start.metadata.slots
    known = (first <= row) & (row < stop)
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
    return np.arange(config.num_slots) >= config.num_slots - stream.tasks[task].stop


def task_indices(config: ConfigDict, stream: Stream, task: int) -> np.ndarray:
    """Positions in `stream.train` of what a task trains on, the memory aside."""
    if methods.get(config.method).retrains or task in config.replacements.retrain:
        return np.flatnonzero(stream.train.labels < stream.tasks[task].stop)
    return stream.train_indices(task)


def train_task(
    setting: Setting,
    task: int,
    start: Model,
    variables: training.Variables,
    memory: np.ndarray,
    centres: ClassCentres,
    store: ProgressStore,
) -> tuple[Model, list[dict[str, float]]]:
    """Trains one task, or what an earlier start left of it.

    Args:
      setting: of the run.
      task: which.
      start: the frozen teacher.
      variables: from which the new model starts, see `start_variables`.
      memory: positions in the stream's training images, integer [M]; not used where the protocol
        retrains, on all images so far.
      centres: of the classes of earlier tasks.
      store: keeps where the training stands.

    Returns:
      The new model, and the metrics of each epoch.
    """
    train = setting.config.train
    architecture = new_architecture(setting.config, task, start)
    variables, history = fit_resumably(
        f"task {task + 1}/{len(setting.stream.tasks)}",
        setting.programs.of(architecture, teacher=start.architecture).epoch,
        variables,
        task_data(setting, task, start, memory, centres),
        training.cosine_schedule(train.learning_rate, train.final_learning_rate, train.epochs),
        task_key(setting.config, task),
        store=store,
        steps_per_call=setting.config.saving.steps_per_call,
        reporter=setting.reporter,
        preemption=setting.preemption,
        on_epoch=partial(setting.tracker.epochs, task),
    )
    return trained_model(setting, task, start, variables), history


def task_key(config: ConfigDict, task: int) -> jax.Array:
    """Random key of a task's training."""
    return jax.random.fold_in(jax.random.key(config.seed), task)


def task_data(
    setting: Setting, task: int, start: Model, memory: np.ndarray, centres: ClassCentres
) -> training.TaskData:
    """What a task trains with, in shapes that are the same for all tasks; see `train_task`."""
    config, stream = setting.config, setting.stream
    method = methods.get(config.method)
    pools = [task_indices(config, stream, t) for t in range(len(stream.tasks))]
    most_new = max(map(len, pools))
    most_memory = int(np.minimum(np.bincount(stream.train.labels), config.memory_per_class).sum())
    if task in config.replacements.retrain:
        memory = memory[:0]
    # Without a use for it, the old model's architecture is no part of the program.
    old_variables = jax.device_put(start.variables) if method.uses_old_model else {}
    fixed = None if heads.is_learnable(method.head) else simplex.dsimplex(config.num_slots)
    return training.TaskData(
        old=training.OldModel(old_variables, jnp.asarray(start.trained)),
        classifier=None if fixed is None else jnp.asarray(fixed),
        dataset=setting.dataset,
        new=make_pool(pools[task], max(most_new, config.train.batch_size)),
        memory=make_pool(memory, max(most_memory, config.train.batch_size)),
        classes=task_classes(config, stream, task, start, centres),
    )


def trained_model(
    setting: Setting, task: int, start: Model, variables: training.Variables
) -> Model:
    """The model that a task's training from `start` made."""
    config = setting.config
    metadata = Metadata(
        kind=TASK,
        architecture=new_architecture(config, task, start),
        head=methods.get(config.method).head,
        num_slots=config.num_slots,
        slots=(config.num_slots - setting.stream.tasks[task].stop, config.num_slots),
        image=ImageInput.of(config.image),
    )
    return Model(metadata, variables)


def task_accuracy(setting: Setting, task: int, model: Model) -> float:
    """Top-1 accuracy of `Model.classify` on held-out images of all stream classes seen so far."""
    config, stream = setting.config, setting.stream
    seen = stream.seen_test_indices(task)
    slots = simplex.downstream_slot(stream.test.labels[seen], config.num_slots)
    extract = setting.programs.of(model.architecture).features
    features = extract(model.variables, stream.test.images[seen])
    chosen = model.classify(features, seen_rows(config, stream, task))
    return float(np.mean(chosen == slots))
