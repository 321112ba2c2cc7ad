"""The IAM-CL²R procedure: a stream of tasks in which the model is at times replaced.

A workdir holds:
  config.json    the configuration; another one is refused
  data.json      digests of the images; others are refused
  arrivals/      what was taken up from the watched directory, see `arrivals`
  progress/<t>   where the training of task t stands, while it is under way
  tasks/<t>      the model after task t: its variables and a record (memory, accuracy, history)
  metrics.jsonl  the run's scalars, and tensorboard/ as well, see `tracking`
  results.json   the finished run, see `results`
  report.html    the same for a person, see `html_report`; its plots are in figures/
"""

import dataclasses
import os
import time
from collections.abc import Generator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax import methods
from iamcl2r_jax.config import (
    WITHOUT_EFFECT,
    check_stream,
    differences,
    validate,
    without_unused_options,
)
from iamcl2r_jax.data.stream import Stream, remember
from iamcl2r_jax.evaluation import adapters
from iamcl2r_jax.evaluation.features import Evaluation, embed
from iamcl2r_jax.evaluation.pairs import evaluate_models, evaluate_pairs
from iamcl2r_jax.methods.centres import ClassCentres
from iamcl2r_jax.models.stored import Model, save_model
from iamcl2r_jax.reports import html_report, tracking
from iamcl2r_jax.reports.schedule import Schedule
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.system.runtime import Clock
from iamcl2r_jax.training import arrivals, inputs
from iamcl2r_jax.training.resume import ProgressStore
from iamcl2r_jax.training.runs import intact_task_records, load_task, task_path
from iamcl2r_jax.training.task import (
    ProgramsByArchitecture,
    Setting,
    first_model,
    start_variables,
    stream_dataset,
    task_accuracy,
    train_task,
    with_adapter,
    with_task_centres,
)
from iamcl2r_jax.training.training import Variables

_OF_A_RUN = ("progress", "tasks", "results.json")


