"""External models that appear in a watched directory while the stream runs.

A task asks once, when it begins. What it takes up is copied into the run's workdir, and while the
task trains, arrivals/<t>.json says whether it took up one; once it is finished, its record does.
  arrivals/<t>        the model that task t took up
  arrivals/<t>.json   whether it took up one
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import Metadata, Model, save_model
from iamcl2r_jax.system import distributed, files
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.training.context import Context
from iamcl2r_jax.training.external import load_external


def check_watched(config: ConfigDict) -> None:
    """Raises `InputError` if the directory to watch is not there."""
    watch = config.replacements.watch
    if watch and not epath.Path(watch).is_dir():
        raise InputError(f"replacements.watch={watch!r}: there is no such directory")


def take(context: Context, task: int, records: Sequence[dict[str, Any]]) -> Model | None:
    """What a task that begins takes up from the watched directory.

    The best model there that is better than the one in use, which is the last external one. A
    decision that an earlier start made while it trained this task is kept to; `DamagedError` if it
    or the copy is damaged.

    Args:
      context: of the run.
      task: about to be trained.
      records: of the tasks before it.

    Returns:
      The model, loaded from its copy; None if there is none, or nothing is watched for.
    """
    replacements = context.config.replacements
    if not replacements.watch or task in (*replacements.tasks, *replacements.retrain):
        return None
    copy = os.path.join(context.workdir, "arrivals", str(task))
    # Of a job of several processes the first decides, and the others read what it has written.
    with distributed.first_alone_first(copy):
        taken = _decide(context, copy, task, records)
    return load_external(context.config, copy) if taken else None


def _decide(context: Context, copy: str, task: int, records: Sequence[dict[str, Any]]) -> bool:
    try:
        decision = files.read_json(f"{copy}.json")
    except DamagedError as error:
        raise DamagedError(f"{error}; choose another workdir") from None
    if decision is None:
        if not checkpoints.exists(copy):  # else an earlier start came as far as the copy
            in_use = [record["external"] for record in records if record["external"]]
            best = _best(context, _rank(in_use[-1]) if in_use else _LOWEST)
            if best is not None:
                about = best.metadata.about | {"taken_from": os.path.abspath(best.path)}
                metadata = dataclasses.replace(best.metadata, about=about)
                save_model(copy, dataclasses.replace(best, metadata=metadata))
                context.reporter.message(
                    f"task {task + 1}: takes up {best.path}, {_describe(best.metadata)}"
                )
        decision = {"taken": checkpoints.exists(copy)}
        files.write_json(f"{copy}.json", decision)
    return decision["taken"]


def _best(context: Context, highest: tuple[int, float]) -> Model | None:
    """The best model in the watched directory, if it ranks above `highest`."""
    best = None
    for path in _children(context.config.replacements.watch):
        try:
            if not checkpoints.exists(path):  # one being written
                continue
            candidate = load_external(context.config, path)
            rank = _rank(merits(candidate.metadata))
        except (InputError, OSError) as error:
            context.reporter.message(f"{path} cannot be taken up and is left alone: {error}")
            continue
        # Whatever metadata say must not end a run that can do without the model.
        except (ValueError, TypeError, KeyError) as error:
            context.reporter.message(
                f"{path} is left alone: its metadata make no sense ({error!r})"
            )
            continue
        if rank > highest:
            best, highest = candidate, rank
    return best


def _children(directory: str) -> list[str]:
    """What lies directly below a directory and is not hidden, in the order of the names."""
    try:
        names = sorted(child.name for child in epath.Path(directory).iterdir())
    except FileNotFoundError:  # it was there when the run began
        return []
    return [os.path.join(directory, name) for name in names if not name.startswith(".")]


_LOWEST = (-1, -1.0)


def merits(metadata: Metadata) -> dict[str, Any]:
    """What an external model is ranked by: its classes of pre-training and held-out accuracy."""
    return {"classes": metadata.slots[1], "accuracy": metadata.about.get("accuracy")}


def _rank(merits: Mapping[str, Any]) -> tuple[int, float]:
    """Number of classes of pre-training, then held-out accuracy; unknown is below any."""
    classes, accuracy = merits["classes"], merits["accuracy"]
    if accuracy is None:
        return classes, -1.0
    if not 0 <= accuracy <= 1:
        raise InputError(f"accuracy={accuracy}: must be in [0, 1]")
    return classes, accuracy


def _describe(metadata: Metadata) -> str:
    classes, accuracy = _rank(merits(metadata))
    known = "" if accuracy < 0 else f", held-out accuracy {accuracy:.1%}"
    return f"pre-trained on {classes} classes{known}"
