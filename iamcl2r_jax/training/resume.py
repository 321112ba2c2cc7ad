"""Training that can be stopped anywhere and goes on as if it had not been."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization
from ml_collections import ConfigDict

from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.system import distributed, files, runtime
from iamcl2r_jax.system.errors import DamagedError, DivergenceError, PreemptedError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.fit import Means, Position, fit
from iamcl2r_jax.training.step import CompiledEpoch, TaskData, TrainState

_KEPT = 2  # should the newest be damaged


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

        What is damaged is set aside in the directory.

        Raises:
          InputError: if a state cannot be read, which may be whole, or is not of this training.
        """
        expected = serialization.to_state_dict(state)
        arrays, position, damaged = expected, Position(), []
        for number in sorted(self._numbers(), reverse=True):
            path = str(self._directory / f"{number:06d}")
            try:
                record, arrays = checkpoints.load_described(path, lambda _: expected)
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


def train_resumably(
    title: str,
    epoch: CompiledEpoch,
    variables: Variables,
    data: TaskData,
    learning_rates: Sequence[float],
    key: jax.Array,
    *,
    store: ProgressStore,
    steps_per_call: int,
    reporter: Reporter,
    preemption: Preemption,
    seeds: Sequence[int] = (),
    on_epoch: Callable[[Sequence[Means]], None] = lambda history: None,
) -> tuple[Variables, Sequence[Means]]:
    """`fit` from where an earlier start of the same training stopped, saving on the way.

    Args:
      title: what is shown as under way.
      variables: where the training begins, if no earlier start left anything.
      store: what earlier starts left, and where this one saves.
      reporter: shows the progress.
      preemption: saves and raises `PreemptedError` once requested.
      seeds: those trained at once, if there are several.
      on_epoch: gets the metrics of all epochs so far, first those of an earlier start, then again
        after every epoch.
      epoch, data, learning_rates, key, steps_per_call: see `fit`.

    Returns:
      The variables after the last epoch, as NumPy arrays, and the metrics of each epoch.
    """
    state, position = store.latest(epoch.program.init_state(variables))
    with reporter.stage(title, len(learning_rates), done=position.epoch) as stage:
        if position.epoch or position.step:
            reporter.message(
                f"{title}: continuing after epoch {position.epoch}, step {position.step}"
            )
            on_epoch(position.history)
        calls = fit(
            epoch,
            state,
            data,
            learning_rates,
            key,
            steps_per_call=steps_per_call,
            position=position,
            title=title,
            seeds=seeds,
        )
        try:
            with contextlib.closing(calls):
                for state, position in calls:
                    if not position.step:
                        stage.epoch({n: np.mean(v) for n, v in position.history[-1].items()})
                        on_epoch(position.history)
                    stop = preemption.agreed()
                    if stop or store.due(position):
                        store.save(state, position)
                    if stop:
                        store.wait()
                        raise PreemptedError
        except DivergenceError as error:
            store.note_divergence(error, learning_rates)
            raise
    store.wait()
    return jax.device_get(state.variables), position.history
