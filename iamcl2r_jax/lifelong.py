"""The IAM-CL²R procedure: a stream of tasks in which the model is at times replaced.

A workdir holds:
  config.json   the configuration; another one is refused
  tasks/<t>     the model after task t: its variables and a record (memory, accuracy, history)
  results.json  the finished run, see `results`
"""

import dataclasses
import json
import os
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import (
    checkpoints,
    files,
    heads,
    inputs,
    methods,
    runtime,
    simplex,
    training,
)
from iamcl2r_jax.centres import ClassCentres
from iamcl2r_jax.config import ConfigError, check_stream, differences, validate
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.stream import Stream, remember
from iamcl2r_jax.evaluation import (
    Evaluation,
    FeatureExtractor,
    compatibility_matrices,
    embed,
    summarize,
)
from iamcl2r_jax.parallel import batch_sharding
from iamcl2r_jax.pretraining import ExternalModel, image_options, image_spec
from iamcl2r_jax.progress import Reporter
from iamcl2r_jax.runtime import Clock


def run(config: ConfigDict, workdir: str, reporter: Reporter | None = None) -> dict[str, Any]:
    """Trains on the whole stream, evaluates every pair of models and writes the results.

    A second call with the same workdir continues after the last finished task; if the run is
    finished it returns what was written.

    Args:
      config: see `config.default`.
      workdir: directory of the run.
      reporter: shows the progress; by default on the terminal.

    Returns:
      What stands in workdir/results.json.

    Raises:
      ConfigError, DataError, CheckpointError: before any training; the message is one line.
      DivergenceError: if training left the finite numbers.
    """
    reporter = reporter or Reporter()
    validate(config)
    refuse_other_config(config, workdir)
    finished = files.read_json(os.path.join(workdir, "results.json"))
    if finished is not None:
        reporter.message(f"{workdir} holds this run, finished; nothing is run again")
        return finished

    programs = ProgramsBySpec(config)
    with runtime.measure_compilation() as compilation:
        clock = Clock()
        check_stream(config, *inputs.stream_size(config))
        stream = inputs.load_stream(config)
        evaluations = inputs.load_evaluations(config)
        clock.lap("data")
        external = inputs.external_models(config, reporter)
        clock.lap("pretrain")
        files.write_json(os.path.join(workdir, "config.json"), config.to_dict())
        train_stream(config, stream, external, programs, workdir, reporter)
        clock.lap("train")
        figures, passes = evaluate(
            config, workdir, len(stream.tasks), evaluations, programs, reporter
        )
        reference_figures = references(config, evaluations, external, programs)
        clock.lap("evaluate")

    records = task_records(workdir)
    results = {
        "name": config.name,
        "method": config.method,
        "seed": config.seed,
        "num_tasks": len(stream.tasks),
        "classes_per_task": [len(classes) for classes in stream.tasks],
        "replacements": list(config.replacements.tasks),
        "external_models": {str(task): model.path for task, model in external.items()},
        "task_accuracy": [record["task_accuracy"] for record in records],
        "evaluations": figures,
        "references": reference_figures,
        "feature_passes": passes,
        "train_traces": programs.traces(),
        # Of this start; tasks that an earlier start finished keep their times in their records.
        "seconds": clock.seconds
        | {"compile": compilation.seconds, "total": sum(clock.seconds.values())},
        "environment": runtime.environment(),
    }
    files.write_json(os.path.join(workdir, "results.json"), results)
    return results


def refuse_other_config(config: ConfigDict, workdir: str) -> None:
    """Raises `ConfigError` if the workdir holds a run with another configuration."""
    there = files.read_json(os.path.join(workdir, "config.json"))
    if there is None:
        if checkpoints.exists(task_path(workdir, 0)):
            raise ConfigError(
                f"workdir={workdir} holds tasks without the config.json that tells whose they are; "
                "choose another workdir"
            )
        return
    differing = differences(there, files.as_json(config.to_dict()))
    if differing:
        raise ConfigError(
            f"workdir={workdir} holds a run with another configuration ({'; '.join(differing)}); "
            "choose another workdir, or remove this one"
        )


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


