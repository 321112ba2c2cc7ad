"""The IAM-CL²R procedure: a stream of tasks in which the model is at times replaced.

A workdir holds:
  config.json   the configuration; another one is refused
  tasks/<t>     the model after task t: its variables and a record (memory, accuracy, history)
  results.json  the finished run, see `results`
"""

import os
import time
from typing import Any

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
from iamcl2r_jax.data.stream import Stream, remember
from iamcl2r_jax.evaluation import (
    Evaluation,
    compatibility_matrices,
    embed,
    summarize,
)
from iamcl2r_jax.pretraining import ExternalModel, image_spec
from iamcl2r_jax.progress import Reporter
from iamcl2r_jax.runtime import Clock
from iamcl2r_jax.task import (
    Model,
    ProgramsBySpec,
    first_model,
    start_variables,
    task_accuracy,
    task_classes,
    train_task,
    with_task_centres,
)


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
        "reference_passes": sum(map(len, reference_figures.values())),
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
        results = os.path.join(workdir, "results.json")
        if os.path.exists(results) or checkpoints.exists(task_path(workdir, 0)):
            raise ConfigError(
                f"workdir={workdir} holds a run without the config.json that tells whose they are; "
                "choose another workdir"
            )
        return
    differing = differences(there, files.as_json(config.to_dict()))
    if differing:
        raise ConfigError(
            f"workdir={workdir} holds a run with another configuration ({'; '.join(differing)}); "
            "choose another workdir, or remove this one"
        )


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
