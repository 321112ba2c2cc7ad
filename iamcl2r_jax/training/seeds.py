"""Several seeds of one experiment, trained at once by one vectorised program.

Everything but the training itself is the ordinary procedure of each seed, `lifelong.stream_tasks`,
and each leaves an ordinary run. A workdir holds:
  seed<s>/                   the run with seed s, as `lifelong.run` leaves it
  progress/<t>-<seeds>/      where the training of task t stands, while it is under way
  results.json               mean and std over the seeds
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from iamcl2r_jax.config import check_stream, validate
from iamcl2r_jax.data import streaming
from iamcl2r_jax.data.sampling import Pool
from iamcl2r_jax.evaluation.intervals import mean_and_std
from iamcl2r_jax.methods import Classes
from iamcl2r_jax.reports import tracking
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, lifelong
from iamcl2r_jax.training.lifelong import TaskTraining, Trained
from iamcl2r_jax.training.resume import ProgressStore, fit_resumably
from iamcl2r_jax.training.task import (
    ProgramsByArchitecture,
    Setting,
    new_architecture,
    stream_dataset,
    task_data,
    task_key,
    trained_model,
)
from iamcl2r_jax.training.training import (
    CompiledEpoch,
    Metrics,
    OldModel,
    Program,
    TaskData,
    TrainState,
    cosine_schedule,
    train_steps,
)

# What differs between seeds has a leading axis. Sizes do not differ, and so stay what decides how
# batches are drawn: were they vectorised, every way of drawing would be computed.
_DATA_AXES = TaskData(
    old=OldModel(variables=0, exists=None),
    classifier=None,
    dataset=None,
    new=None,
    memory=Pool(indices=0, size=None),
    classes=Classes(active=None, new=None, known=None, centres=0, boundaries=0),
)


class SeedsEpoch(CompiledEpoch):
    """`CompiledEpoch` for S seeds at once.

    State, key [S], and what `_DATA_AXES` says of the data have a leading axis S. The metrics are
    scalars as there: their means over the seeds, and those of the i-th seed as "i/NAME". The first
    step that is not finite is told of each seed, [S].
    """

    def _traced(
        self,
        state: TrainState,
        data: TaskData,
        first: jax.Array,
        stop: jax.Array,
        learning_rate: jax.Array,
        keys: jax.Array,
    ) -> tuple[TrainState, Metrics, jax.Array]:
        self.traces += 1
        steps = jax.vmap(
            partial(train_steps, self.program), in_axes=(0, _DATA_AXES, None, None, None, 0)
        )
        state, sums, diverged = steps(state, data, first, stop, learning_rate, keys)
        metrics = {name: jnp.mean(values) for name, values in sums.items()}
        for index in range(len(keys)):
            metrics |= {f"{index}/{name}": values[index] for name, values in sums.items()}
        return state, metrics, diverged


def run(
    config: ConfigDict,
    workdir: str,
    reporter: Reporter | None = None,
    preemption: Preemption | None = None,
    *,
    command: str | None = None,
) -> dict[str, Any]:
    """`lifelong.run` for `config.num_seeds` seeds: `config.seed` and those after it.

    The runs are those of each seed alone up to rounding: a vectorised product adds in another
    order, and training amplifies that. Random numbers are the same. A second call continues.

    Args:
      config: see `config.default`.
      workdir: directory of the runs.
      reporter, preemption, command: see `lifelong.run`.

    Returns:
      What stands in workdir/results.json, see `summary`.

    Raises:
      See `lifelong.run`.
    """
    reporter, preemption = reporter or Reporter(), preemption or Preemption()
    validate(config)
    if jax.process_count() > 1:
        raise InputError(
            f"num_seeds={config.num_seeds}: must be 1 in a job of several processes; give each "
            "process seeds of its own, without a job"
        )
    tracking.check(config.tracking)
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise InputError(f"workdir={workdir} holds a run of one seed; choose another workdir")
    runs = [
        (one_seed(config, seed), os.path.join(workdir, f"seed{seed}"))
        for seed in range(config.seed, config.seed + config.num_seeds)
    ]
    for seed_config, place in runs:
        lifelong.refuse_other_config(seed_config, place)
    with files.one_writer(workdir):
        unfinished = [
            run for run in runs if not os.path.exists(os.path.join(run[1], "results.json"))
        ]
        loaded = None
        if unfinished:
            check_stream(config, *inputs.stream_size(config))
            loaded = inputs.load_all(config)  # no image depends on the seed
            inputs.report_passed_over(config, reporter)
            with ExitStack() as stack:
                for _, place in unfinished:
                    stack.enter_context(files.one_writer(place))
                train(unfinished, workdir, loaded, reporter, preemption)
        results = [
            lifelong.run(seed_config, place, reporter, preemption, command=command, loaded=loaded)
            for seed_config, place in runs
        ]
        found = summary(results)
        files.write_json(os.path.join(workdir, "results.json"), found)
    return found


def one_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The configuration of the run with one of the seeds."""
    config = config.copy_and_resolve_references()
    config.seed, config.num_seeds = seed, 1
    return config


