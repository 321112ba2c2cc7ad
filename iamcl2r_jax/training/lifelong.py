"""The IAM-CL²R procedure: a stream of tasks in which the model is at times replaced.

A workdir holds:
  config.json    the configuration; another one is refused
  data.json      digests of the images; others are refused
  numerics.json  how JAX computes and draws random numbers; another way is refused
  arrivals/      what was taken up from the watched directory, see `arrivals`
  progress/<t>   where the training of task t stands, while it is under way
  tasks/<t>      the model after task t; its metadata hold the record of the task
  metrics.jsonl  the run's scalars, and tensorboard/ as well, see `tracking`
  results.json   the finished run
  report.html    the same for a person, see `reports.page`

Of several seeds, seed<s>/ holds each run, results.json mean and standard deviation over them, and
progress/<t>-<seeds> where the training of task t stands.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax import methods
from iamcl2r_jax.config import check_stream, validate
from iamcl2r_jax.data import streaming
from iamcl2r_jax.data.stream import remember
from iamcl2r_jax.methods.centres import ClassCentres
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.stored import Model, save_model
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import arrivals, inputs, runs, seeds, tracking
from iamcl2r_jax.training.context import Context, ProgramsByArchitecture, stream_dataset
from iamcl2r_jax.training.fit import cosine_schedule, fit, history_of_seed
from iamcl2r_jax.training.pretraining import external_models
from iamcl2r_jax.training.results import results_of
from iamcl2r_jax.training.resume import ProgressStore
from iamcl2r_jax.training.task import (
    first_model,
    new_architecture,
    start_variables,
    task_accuracy,
    task_data,
    teachers,
    trained_model,
    with_adapter,
    with_task_centres,
)


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

    With `config.num_seeds` > 1 it does so for `config.seed` and the seeds after it, all trained at
    once by one vectorised program. Their runs are those of each seed alone up to rounding: a
    vectorised product adds in another order, and training amplifies that.

    Args:
      config: see `config.default`.
      workdir: directory of the run.
      reporter: shows the progress; by default on the terminal.
      preemption: saves and raises `PreemptedError` once requested.
      command: how the program that calls this was started, for the results; by default this call.
      loaded: the images of this configuration, where the caller has them; loaded if None.

    Returns:
      What stands in workdir/results.json; for several seeds see `seeds.summary`.

    Raises:
      InputError: before any training; the message is one line.
      DivergenceError: if training left the finite numbers.
    """
    reporter, preemption = reporter or Reporter(), preemption or Preemption()
    command = command or f"lifelong.run(config, {workdir!r})"
    validate(config)
    tracking.check(config.tracking)
    distributed.check_same("configuration", config.to_dict() | {"workdir": workdir})
    places = runs.of_seeds(config, workdir)
    for place, of_seed in places.items():
        runs.refuse_other_config(of_seed, place)
    results = {place: runs.finished(place, reporter) for place in places}
    for place in places:
        if results[place] is not None:
            reporter.message(f"{place} holds this run, finished; nothing is run again")
            written = os.path.exists(os.path.join(place, runs.REPORT))
            if config.tracking.report and not written:
                runs.write_report(places[place], place, results[place], reporter)
    unfinished = {place: of_seed for place, of_seed in places.items() if results[place] is None}
    if unfinished:
        files.require_writable(workdir)
        programs = ProgramsByArchitecture(config)
        with runtime.measure_compilation() as compilation, ExitStack() as stack:
            clock = runtime.Clock()
            stream, evaluations = _load_images(config, reporter, loaded)
            digests = inputs.digests(stream, evaluations)
            distributed.check_same("data", digests)
            for place in unfinished:
                runs.refuse_other_data(digests, place)
            clock.lap("data")
            external = external_models(config, reporter, preemption, command)
            clock.lap("pretrain")
            for place in dict.fromkeys((workdir, *unfinished)):
                stack.enter_context(files.one_writer(place))
            dataset = stream_dataset(config, stream, programs)
            common = Context(
                config, workdir, stream, dataset, external, programs, reporter, preemption
            )
            contexts = []
            for place, of_seed in unfinished.items():
                runs.begin(of_seed, digests, place)
                own = {"config": of_seed, "workdir": place}
                own["tracker"] = stack.enter_context(tracking.open_tracker(of_seed, place))
                contexts.append(dataclasses.replace(common, **own))
            records = train_stream(contexts, workdir)
            clock.lap("train")
            for context, of_tasks in zip(contexts, records, strict=True):
                untrained = first_model(context.config)
                found = results_of(context, of_tasks, evaluations, untrained)
                clock.lap("evaluate")
                found |= {
                    "train_traces": programs.traces(),
                    # Of this start, and of all seeds; tasks that an earlier start finished keep
                    # theirs in their records.
                    "seconds": clock.seconds
                    | {"compile": compilation.seconds, "total": sum(clock.seconds.values())},
                    "command": command,
                    "environment": runtime.environment(),
                }
                results[context.workdir] = found
                files.write_json(os.path.join(context.workdir, "results.json"), found)
                context.tracker.evaluations(found["evaluations"])
                if config.tracking.report:
                    made = {"programs": programs, "stream": stream, "evaluations": evaluations}
                    runs.write_report(context.config, context.workdir, found, reporter, **made)
    if config.num_seeds == 1:
        return results[workdir]
    summary = seeds.summary([results[place] for place in places])
    files.write_json(os.path.join(workdir, "results.json"), summary)
    return summary