def run(
    config: ConfigDict,
    workdir: str,
    reporter: Reporter | None = None,
    preemption: Preemption | None = None,
    *,
    command: str | None = None,
    loaded: inputs.ImageSets | None = None,
) -> dict[str, Any]:
    """Trains on the whole stream, evaluates every pair of models and writes the results.

    A second call with the same workdir continues where the one before stopped, however it ended,
    with the results of a run that never stopped (on the same kind of device); if the run is
    finished it returns what was written.

    Args:
      config: see `config.default`.
      workdir: directory of the run.
      reporter: shows the progress; by default on the terminal.
      preemption: saves and raises `PreemptedError` once requested.
      command: how the program that calls this was started, for the results; by default this call.
      loaded: the images of this configuration, where the caller has them; loaded if None.

    Returns:
      What stands in workdir/results.json.

    Raises:
      InputError: before any training; the message is one line.
      LockedError: if another process runs in the workdir.
      DivergenceError: if training left the finite numbers.
    """
    reporter, preemption = reporter or Reporter(), preemption or Preemption()
    validate(config)
    if config.num_seeds != 1:
        raise InputError(f"num_seeds={config.num_seeds}: must be 1 here; seeds.run takes several")
    tracking.check(config.tracking)
    distributed.check_same("configuration", config.to_dict() | {"workdir": workdir})
    refuse_other_config(config, workdir)
    finished = _finished(workdir, reporter)
    if finished is not None:
        reporter.message(f"{workdir} holds this run, finished; nothing is run again")
        tidy(workdir, reporter)
        if not os.path.exists(os.path.join(workdir, html_report.FILE)):
            html_report.write_or_tell(config, workdir, finished, reporter)
        return finished
    files.require_writable(workdir)

    programs = ProgramsByArchitecture(config)
    with runtime.measure_compilation() as compilation:
        clock = Clock()
        arrivals.check_watched(config)
        check_stream(config, *inputs.stream_size(config))
        stream, evaluations = loaded or inputs.load_all(config)
        if loaded is None:
            inputs.report_passed_over(config, reporter)
        digests = inputs.digests(stream, evaluations)
        distributed.check_same("data", digests)
        refuse_other_data(digests, workdir)
        clock.lap("data")
        external = inputs.external_models(config, reporter, preemption, command)
        clock.lap("pretrain")
        dataset = stream_dataset(config, stream, programs)
        with files.one_writer(workdir), tracking.open_tracker(config, workdir) as tracker:
            # Again: until the lock was had, another process may have begun a run here.
            refuse_other_config(config, workdir)
            refuse_other_data(digests, workdir)
            files.write_json(os.path.join(workdir, "config.json"), config.to_dict())
            files.write_json(os.path.join(workdir, "data.json"), digests)
            setting = Setting(config, stream, dataset, programs, reporter, preemption, tracker)
            records, external = train_stream(setting, external, workdir)
            clock.lap("train")
            evaluated, passes = evaluate(setting, workdir, evaluations)
            reference_figures = references(config, evaluations, external, programs)
            clock.lap("evaluate")
            results = {
                "name": config.name,
                "method": config.method,
                "seed": config.seed,
                "num_tasks": len(stream.tasks),
                "classes_per_task": [len(classes) for classes in stream.tasks],
                "replacements": sorted(external),
                "retrained": list(config.replacements.retrain),
                "external_models": {str(task): external[task].path for task in sorted(external)},
                "fixed_schedule": (
                    arrivals.fixed_schedule(external) if config.replacements.watch else None
                ),
                "task_accuracy": [record["task_accuracy"] for record in records],
                "evaluations": evaluated,
                "references": reference_figures,
                "feature_passes": passes,
                "reference_passes": sum(map(len, reference_figures.values())),
                "train_traces": programs.traces(),
                # Of this start; tasks that an earlier one finished keep theirs in their records.
                "seconds": clock.seconds
                | {"compile": compilation.seconds, "total": sum(clock.seconds.values())},
                "command": command or f"lifelong.run(config, {workdir!r})",
                "environment": runtime.environment(),
            }
            files.write_json(os.path.join(workdir, "results.json"), results)
            tracker.evaluations(evaluated, Schedule.of_results(results), reporter)
            html_report.write_or_tell(
                config,
                workdir,
                results,
                reporter,
                programs=programs,
                stream=stream,
                evaluations=evaluations,
            )
    return results


def _finished(workdir: str, reporter: Reporter) -> dict[str, Any] | None:
    """The results of a finished run; None if there are none to rely on."""
    try:
        return files.read_json(os.path.join(workdir, "results.json"))
    except DamagedError as error:
        reporter.message(f"{error}; it is made again from the tasks")
        return None


def refuse_other_config(config: ConfigDict, workdir: str) -> None:
    """Raises `InputError` if the workdir holds a run with another configuration.

    How often a run saves, who is told of it and where its images are is no part of what it is, nor
    are the options of other methods.
    """
    try:
        there = files.read_json(os.path.join(workdir, "config.json"))
    except DamagedError as error:
        raise InputError(f"workdir={workdir}: {error}; choose another workdir") from None
    if there is None:
        if _has_begun(workdir):
            raise InputError(
                f"workdir={workdir} holds a run without the config.json that tells which it is; "
                "choose another workdir"
            )
        return
    differing = differences(_identity(there), _identity(files.as_json(config.to_dict())))
    if differing:
        raise InputError(
            f"workdir={workdir} holds a run with another configuration ({'; '.join(differing)}); "
            "choose another workdir"
        )


