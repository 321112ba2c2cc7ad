"""What a run leaves in its workdir: the model after each task, and a record of it."""

import os
import time
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax.config import recorded
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import (
    TASK,
    ImageInput,
    Model,
    Requirement,
    load_metadata,
    load_model,
)
from iamcl2r_jax.system import distributed, files
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.system.progress import Reporter


def read_config(workdir: str) -> ConfigDict | None:
    """The configuration of the run in a directory; None if there is none.

    Raises:
      InputError: if no run can have had it; the message is one line.
      DamagedError: if it is not as it was written.
    """
    path = os.path.join(workdir, "config.json")
    written = files.read_json(path)
    try:
        return None if written is None else recorded(written)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def task_path(workdir: str, task: int) -> str:
    """Checkpoint of the model after a task."""
    return os.path.join(workdir, "tasks", str(task))


def task_records(workdir: str) -> list[dict[str, Any]]:
    """Records of the finished tasks, from the first without a gap.

    Raises:
      InputError: if one of them is damaged.
    """
    records = []
    while checkpoints.exists(path := task_path(workdir, len(records))):
        records.append(load_task_record(path, len(records)))
    return records


def load_task_record(path: str, task: int) -> dict[str, Any]:
    """What the metadata of a task's checkpoint say about the task.

    Raises:
      DamagedError: if it is damaged, or is not what a run writes after this task.
    """
    record = load_metadata(path, Requirement(kind=TASK)).about
    match record:
        case {
            "task": number,
            "memory": list(memory),
            "task_accuracy": float(),
            "history": [*epochs],
        } if (
            number == task
            and all(type(index) is int and 0 <= index < 2**31 for index in memory)
            and epochs
            and all(isinstance(epoch, dict) and "loss" in epoch for epoch in epochs)
        ):
            return record
    raise DamagedError(f"checkpoint {path}: its record is not that of task {task + 1} of a run")


def intact_task_records(workdir: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Records of the finished tasks up to the first that is damaged or missing.

    What comes after was built on that one; it is set aside, so that the run goes on from the last
    intact task.

    Raises:
      InputError: if one cannot be read, which may be whole.
    """
    records = []
    while True:
        path = task_path(workdir, len(records))
        try:
            if not checkpoints.exists(path) and not epath.Path(path).exists():
                break
            records.append(load_task_record(path, len(records)))
        except DamagedError as error:
            reporter.message(f"{error}; going back to the end of task {len(records)}")
            break
    tasks = epath.Path(workdir) / "tasks"
    later = [
        child
        for child in (tasks.iterdir() if tasks.exists() else ())
        if child.name.isdigit() and int(child.name) >= len(records)
    ]
    distributed.check_same(f"{tasks}", len(records))
    for child in sorted(later) if distributed.is_first() else ():
        aside = epath.Path(workdir) / "set_aside"
        aside.mkdir(exist_ok=True)
        child.rename(aside / f"{child.name}-{time.time_ns()}")
    return records


def load_task(config: ConfigDict, workdir: str, task: int) -> Model:
    """The model after a task."""
    require = Requirement(kind=TASK, num_slots=config.num_slots, image=ImageInput.of(config.image))
    return load_model(task_path(workdir, task), require)
