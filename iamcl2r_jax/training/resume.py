"""Where a training stands, and what it saves to go on from there after a stop."""

import dataclasses
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization
from ml_collections import ConfigDict

from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import DamagedError, DivergenceError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.step import TrainState

_KEPT = 2  # should the newest be damaged

# Of one epoch, by name; of several seeds a list with the value of each.
Means = dict[str, float | list[float]]


@dataclasses.dataclass(frozen=True)
class Position:
    """How far the training of a task has come.

    Attributes:
      history: metrics of each finished epoch, means over its steps.
      step: finished steps of the epoch after these.
      sums: of the metrics over these steps.
    """

    history: tuple[Means, ...] = ()
    step: int = 0
    sums: Means = dataclasses.field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def after(
        self, sums: dict[str, np.ndarray], stop: int, num_steps: int, learning_rate: float
    ) -> "Position":
        """The position after the steps up to `stop`, with the metrics' sums over them."""
        sums = {
            name: np.float64(self.sums.get(name, 0.0)) + np.float64(value)
            for name, value in sums.items()
        }
        if stop < num_steps:
            return Position(self.history, stop, {name: sums[name].tolist() for name in sums})
        means = {name: (total / num_steps).tolist() for name, total in sums.items()}
        return Position((*self.history, means | {"learning_rate": learning_rate}))


class ProgressStore:
    """Checkpoints of one training under way, in a directory of their own.

    They are written in a thread beside the training, one after the other.
    """

    def __init__(self, directory: str, cadence: ConfigDict, reporter: Reporter):
        self._directory = epath.Path(directory)
        self._cadence = cadence
        self._reporter = reporter
        self._executor = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        self._saved = time.monotonic()
        self._saved_epoch = 0
        self._complained = False

    def due(self, position: Position) -> bool:
        """Whether as many epochs or seconds have gone by since the last save as asked for."""
        epochs, seconds = self._cadence.every_epochs, self._cadence.every_seconds
        return bool(
            (epochs and position.epoch - self._saved_epoch >= epochs)
            or (seconds and time.monotonic() - self._saved >= seconds)
        )

    def save(self, state: TrainState, position: Position) -> None:
        """Copies the state and begins to write it; waits for the write before."""
        if not distributed.is_first():
            return
        self.wait()
        # A copy: on CPU, NumPy's view would be of the buffers that the next call donates.
        arrays = jax.tree.map(lambda x: np.array(x), serialization.to_state_dict(state))
        self._saved, self._saved_epoch = time.monotonic(), position.epoch
        self._writing = self._executor.submit(self._write, arrays, dataclasses.asdict(position))

    def _write(self, arrays: Any, position: dict[str, Any]) -> None:
        numbers = self._numbers()
        number = max(numbers, default=0) + 1
        checkpoints.save(str(self._directory / f"{number:06d}"), arrays, {"position": position})
        for old in sorted(numbers)[: 1 - _KEPT]:
            self._tidy(files.discard(self._directory / f"{old:06d}"))

    def _tidy(self, complaint: str | None) -> None:
        """Mentions the first thing that could not be tidied up."""
        if complaint and not self._complained:
            self._reporter.message(complaint)
            self._complained = True

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def latest(self, state: TrainState) -> tuple[TrainState, Position]:
        """The newest intact state and its position; `state` and the start if there is none.

        What is damaged is set aside in the directory. Raises `InputError` if a state cannot be
        read, which may be whole, or is not of this training.
        """
        expected = serialization.to_state_dict(state)
        arrays, position, damaged = expected, Position(), []
        for number in sorted(self._numbers(), reverse=True):
            path = str(self._directory / f"{number:06d}")
            try:
                record, arrays = checkpoints.load(path, lambda _: expected)
            except DamagedError as error:
                self._reporter.message(f"{error}; going back to the one before")
                damaged.append(path)
                continue
            position = record["position"]
            position = Position(tuple(position["history"]), position["step"], position["sums"])
            break
        distributed.check_same(f"{self._directory}", dataclasses.asdict(position))
        for path in damaged if distributed.is_first() else ():
            try:
                epath.Path(path).rename(self._directory / f"damaged-{time.time_ns()}")
            except OSError as error:
                self._tidy(f"{path} cannot be set aside ({error.strerror})")
        self._saved_epoch = position.epoch
        return serialization.from_state_dict(state, arrays), position

    def note_divergence(self, error: DivergenceError, learning_rates: Sequence[float]) -> None:
        """Writes beside the last good state what led out of the finite numbers.

        Training is deterministic: the same command goes from that state to the same step.
        """
        self.wait()
        files.write_json(
            self._directory / "divergence.json",
            {
                "training": error.training,
                "epoch": error.epoch,
                "step": error.step,
                "learning_rate": learning_rates[error.epoch],
                "last_good_states": sorted(self._numbers()),
                "versions": runtime.versions(),
            },
        )

    def clear(self) -> None:
        """Removes the directory: what it led to is saved elsewhere."""
        self.wait()
        self._executor.shutdown()
        if distributed.is_first() and self._directory.exists():
            self._tidy(files.discard(self._directory))

    def _numbers(self) -> list[int]:
        if not self._directory.exists():
            return []
        names = [child.name for child in self._directory.iterdir()]
        return [int(name) for name in names if re.fullmatch(r"\d{6}", name)]
