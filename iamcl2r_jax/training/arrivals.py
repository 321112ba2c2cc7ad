"""External models that appear in a watched directory while the stream runs.

What was taken up is copied into the run's workdir, and that nothing was is written there too: a
decision is made once, and holds whatever happens to the directory afterwards.
  arrivals/<t>        the model that task t took up
  arrivals/<t>.json   whether it took up one
"""

import dataclasses
import os
import shlex

from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import Model, save_model
from iamcl2r_jax.system import distributed, files
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.inputs import load_external


def check_watched(config: ConfigDict) -> None:
    """Raises `InputError` if the directory to watch is not there."""
    watch = config.replacements.watch
    if watch and not epath.Path(watch).is_dir():
        raise InputError(f"replacements.watch={watch!r}: there is no such directory")


def take(
    config: ConfigDict,
    workdir: str,
    task: int,
    external: dict[int, Model],
    reporter: Reporter,
) -> dict[int, Model]:
    """What a task takes up from the watched directory.

    The best model there that is better than the one in use, which is the last external one. An
    earlier start's decision is kept to.

    Args:
      config: of the run.
      workdir: of the run.
      task: about to be trained.
      external: external models by task.
      reporter: told what is taken up, and what cannot be.

    Returns:
      {task: the model, loaded from its copy}; {} if there is none, or nothing is watched for.

    Raises:
      InputError: if an earlier start's decision or copy is damaged.
    """
    replacements = config.replacements
    if not replacements.watch or task in (*replacements.tasks, *replacements.retrain):
        return {}
    copy = os.path.join(workdir, "arrivals", str(task))
    # Of a job of several processes the first decides, and the others read what it has written.
    with distributed.first_alone_first(copy):
        taken = _decide(config, copy, task, external, reporter)
    return {task: load_external(config, copy)} if taken else {}


def _decide(
    config: ConfigDict,
    copy: str,
    task: int,
    external: dict[int, Model],
    reporter: Reporter,
) -> bool:
    try:
        decision = files.read_json(f"{copy}.json")
    except DamagedError as error:
        raise InputError(f"{error}; choose another workdir") from None
    if decision is None:
        if not checkpoints.exists(copy):  # else an earlier start came as far as the copy
            before = [earlier for earlier in external if earlier < task]
            best = _best(config, external[max(before)] if before else None, reporter)
            if best is not None:
                about = best.metadata.about | {"taken_from": os.path.abspath(best.path)}
                metadata = dataclasses.replace(best.metadata, about=about)
                save_model(copy, dataclasses.replace(best, metadata=metadata))
                reporter.message(f"task {task + 1}: takes up {best.path}, {_describe(best)}")
        decision = {"taken": checkpoints.exists(copy)}
        files.write_json(f"{copy}.json", decision)
    return decision["taken"]


def fixed_schedule(external: dict[int, Model]) -> str:
    """The flags that give a run these external models at these tasks, whatever is watched."""
    tasks = tuple(sorted(external))
    values = {
        "tasks": repr(tasks),
        "checkpoints": repr(tuple(external[task].path for task in tasks)),
        "watch": "",
    }
    return " ".join(
        f"--config.replacements.{field}={shlex.quote(value)}" for field, value in values.items()
    )


def _best(config: ConfigDict, in_use: Model | None, reporter: Reporter) -> Model | None:
    best, highest = in_use, _rank(in_use) if in_use else (-1, -1.0)
    for path in _children(config.replacements.watch):
        try:
            if not checkpoints.exists(path):  # one being written
                continue
            candidate = load_external(config, path)
            rank = _rank(candidate)
        except (InputError, OSError) as error:
            reporter.message(f"{path} cannot be taken up and is left alone: {error}")
            continue
        # Whatever a record says must not end a run that can do without the model.
        except (ValueError, TypeError, KeyError) as error:
            reporter.message(f"{path} is left alone: its record makes no sense ({error!r})")
            continue
        if rank > highest:
            best, highest = candidate, rank
    return None if best is in_use else best


def _children(directory: str) -> list[str]:
    """What lies directly below a directory and is not hidden, in the order of the names."""
    try:
        names = sorted(child.name for child in epath.Path(directory).iterdir())
    except FileNotFoundError:  # it was there when the run began
        return []
    return [os.path.join(directory, name) for name in names if not name.startswith(".")]


def _rank(model: Model) -> tuple[int, float]:
    """Number of classes of pre-training, then held-out accuracy; unknown is below any."""
    classes, accuracy = model.metadata.slots[1], model.metadata.about.get("accuracy")
    if accuracy is None:
        return classes, -1.0
    if not 0 <= accuracy <= 1:
        raise InputError(f"checkpoint {model.path}: accuracy={accuracy}: must be in [0, 1]")
    return classes, accuracy


def _describe(model: Model) -> str:
    classes, accuracy = _rank(model)
    known = "" if accuracy < 0 else f", held-out accuracy {accuracy:.1%}"
    return f"pre-trained on {classes} classes{known}"