def train_stream(
    config: ConfigDict,
    stream: Stream,
    external: dict[int, ExternalModel],
    programs: ProgramsBySpec,
    workdir: str,
    reporter: Reporter,
) -> None:
    """Trains task after task, from the first that is not finished, and saves each."""
    dataset = training.Dataset(
        jnp.asarray(stream.train.images),
        jnp.asarray(simplex.downstream_slot(stream.train.labels, config.num_classes), jnp.int32),
    )
    method = methods.get(config.method)
    centres = ClassCentres.none(config.num_classes, config.num_classes - 1)
    records = task_records(workdir)
    memory = np.asarray(records[-1]["memory"] if records else [], np.int32)
    if records:
        reporter.message(f"continuing {workdir} after task {len(records)}/{len(stream.tasks)}")
        for task in range(len(records)) if method.uses_centres else ():
            model = load_task(config, workdir, task)
            centres = with_task_centres(
                config, stream, task, model, programs.of(model.spec), centres
            )
        model = load_task(config, workdir, len(records) - 1)
    else:
        model = first_model(config)

    for task in range(len(records), len(stream.tasks)):
        started = time.monotonic()
        if task in external:
            model = Model.of(external[task])
        variables = start_variables(config, task, model, replaced=task in external)
        classes = task_classes(config, stream, task, model, centres)
        model, history = train_task(
            config,
            stream,
            dataset,
            memory,
            task,
            model,
            variables,
            classes,
            programs.of(model.spec),
            reporter,
        )
        if method.uses_memory:
            memory = remember(stream, task, memory, config.memory_per_class, config.seed)
        if method.uses_centres:
            centres = with_task_centres(
                config, stream, task, model, programs.of(model.spec), centres
            )
        accuracy = task_accuracy(config, stream, task, model, programs.of(model.spec))
        record = {
            "kind": "task",
            "task": task,
            "model": model.spec,
            "head": method.head,
            "num_classes": config.num_classes,
            "image": image_spec(config.image),
            "slots": list(model.slots),
            "replaced_by": external[task].path if task in external else None,
            "memory": memory.tolist(),
            "task_accuracy": accuracy,
            "history": history,
            "seconds": time.monotonic() - started,
            "versions": runtime.versions(),
        }
        checkpoints.save(task_path(workdir, task), model.variables, record)
        reporter.message(
            f"task {task + 1}/{len(stream.tasks)}, {len(stream.tasks[task])} new classes"
            f"{', model replaced' if task in external else ''}: "
            f"loss {history[-1]['loss']:.3f}, accuracy {accuracy:.1%} on held-out images of the "
            f"{stream.tasks[task].stop} classes so far, {record['seconds']:.0f} s"
        )


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


def evaluate(
    config: ConfigDict,
    workdir: str,
    num_tasks: int,
    evaluations: dict[str, Evaluation],
    programs: ProgramsBySpec,
    reporter: Reporter,
) -> tuple[dict[str, Any], int]:
    """Every pair of models of a run on every evaluation.

    Returns:
      {evaluation: figures of its matrix}, and the number of feature passes: each model over each
      evaluation once.
    """
    passes = 0

    def embeddings(name, evaluation):
        nonlocal passes
        with reporter.stage(f"evaluation on {name}", num_tasks) as stage:
            for task in range(num_tasks):
                model = load_task(config, workdir, task)
                yield embed(programs.of(model.spec).features, model.variables, evaluation)
                passes += 1
                stage.advance()

    figures = {}
    for name, evaluation in evaluations.items():
        matrices = compatibility_matrices(evaluation, embeddings(name, evaluation), config.measures)
        main, *others = config.measures
        figures[name] = {"measure": main, **summarize(matrices[main])}
        figures[name]["measures"] = {other: summarize(matrices[other]) for other in others}
    return figures, passes


def references(
    config: ConfigDict,
    evaluations: dict[str, Evaluation],
    external: dict[int, ExternalModel],
    programs: ProgramsBySpec,
) -> dict[str, dict[str, float]]:
    """What models that never saw the stream reach on the evaluations, in percent as AA.

    A model that is never updated has one accuracy for every pair, which is its AA: that of the
    untrained network, and that of the first external model.
    """
    models = {"untrained": first_model(config)}
    if external:
        first = external[min(external)]
        models["first_external"] = Model.of(first)
    return {
        evaluation_name: {
            name: 100 * float(_own_accuracy(config, evaluation, model, programs))
            for name, model in models.items()
        }
        for evaluation_name, evaluation in evaluations.items()
    }


def _own_accuracy(config, evaluation, model, programs) -> float:
    embedded = embed(programs.of(model.spec).features, model.variables, evaluation)
    measure = config.measures[0]
    return compatibility_matrices(evaluation, [embedded], [measure])[measure][0, 0]


def task_path(workdir: str, task: int) -> str:
    """Checkpoint of the model after a task."""
    return os.path.join(workdir, "tasks", str(task))


def task_records(workdir: str) -> list[dict[str, Any]]:
    """Records of the finished tasks, from the first without a gap."""
    records = []
    while checkpoints.exists(path := task_path(workdir, len(records))):
        records.append(checkpoints.load_record(path))
    return records


def load_task(config: ConfigDict, workdir: str, task: int) -> Model:
    """The model after a task."""
    path = task_path(workdir, task)
    record = checkpoints.load_record(path)
    spec = record["model"]
    expected = training.expected_variables(checkpoints.create_model(spec), config.image.size)
    expected = heads.attach_expected(
        expected, record["head"], record["num_classes"], spec["num_features"]
    )
    return Model(spec, checkpoints.load(path, expected), tuple(record["slots"]))
