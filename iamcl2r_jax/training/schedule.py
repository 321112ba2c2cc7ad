"""What happened to a run's model at the beginning of its tasks."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The tasks at which a model was not simply trained on.

    Attributes:
      replaced: 0-based tasks that started from an external model.
      retrained: 0-based tasks that started from random variables, on all images so far.
    """

    replaced: Sequence[int] = ()
    retrained: Sequence[int] = ()

    @classmethod
    def of_results(cls, results: Mapping[str, Any]) -> "Schedule":
        """From results.json."""
        return cls(tuple(results["replacements"]), tuple(results["retrained"]))

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> "Schedule":
        """From the records of the tasks, from the first on."""
        return cls(
            tuple(task for task, record in enumerate(records) if record["replaced_by"]),
            tuple(task for task, record in enumerate(records) if record["retrained"]),
        )

    def label(self, task: int) -> str:
        """The task counted from 1, with * if the model was replaced and + if it was retrained."""
        return (
            f"{task + 1}{'*' if task in self.replaced else '+' if task in self.retrained else ''}"
        )

    def at(self, positions: Sequence[int]) -> "Schedule":
        """The same with tasks at other positions of an axis, such as epochs."""
        return Schedule(
            [positions[task] for task in self.replaced],
            [positions[task] for task in self.retrained],
        )


PLAIN = Schedule()  # every task trains on


def fixed_schedule(replaced_by: Mapping[int, str]) -> str:
    """The flags that give a run these external models at these tasks, whatever is watched."""
    values = {
        "tasks": repr(tuple(replaced_by)),
        "checkpoints": repr(tuple(replaced_by.values())),
        "watch": "",
    }
    return " ".join(
        f"--config.replacements.{field}={shlex.quote(value)}" for field, value in values.items()
    )
