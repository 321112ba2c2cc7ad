"""What a run leaves in its workdir, and what of it refuses another run there."""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from iamcl2r_jax import methods
from iamcl2r_jax.config import WITHOUT_EFFECT, differences, recorded, without_unused_options
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import TASK, ImageInput, Model, load_metadata, load_model
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.system.progress import Reporter, or_message
from iamcl2r_jax.training.seeds import one_seed

REPORT = "report.html"


def read_config(workdir: str) -> ConfigDict | None:
    """The configuration of the run in a directory; None if there is none.

    Raises `InputError` if no run can have had it, `DamagedError` if it is not as it was written.
    """
    path = os.path.join(workdir, "config.json")
    written = files.read_json(path)
    try:
        return None if written is None else recorded(written)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def of_seeds(config: ConfigDict, workdir: str) -> dict[str, ConfigDict]:
    """Directory and configuration of the run of each seed; of a single one in the workdir itself.

    Raises `InputError` if several seeds cannot be trained at once here.
    """
    if config.num_seeds == 1:
        return {workdir: config}
    if jax.process_count() > 1:
        raise InputError(
            f"num_seeds={config.num_seeds}: must be 1 in a job of several processes; give each "
            "process seeds of its own, without a job"
        )
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise InputError(f"workdir={workdir} holds a run of one seed; choose another workdir")
    return {
        os.path.join(workdir, f"seed{seed}"): one_seed(config, seed)
        for seed in range(config.seed, config.seed + config.num_seeds)
    }


def finished(workdir: str, reporter: Reporter) -> dict[str, Any] | None:
    """The results of a finished run; None if there are none to rely on."""
    try:
        return files.read_json(os.path.join(workdir, "results.json"))
    except DamagedError as error:
        reporter.message(f"{error}; it is made again from the tasks")
        return None


def begin(config: ConfigDict, digests: dict[str, str], workdir: str) -> None:
    """Marks a directory as that of a run; `InputError` if another has begun there meanwhile."""
    refuse_other_config(config, workdir)
    refuse_other_data(digests, workdir)
    written = {_CONFIG: config.to_dict(), _DATA: digests, _NUMERICS: runtime.numerics()}
    for name, value in written.items():
        files.write_json(os.path.join(workdir, name), value)


def refuse_other_config(config: ConfigDict, workdir: str) -> None:
    """Raises `InputError` if the workdir holds a run of another configuration.

    Nor may JAX compute or draw random numbers in another way than when the run began. How often a
    run saves, who is told of it and where its images are is not part of what it is, nor are the
    options of other methods.
    """
    there, here = _written(workdir, _CONFIG), files.as_json(config.to_dict())
    if there and (differing := differences(_identity(there), _identity(here))):
        raise InputError(
            f"workdir={workdir} holds a run with another configuration ({'; '.join(differing)}); "
            "choose another workdir, or remove this one"
        )
    there = _written(workdir, _NUMERICS)
    if there and (differing := differences(there, runtime.numerics())):
        raise InputError(
            f"workdir={workdir} holds a run that began with JAX set up otherwise "
            f"({'; '.join(differing)}); set it as it was, or choose another workdir"
        )


def refuse_other_data(digests: dict[str, str], workdir: str) -> None:
    """Raises `InputError` if the workdir holds a run that began with other images or labels."""
    there = _written(workdir, _DATA)
    for name, digest in digests.items() if there else ():
        if there.get(name) != digest:
            raise InputError(
                f"{name}: its images or labels are not those that the run in workdir={workdir} "
                "began with; restore the data set, or choose another workdir"
            )


_CONFIG, _DATA, _NUMERICS = "config.json", "data.json", "numerics.json"
_OF_A_RUN = ("progress", "tasks", "results.json")  # what depends on these


def _written(workdir: str, name: str) -> dict[str, Any] | None:
    """What a run wrote into one of its files when it began; None if none has begun."""
    try:
        there = files.read_json(os.path.join(workdir, name))
    except DamagedError as error:
        raise DamagedError(f"workdir={workdir}: {error}; choose another workdir") from None
    if there is None and any((epath.Path(workdir) / part).exists() for part in _OF_A_RUN):
        raise InputError(
            f"workdir={workdir} holds a run without its {name}; choose another workdir"
        )
    return there


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the fields on which no result depends.

    Options of other methods are such, and those of FAN's map for a method that fits none: a new
    method does not make finished runs unknown. Nor does a scenario that a run does not have.
    """
    return _without_idle_fields(without_unused_options(config))


def _without_idle_fields(config: dict[str, Any]) -> dict[str, Any]:
    without = {"num_seeds", *WITHOUT_EFFECT}
    without |= {name for name in ("retrain", "watch") if not config.get(name)}
    kept = {name: value for name, value in config.items() if name not in without}
    if "method" in kept and not methods.get(kept["method"]).adapts:
        kept.pop("adapter", None)
    return {n: _without_idle_fields(v) if isinstance(v, dict) else v for n, v in kept.items()}


def task_path(workdir: str, task: int) -> str:
    """Checkpoint of the model after a task."""
    return os.path.join(workdir, "tasks", str(task))


def task_records(workdir: str) -> list[dict[str, Any]]:
    """Records of the finished tasks, from the first without a gap; `InputError` if damaged."""
    records = []
    while checkpoints.exists(path := task_path(workdir, len(records))):
        records.append(load_task_record(path, len(records)))
    return records


def load_task_record(path: str, task: int) -> dict[str, Any]:
    """What the metadata of a task's checkpoint say about the task.

    Raises `DamagedError` if it is damaged, or is not what a run writes after this task.
    """
    record = load_metadata(path, kind=TASK).about
    match record:
        case {
            "task": number,
            "replaced_by": None | str(),
            "external": None | {"classes": int()},
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
    intact task. Raises `InputError` if one cannot be read, which may be whole.
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
    image = ImageInput.of(config.image)
    return load_model(task_path(workdir, task), kind=TASK, num_slots=config.num_slots, image=image)


def write_report(
    config: ConfigDict, workdir: str, results: Mapping[str, Any], reporter: Reporter, **loaded
) -> None:
    """Writes the page of a finished run, or one line that says why there is none.

    What was measured is in results.json by then, so that nothing is lost with a page that can be
    made again. Of a job of several processes the first alone writes it. Arguments are those of
    `reports.page.write`.
    """
    again = f"results.json is complete, and launch/evaluate.py --workdir={workdir} tries again"
    with or_message(reporter, f"{os.path.join(workdir, REPORT)} was not written", again):
        if distributed.is_first():
            from iamcl2r_jax.reports import page  # matplotlib, only where something is drawn

            page.write(config, workdir, results, **loaded)