def train(
    runs: Sequence[tuple[ConfigDict, str]],
    workdir: str,
    loaded: inputs.ImageSets,
    reporter: Reporter,
    preemption: Preemption,
) -> None:
    """Trains the streams of runs that differ in their seed alone, and saves each task of each.

    Args:
      runs: configuration and workdir of each.
      workdir: holds what is under way.
      loaded: the images of all.
      reporter, preemption: see `lifelong.run`.
    """
    config = runs[0][0]
    stream, evaluations = loaded
    if not streaming.fits(stream.train.images, config.resident_gib):
        raise InputError(
            f"resident_gib={config.resident_gib}: must be at least "
            f"{stream.train.images.nbytes / 2**30}, what the stream's images take, since "
            "several seeds at once (num_seeds) are not streamed"
        )
    digests = inputs.digests(stream, evaluations)
    for _, place in runs:
        lifelong.refuse_other_data(digests, place)
    external = inputs.external_models(config, reporter, preemption)
    programs = ProgramsByArchitecture(config)
    dataset = stream_dataset(config, stream, programs)
    epochs: dict[Program, SeedsEpoch] = {}
    settings, streams = [], []
    for seed_config, place in runs:
        files.write_json(os.path.join(place, "config.json"), seed_config.to_dict())
        files.write_json(os.path.join(place, "data.json"), digests)
        setting = Setting(seed_config, stream, dataset, programs, reporter, preemption)
        settings.append(setting)
        streams.append(lifelong.stream_tasks(setting, external, place))

    trainings = [lifelong.following(tasks)[0] for tasks in streams]
    while any(trainings):
        # All are at the same task, unless an earlier start ended while it saved one after another.
        task = min(training.task for training in trainings if training)
        group = [i for i, training in enumerate(trainings) if training and training.task == task]
        names = "-".join(str(settings[i].config.seed) for i in group)
        place = os.path.join(workdir, "progress", f"{task}-{names}")
        store = ProgressStore(place, config.saving, reporter)
        start = trainings[group[0]].start  # the architectures are those of all
        architecture = new_architecture(config, task, start)
        program = programs.of(architecture, teacher=start.architecture).epoch.program
        if program not in epochs:
            epochs[program] = SeedsEpoch(program)
        outcomes = train_together(
            epochs[program], [settings[i] for i in group], [trainings[i] for i in group], store
        )
        for i, trained in zip(group, outcomes, strict=True):
            trainings[i] = lifelong.following(streams[i], trained)[0]
        store.clear()


def train_together(
    epoch: SeedsEpoch,
    settings: Sequence[Setting],
    trainings: Sequence[TaskTraining],
    store: ProgressStore,
) -> list[Trained]:
    """`task.train_task` for several seeds: what each of them would return."""
    setting, task = settings[0], trainings[0].task
    train, num_seeds = setting.config.train, len(settings)
    data = [
        task_data(each, task, training.start, training.memory, training.centres)
        for each, training in zip(settings, trainings, strict=True)
    ]
    variables, history = fit_resumably(
        f"task {task + 1}/{len(setting.stream.tasks)} of {num_seeds} seeds",
        epoch,
        stacked([training.variables for training in trainings]),
        stacked_data(data),
        cosine_schedule(train.learning_rate, train.final_learning_rate, train.epochs),
        jnp.stack([task_key(each.config, task) for each in settings]),
        store=store,
        steps_per_call=setting.config.saving.steps_per_call,
        reporter=setting.reporter,
        preemption=setting.preemption,
        members=[f"seed {each.config.seed}" for each in settings],
    )
    return [
        (
            trained_model(
                each, task, training.start, jax.tree.map(lambda leaf, i=index: leaf[i], variables)
            ),
            [_of_seed(index, metrics) for metrics in history],
        )
        for index, (each, training) in enumerate(zip(settings, trainings, strict=True))
    ]


def stacked(trees: Sequence[Any]) -> Any:
    """One tree of the leaves of all, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stacked_data(data: Sequence[TaskData]) -> TaskData:
    """What `SeedsEpoch` takes, from the data of each seed."""
    first = data[0]
    return first.replace(
        old=first.old.replace(variables=stacked([d.old.variables for d in data])),
        memory=first.memory.replace(indices=stacked([d.memory.indices for d in data])),
        classes=first.classes.replace(
            centres=stacked([d.classes.centres for d in data]),
            boundaries=stacked([d.classes.boundaries for d in data]),
        ),
    )


def _of_seed(index: int, metrics: dict[str, float]) -> dict[str, float]:
    prefix = f"{index}/"
    own = {n.removeprefix(prefix): value for n, value in metrics.items() if n.startswith(prefix)}
    return own | {"learning_rate": metrics["learning_rate"]}


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and std over the seeds.

    Args:
      results: of each seed's run.

    Returns:
      "name", "method", "seeds", and under "evaluations" for each of them "ac" and "aa" (in
      percent), see `intervals.mean_and_std`.
    """
    return {
        "name": results[0]["name"],
        "method": results[0]["method"],
        "seeds": [result["seed"] for result in results],
        "evaluations": {
            name: {
                figure: mean_and_std([result["evaluations"][name][figure] for result in results])
                for figure in ("ac", "aa")
            }
            for name in results[0]["evaluations"]
        },
    }