def _load_images(
    config: ConfigDict, reporter: Reporter, loaded: inputs.ImageSets | None
) -> inputs.ImageSets:
    """The images of a run, once all is checked that can be without them; `loaded` if given."""
    arrivals.check_watched(config)
    check_stream(config, *inputs.stream_size(config))
    stream, evaluations = loaded or (inputs.load_stream(config), inputs.load_evaluations(config))
    if loaded is None:
        inputs.report_passed_over(config, reporter)
    if config.num_seeds > 1 and not streaming.fits(stream.train.images, config.resident_gib):
        raise InputError(
            f"resident_gib={config.resident_gib}: must be at least "
            f"{stream.train.images.nbytes / 2**30}, what the stream's images take, since "
            "several seeds at once (num_seeds) are not streamed"
        )
    return stream, evaluations


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Attributes:
      context: of the run.
      records: of the finished tasks.
      model: after the last of them; None before the first.
      memory: positions in the stream's training images of what is remembered, int32 [M].
      centres: of the classes of finished tasks, for a method that uses them.
    """

    context: Context
    records: list[dict[str, Any]]
    model: Model | None
    memory: np.ndarray
    centres: ClassCentres


@dataclasses.dataclass(frozen=True)
class Start:
    """What a task trains from.

    Attributes:
      origin: the external model where the model is replaced, else the one after the task before.
      teachers: the frozen old models, see `task.teachers`.
      variables: of the new model, see `task.start_variables`.
      replaced: whether the model is replaced.
      began: when the task began, on the clock of `time.monotonic`.
    """

    origin: Model
    teachers: tuple[Model, ...]
    variables: Variables
    replaced: bool
    began: float


def train_stream(contexts: Sequence[Context], workdir: str) -> list[list[dict[str, Any]]]:
    """Trains task after task, from where an earlier start stopped, and saves each.

    Args:
      contexts: of the runs, which differ in their seed alone; one for a run of one seed.
      workdir: keeps where the training of a task stands.

    Returns:
      The record of each task of each run.
    """
    progress = [resumed(context) for context in contexts]
    for task in range(len(contexts[0].stream.tasks)):
        # All runs, unless an earlier start ended while it saved one after another.
        group = [run for run in progress if len(run.records) == task]
        if not group:
            continue
        starts = [prepare(run, task) for run in group]
        names = [task, *(run.context.config.seed for run in group if len(contexts) > 1)]
        place = os.path.join(workdir, "progress", "-".join(map(str, names)))
        store = ProgressStore(place, contexts[0].config.saving, contexts[0].reporter)
        for run, start, trained in zip(
            group, starts, train_task(group, task, starts, store), strict=True
        ):
            finish(run, task, start, *trained)
        store.clear()
    distributed.wait_for_all(f"{workdir}: tasks saved")
    if distributed.is_first():
        files.discard(epath.Path(workdir) / "progress")
    return [run.records for run in progress]


def resumed(context: Context) -> Progress:
    """Where an earlier start of a run stopped, or its beginning."""
    config = context.config
    records = runs.intact_task_records(context.workdir, context.reporter)
    centres = ClassCentres.none(config.num_slots, config.num_slots - 1)
    progress = Progress(context, records, None, np.zeros(0, np.int32), centres)
    for record in records:
        context.tracker.task(record)
    if records:
        context.reporter.message(
            f"continuing {context.workdir} after task {len(records)}/{len(context.stream.tasks)}"
        )
        progress.memory = np.asarray(records[-1]["memory"], np.int32)
        uses_centres = methods.get(config.method).uses_centres
        for task in range(0 if uses_centres else len(records) - 1, len(records)):
            progress.model = runs.load_task(config, context.workdir, task)
            if uses_centres:
                progress.centres = with_task_centres(
                    context, task, progress.model, progress.centres
                )
    return progress


def prepare(run: Progress, task: int) -> Start:
    """Decides what a task trains from: an external model, the model before, or a random one."""
    began, context = time.monotonic(), run.context
    external = context.external.get(task) or arrivals.take(context, task, run.records)
    origin = external or run.model or first_model(context.config)
    replaced = external is not None
    old = teachers(context.config, origin, run.model if replaced else None)
    variables = start_variables(context.config, task, origin, replaced=replaced)
    return Start(origin, old, variables, replaced, began)


def train_task(
    group: Sequence[Progress], task: int, starts: Sequence[Start], store: ProgressStore
) -> list[tuple[Variables, list[dict[str, float]]]]:
    """Trains a task of several runs at once, or of one, from where an earlier start left it.

    Returns:
      Of each run the variables of the new model and the metrics of each epoch.
    """
    context, start = group[0].context, starts[0]  # the architectures are those of all
    config, train = context.config, context.config.train
    architecture = new_architecture(config, task, start.origin)
    old = tuple(model.architecture for model in start.teachers)
    title = f"task {task + 1}/{len(context.stream.tasks)}"
    several = [run.context.config.seed for run in group] if len(group) > 1 else []

    def track(history):
        for index, run in enumerate(group):
            run.context.tracker.epochs(task, history_of_seed(history, index))

    variables, history = fit(
        f"{title} of {len(group)} seeds" if several else title,
        context.programs.epoch(architecture, old, len(group)),
        seeds.stacked([start.variables for start in starts]),
        seeds.stacked_data(
            [
                task_data(run.context, task, start.teachers, run.memory, run.centres)
                for run, start in zip(group, starts, strict=True)
            ]
        ),
        cosine_schedule(train.learning_rate, train.final_learning_rate, train.epochs),
        seeds.stacked(
            [jax.random.fold_in(jax.random.key(run.context.config.seed), task) for run in group]
        ),
        store=store,
        steps_per_call=config.saving.steps_per_call,
        reporter=context.reporter,
        preemption=context.preemption,
        seeds=several,
        on_epoch=track,
    )
    return [
        (seeds.of_seed(variables, index, len(group)), history_of_seed(history, index))
        for index in range(len(group))
    ]


def finish(
    run: Progress, task: int, start: Start, variables: Variables, history: list[dict[str, float]]
) -> None:
    """Saves what a task made, the model and its record, and goes on from it."""
    context, config = run.context, run.context.config
    method, stream = methods.get(config.method), run.context.stream
    model, adapter = trained_model(context, task, start.origin, variables), None
    if method.uses_memory:
        run.memory = remember(stream, task, run.memory, config.memory_per_class, config.seed)
    if method.uses_centres:
        run.centres = with_task_centres(context, task, model, run.centres)
    if method.adapts and task:
        model, adapter = with_adapter(context, task, run.model, model)
    record = {
        "task": task,
        "replaced_by": start.origin.path if start.replaced else None,
        # What an arriving model must be better than.
        "external": arrivals.merits(start.origin.metadata) if start.replaced else None,
        "retrained": task in config.replacements.retrain,
        "memory": run.memory.tolist(),
        "task_accuracy": task_accuracy(context, task, model),
        "history": history,
        "adapter": adapter,
        "seconds": time.monotonic() - start.began,
        "versions": runtime.versions(),
    }
    if distributed.is_first():
        metadata = dataclasses.replace(model.metadata, about=record)
        place = runs.task_path(context.workdir, task)
        save_model(place, dataclasses.replace(model, metadata=metadata))
    run.model = model
    run.records.append(record)
    context.tracker.task(record)
    classes = stream.tasks[task]
    context.reporter.message(
        f"task {task + 1}/{len(stream.tasks)}, {len(classes)} new classes"
        f"{', model replaced' if start.replaced else ''}"
        f"{', retrained on all images so far' if record['retrained'] else ''}: "
        f"loss {history[-1]['loss']:.3f}, accuracy {record['task_accuracy']:.1%} on "
        f"held-out images of the {classes.stop} classes so far, {record['seconds']:.0f} s"
    )
