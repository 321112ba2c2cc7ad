"""What a run leaves while it goes on: metrics.jsonl, TensorBoard's event files, Weights & Biases.

All three get the same lines in the same order, flat dicts of numbers:

  {"task": 0, "epoch": 1, "global_epoch": 1, "train/loss": …, …}      after every epoch
  {"task": 0, "task/accuracy": …, "task/seconds": …}                  after every task
  {"task": 0, "task/NAME/ac": …, "task/NAME/aa": …, …}                for every task, at the end

`task` counts from 0, as in results.json; `epoch` counts the finished epochs of the task and
`global_epoch` those of the run. AC in [0, 1] and AA in percent are those of the models up to the
task, on the evaluation NAME. The last line comes with the pictures task/NAME/matrix.

Pre-training is told in the same words, as task 0, to metrics.jsonl and TensorBoard alone: below
`.NAME.progress` while it goes on, then in its external model's directory.

The checkpoints say what happened, and the lines are only a view of them: a run that goes on after a
stop writes all lines again from what it finds there, so that none is there twice or contradicts.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError

# Takes a line's number, the line, and pictures uint8 [H, W, 3] by name.
Writer = Callable[[int, Mapping[str, float], Mapping[str, np.ndarray]], None]


class Tracker:
    """Tells writers of lines, and drawers of lines and pictures, what a run reached, once."""

    def __init__(
        self,
        epochs_per_task: int = 0,
        writers: Sequence[Writer] = (),
        drawers: Sequence[Writer] = (),
    ):
        self._epochs_per_task = epochs_per_task
        self._writers, self._draws = [*writers, *drawers], bool(drawers)
        self._lines = 0
        self._told: dict[int, int] = {}  # epochs, by task

    def epochs(self, task: int, history: Sequence[Mapping[str, float]]) -> None:
        """Tells of the epochs of a task that were not told before; `history` is of all so far."""
        for index in range(self._told.get(task, 0), len(history)):
            at = {"task": task, "epoch": index + 1}
            at["global_epoch"] = task * self._epochs_per_task + index + 1
            self._write(at | {f"train/{name}": value for name, value in history[index].items()})
        self._told[task] = len(history)

    def task(self, record: Mapping[str, Any]) -> None:
        """Tells of a finished task, by the record of its checkpoint.

        Its accuracy may be None: pre-training does without held-out images.
        """
        task = record["task"]
        self.epochs(task, record["history"])
        figures = {"task/accuracy": record["task_accuracy"], "task/seconds": record["seconds"]}
        known = {name: value for name, value in figures.items() if value is not None}
        self._write({"task": task} | known)

    def evaluations(self, figures: Mapping[str, Any]) -> None:
        """Tells, task by task, what the models up to that task reach.

        The figures are of each evaluation by its name, as in results.json.
        """
        pictures = _matrices(figures) if self._draws else {}
        num_tasks = len(next(iter(figures.values()))["matrix"])
        for task in range(num_tasks):
            line = {"task": task}
            for name, evaluation in figures.items():
                metrics = {"": evaluation} | {f"{m}/": e for m, e in evaluation["metrics"].items()}
                for prefix, found in metrics.items():
                    line[f"task/{name}/{prefix}ac"] = found["ac_per_task"][task]
                    line[f"task/{name}/{prefix}aa"] = found["aa_per_task"][task]
            self._write(line, pictures if task == num_tasks - 1 else None)

    def _write(
        self, line: dict[str, float], pictures: Mapping[str, np.ndarray] | None = None
    ) -> None:
        for write in self._writers:
            write(self._lines, line, pictures or {})
        self._lines += 1


def check(tracking: ConfigDict) -> None:
    """Raises `InputError` if Weights & Biases is asked for and not installed."""
    if tracking.wandb:
        _import_wandb()


@contextmanager
def open_tracker(config: ConfigDict, workdir: str) -> Iterator[Tracker]:
    """The tracker of a run or of pre-training, which begins without lines; closed with the block.

    In a job of several processes only the first one writes. Raises `InputError` if Weights & Biases
    is asked for and cannot start.
    """
    with ExitStack() as stack:
        writers, drawers = [], []
        if jax.process_index() == 0:
            writers.append(stack.enter_context(_json_lines(workdir)))
            if config.tracking.tensorboard:
                drawers.append(stack.enter_context(_tensorboard(workdir)))
            if config.tracking.get("wandb"):  # no field of pre-training's
                drawers.append(stack.enter_context(_weights_and_biases(config, workdir)))
        yield Tracker(config.train.epochs, writers, drawers)


def written(workdir: str) -> list[epath.Path]:
    """The files that a tracker left in a directory."""
    directory = epath.Path(workdir)
    lines = directory / _LINES
    return [lines] * lines.exists() + _event_files(directory / _EVENTS)


_LINES, _EVENTS = "metrics.jsonl", "tensorboard"


def _event_files(directory: epath.Path) -> list[epath.Path]:
    # No glob: it would take a bracket in the directory's own path for a pattern.
    if not directory.exists():
        return []
    return [file for file in directory.iterdir() if file.name.startswith("events.out.tfevents.")]


@contextmanager
def _json_lines(workdir: str) -> Iterator[Writer]:
    path = epath.Path(workdir) / _LINES
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:

        def write(number, line, pictures):
            print(json.dumps(line, allow_nan=False), file=file, flush=True)

        yield write


@contextmanager
def _tensorboard(workdir: str) -> Iterator[Writer]:
    directory = epath.Path(workdir) / _EVENTS
    for events in _event_files(directory):  # of the start before
        files.discard(events)
    with ExitStack() as stack:
        summary = None

        def write(number, line, pictures):
            nonlocal summary
            if summary is None:  # here, since its import takes as long as some steps
                from tensorboardX import SummaryWriter

                summary = stack.enter_context(SummaryWriter(os.fspath(directory)))
            step = line.get("global_epoch", line["task"])
            for name, value in line.items():
                if "/" in name:
                    summary.add_scalar(name, value, step)
            for name, picture in pictures.items():
                summary.add_image(name, picture, step, dataformats="HWC")
            if "epoch" not in line:
                summary.flush()

        yield write


@contextmanager
def _weights_and_biases(config: ConfigDict, workdir: str) -> Iterator[Writer]:
    wandb = _import_wandb()
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "iamcl2r_jax"),
            name=f"{config.name}-{config.method}-seed{config.seed}",
            config=config.to_dict(),
            dir=os.fspath(workdir),
            resume="auto",  # goes on with the run that this directory was stopped in
        )
    except wandb.Error as error:  # not logged in, say
        raise InputError(f"tracking.wandb=True: {' '.join(str(error).split())}") from None
    run.define_metric("train/*", step_metric="global_epoch")
    run.define_metric("task/*", step_metric="task")
    first = run.step  # earlier starts wrote the lines before this one, and the same

    def write(number, line, pictures):
        if number >= first:
            images = {name: wandb.Image(picture) for name, picture in pictures.items()}
            run.log({**line, **images}, step=number)

    exit_code = 1
    try:
        yield write
        exit_code = 0
    finally:  # the run's own `with` would print a traceback
        run.finish(exit_code=exit_code)


def _import_wandb():
    try:
        import wandb  # an extra
    except ImportError:
        raise InputError(
            "tracking.wandb=True: Weights & Biases is not installed; "
            "pip install 'iamcl2r_jax[wandb]', or leave it False"
        ) from None
    return wandb


def _matrices(figures: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The matrix of each evaluation as a picture."""
    from iamcl2r_jax.reports.colours import matrix_picture  # reports are above training

    return {
        f"task/{name}/matrix": matrix_picture(evaluation["matrix"])
        for name, evaluation in figures.items()
    }