def _has_begun(workdir: str) -> bool:
    """Whether a workdir holds anything that depends on configuration and data."""
    return any((epath.Path(workdir) / name).exists() for name in _OF_A_RUN)


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the fields on which no result depends.

    Options of other methods are such, and those of adapters for a method that trains none: a new
    method does not make finished runs unknown. Nor does a scenario that a run does not have.
    """
    return _of_effect(without_unused_options(config))


def _of_effect(config: dict[str, Any]) -> dict[str, Any]:
    without = {"num_seeds", *WITHOUT_EFFECT}
    without |= {name for name in ("retrain", "watch") if not config.get(name)}
    kept = {name: value for name, value in config.items() if name not in without}
    if "method" in kept and not methods.get(kept["method"]).adapts:
        kept.pop("adapter", None)
    return {n: _of_effect(v) if isinstance(v, dict) else v for n, v in kept.items()}


def refuse_other_data(digests: dict[str, str], workdir: str) -> None:
    """Raises `InputError` if the workdir holds a run that began with other images or labels."""
    try:
        there = files.read_json(os.path.join(workdir, "data.json"))
    except DamagedError as error:
        raise InputError(f"workdir={workdir}: {error}; choose another workdir") from None
    if there is None and _has_begun(workdir):
        raise InputError(
            f"workdir={workdir} holds a run without the data.json that tells its images from "
            "others; choose another workdir"
        )
    for name, digest in digests.items() if there else ():
        if there.get(name) != digest:
            raise InputError(
                f"{name}: its images or labels are not those that the run in workdir={workdir} "
                "began with; restore the data set, or choose another workdir"
            )


@dataclasses.dataclass(frozen=True)
class TaskTraining:
    """A task that is to be trained; see `task.train_task`."""

    task: int
    start: Model
    variables: Variables
    memory: np.ndarray
    centres: ClassCentres


Trained = tuple[Model, list[dict[str, float]]]  # the model, and the metrics of each epoch
# The record of each task, and the external models with those that arrived.
Finished = tuple[list[dict[str, Any]], dict[int, Model]]


def train_stream(setting: Setting, external: dict[int, Model], workdir: str) -> Finished:
    """Trains task after task, from where an earlier start stopped, and saves each.

    Args:
      setting: of the run.
      external: the external models of fixed tasks.
      workdir: of the run.

    Returns:
      The record of each task, and the external models with those that arrived.
    """
    tasks = stream_tasks(setting, external, workdir)
    training, finished = following(tasks)
    while training is not None:
        store = ProgressStore(
            os.path.join(workdir, "progress", str(training.task)),
            setting.config.saving,
            setting.reporter,
        )
        trained = train_task(
            setting,
            training.task,
            training.start,
            training.variables,
            training.memory,
            training.centres,
            store,
        )
        training, finished = following(tasks, trained)
        store.clear()
    return finished


def following(
    tasks: Generator[TaskTraining, Trained, Finished], trained: Trained | None = None
) -> tuple[TaskTraining | None, Finished | None]:
    """Hands what was trained to `stream_tasks`: the next training, or the outcome at the end."""
    try:
        return tasks.send(trained), None
    except StopIteration as end:
        return None, end.value


def stream_tasks(
    setting: Setting, external: dict[int, Model], workdir: str
) -> Generator[TaskTraining, Trained, Finished]:
    """The procedure but for the training itself, which the caller does.

    Args: see `train_stream`.

    Yields:
      Each task that is to be trained, from where an earlier start stopped. It is sent the outcome,
      and has saved it when it yields the next.

    Returns:
      See `train_stream`.
    """
    config, stream, reporter = setting.config, setting.stream, setting.reporter
    method = methods.get(config.method)
    centres = ClassCentres.none(config.num_slots, config.num_slots - 1)
    records = intact_task_records(workdir, reporter)
    for record in records:
        setting.tracker.task(record)
    memory = np.asarray(records[-1]["memory"] if records else [], np.int32)
    model = None
    for task in range(len(records)):
        external = external | arrivals.take(config, workdir, task, external, reporter)
    if records:
        reporter.message(f"continuing {workdir} after task {len(records)}/{len(stream.tasks)}")
        for task in range(len(records)) if method.uses_centres else ():
            centres = with_task_centres(setting, task, load_task(config, workdir, task), centres)
        model = load_task(config, workdir, len(records) - 1)

    for task in range(len(records), len(stream.tasks)):
        started = time.monotonic()
        external = external | arrivals.take(config, workdir, task, external, reporter)
        previous, adapter = model, None
        if task in external:
            model = external[task]
        elif model is None:
            model = first_model(config)
        variables = start_variables(config, task, model, replaced=task in external)
        model, history = yield TaskTraining(task, model, variables, memory, centres)
        if method.uses_memory:
            memory = remember(stream, task, memory, config.memory_per_class, config.seed)
        if method.uses_centres:
            centres = with_task_centres(setting, task, model, centres)
        if method.adapts and task:
            model, adapter = with_adapter(setting, task, previous, model)
        record = {
            "task": task,
            "replaced_by": external[task].path if task in external else None,
            "retrained": task in config.replacements.retrain,
            "memory": memory.tolist(),
            "task_accuracy": task_accuracy(setting, task, model),
            "history": history,
            "adapter": adapter,
            "seconds": time.monotonic() - started,
            "versions": runtime.versions(),
        }
        if distributed.is_first():
            metadata = dataclasses.replace(model.metadata, about=record)
            save_model(task_path(workdir, task), dataclasses.replace(model, metadata=metadata))
        records.append(record)
        setting.tracker.task(record)
        _report_task(record, stream, reporter)
    distributed.wait_for_all(f"{workdir}: tasks saved")
    tidy(workdir, reporter)
    return records, external


def tidy(workdir: str, reporter: Reporter) -> None:
    """Removes what only unfinished tasks need; mentions what cannot be removed."""
    progress = epath.Path(workdir) / "progress"
    if distributed.is_first() and (complaint := files.discard(progress)):
        reporter.message(complaint)


def _report_task(record: dict[str, Any], stream: Stream, reporter: Reporter) -> None:
    classes = stream.tasks[record["task"]]
    reporter.message(
        f"task {record['task'] + 1}/{len(stream.tasks)}, {len(classes)} new classes"
        f"{', model replaced' if record['replaced_by'] else ''}"
        f"{', retrained on all images so far' if record['retrained'] else ''}: "
        f"loss {record['history'][-1]['loss']:.3f}, accuracy {record['task_accuracy']:.1%} on "
        f"held-out images of the {classes.stop} classes so far, {record['seconds']:.0f} s"
    )


def evaluate(
    setting: Setting, workdir: str, evaluations: dict[str, Evaluation]
) -> tuple[dict[str, Any], int]:
    """Every pair of models of a run on every evaluation.

    Returns:
      {evaluation: figures of its matrix}, and the number of feature passes: each model over each
      evaluation once.
    """
    config, num_tasks = setting.config, len(setting.stream.tasks)
    passes = 0

    def embeddings():
        nonlocal passes
        with setting.reporter.stage("evaluation", num_tasks * len(evaluations)) as stage:
            for task in range(num_tasks):
                model = load_task(config, workdir, task)
                extract = setting.programs.of(model.architecture).features
                for name, evaluation in evaluations.items():
                    setting.preemption.check()
                    yield name, embed(extract, model.variables, evaluation, adapters.carrier(model))
                    passes += 1
                    stage.advance()

    return evaluate_models(evaluations, embeddings(), config.metrics), passes


def references(
    config: ConfigDict,
    evaluations: dict[str, Evaluation],
    external: dict[int, Model],
    programs: ProgramsByArchitecture,
) -> dict[str, dict[str, float]]:
    """What models that never saw the stream reach on the evaluations, in percent as AA.

    A model that is never updated has one accuracy for every pair, which is its AA: that of the
    untrained network, and that of the first external model.
    """
    models = {"untrained": first_model(config)}
    if external:
        models["first_external"] = external[min(external)]
    return {
        evaluation_name: {
            name: 100 * float(_own_accuracy(config, evaluation, model, programs))
            for name, model in models.items()
        }
        for evaluation_name, evaluation in evaluations.items()
    }


def _own_accuracy(config, evaluation, model, programs) -> float:
    embedded = embed(programs.of(model.architecture).features, model.variables, evaluation)
    metric, labels = config.metrics[0], (evaluation.query.labels, evaluation.gallery.labels)
    return evaluate_pairs([embedded], *labels, [metric])[metric].matrix[0, 0]
