"""What a run leaves in its workdir: the model after each task, and a record of it."""

import os
import time
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax import checkpoints, distributed
from iamcl2r_jax.checkpoints import CheckpointError
from iamcl2r_jax.progress import Reporter
from iamcl2r_jax.task import Model, load_model


def task_path(workdir: str, task: int) -> str:
    """Checkpoint of the model after a task."""
    return os.path.join(workdir, "tasks", str(task))


def task_records(workdir: str) -> list[dict[str, Any]]:
    """Records of the finished tasks, from the first without a gap.

    Raises:
      CheckpointError: if one of them is damaged.
    """
    records = []
    while checkpoints.exists(path := task_path(workdir, len(records))):
        records.append(checkpoints.load_record(path))
    return records


def intact_task_records(workdir: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Records of the finished tasks up to the first that is damaged or missing.

    What comes after was built on that one; it is set aside, so that the run goes on from the last
    intact task.
    """
    records = []
    while True:
        path = task_path(workdir, len(records))
        try:
            if not checkpoints.exists(path) and not epath.Path(path).exists():
                break
            records.append(checkpoints.load_record(path))
        except CheckpointError as error:
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
    return load_model(task_path(workdir, task), config.image.size)
