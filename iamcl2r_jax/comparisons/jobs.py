"""Cells of a comparison at the same time, each in a process of its own.

Each process has its share of the cores, or a GPU of its own where there are several. What they
report comes through one queue to the process that started them, which shows all on one screen.
"""

import multiprocessing
import os
import pathlib
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from absl import logging

from iamcl2r_jax.comparisons.cells import Cell
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.system import files
from iamcl2r_jax.system.preemption import EXIT_STATUS, PreemptedError, Preemption, on_sigterm
from iamcl2r_jax.system.progress import Reporter, Stage, plain_console
from iamcl2r_jax.training import external

_SECONDS_BETWEEN_LOOKS = 0.1

# Runs a cell and handles what a cell may fail of: (cell, reporter, preemption).
RunCell = Callable[[Cell, Reporter, Preemption], None]


def run_cells(
    cells: Sequence[Cell],
    run_cell: RunCell,
    num_jobs: int,
    reporter: Reporter,
    preemption: Preemption,
    initialize: Callable[[], None] | None = None,
) -> None:
    """Runs cells, up to `num_jobs` at a time.

    Cells that need an external model that is being made for another one wait for it.

    Args:
      cells: to run, in this order where they can be.
      run_cell: runs one; it is pickled, as is `initialize`.
      num_jobs: processes at a time.
      reporter: shows the progress of all.
      preemption: once requested, all processes save.
      initialize: called first in each process, to register what a config file registers.

    Raises:
      PreemptedError: if asked to stop; each cell has saved where it stands.
      Exception: what `run_cell` raised in one of the processes, once the others have saved.
    """
    waiting, running = list(cells), {}
    messages = multiprocessing.get_context("spawn").Queue()
    with reporter.bar() as bar:
        board = _Board(reporter, bar, len(cells))
        try:
            while waiting or running:
                if preemption.requested:
                    raise PreemptedError
                while len(running) < num_jobs and (cell := _next(waiting, running.values())):
                    waiting.remove(cell)
                    slot = min(set(range(num_jobs)) - running.keys())
                    task = cell, run_cell, initialize, messages, _share(slot, num_jobs)
                    running[slot] = _Job(cell, *task)
                    board.begin(cell.name)
                _show(messages, board)
                for slot, job in list(running.items()):
                    if not job.process.is_alive():
                        _show(messages, board)
                        del running[slot]
                        board.end(job.cell.name)
                        job.note_its_death()
        finally:
            # Each saves, as one that is asked to stop does.
            for job in running.values():
                job.process.terminate()
            for job in running.values():
                while job.process.is_alive():  # and waits until what it said is taken
                    with suppress(queue.Empty):
                        messages.get(timeout=_SECONDS_BETWEEN_LOOKS)


def _show(messages: multiprocessing.Queue, board: "_Board") -> None:
    """Shows what has arrived, after a moment; raises what a process raised."""
    wait = True
    while True:
        try:
            name, kind, *args = messages.get(wait, _SECONDS_BETWEEN_LOOKS if wait else None)
        except queue.Empty:
            return
        wait = False
        if kind == "error":
            raise args[0]
        getattr(board, kind)(name, *args)


class _Job:
    """A cell in its process."""

    def __init__(self, cell: Cell, *args: Any):
        self.cell, self.making = cell, _to_be_made(cell)
        self.process = multiprocessing.get_context("spawn").Process(target=_in_process, args=args)
        self.process.start()

    def note_its_death(self) -> None:
        """Writes failure.json if the process ended without a word, as for lack of memory."""
        if (status := self.process.exitcode) not in (0, EXIT_STATUS):
            reason = f"its process ended with status {status}; perhaps memory was short"
            files.write_json(os.path.join(self.cell.workdir, "failure.json"), {"error": reason})


def _next(waiting: Sequence[Cell], running: Any) -> Cell | None:
    """The first cell that needs no model that another one is making."""
    making = {path for job in running for path in job.making if not checkpoints.exists(path)}
    return next((cell for cell in waiting if not making & _to_be_made(cell)), None)


def _to_be_made(cell: Cell) -> set[str]:
    """Paths of the external models that a cell will make."""
    _, missing = external.external_paths(cell.config)
    return set(missing.values())


def _share(slot: int, num_jobs: int) -> dict[str, Any]:
    """Cores of one of several processes, and its GPU where there are several."""
    share = {}
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[len(cores) * slot // num_jobs : len(cores) * (slot + 1) // num_jobs]
        share["cores"] = mine or cores
    gpus = _gpus()
    if len(gpus) > 1:
        share["gpu"] = gpus[slot % len(gpus)]
    return share


def _gpus() -> list[str]:
    """NVIDIA GPUs of this machine, found without JAX, which would take all of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in pathlib.Path("/dev").iterdir())
    return sorted((match[1] for match in found if match), key=int)


class _Board:
    """What is shown of all running cells."""

    def __init__(self, reporter: Reporter, bar: Any, count: int):
        self._reporter, self._bar, self._count = reporter, bar, count
        self._begun, self._stages = 0, {}

    def begin(self, name: str) -> None:
        """A cell begins."""
        self._begun += 1
        self._reporter.message(f"cell {self._begun}/{self._count}: {name}")

    def message(self, name: str, text: str) -> None:
        """A cell's message."""
        self._reporter.message(f"{name}: {text}")

    def stage(self, name: str, title: str, epochs: int, done: int) -> None:
        """A stage of a cell begins."""
        self.end(name)
        self._stages[name] = Stage(self._reporter, self._bar, f"{name}: {title}", epochs, done)

    def advance(self, name: str, epochs: int, metrics: Mapping[str, float] | None) -> None:
        """A stage goes on; the metrics are those of its last epoch."""
        stage = self._stages[name]
        stage.advance(epochs) if metrics is None else stage.epoch(metrics, epochs)

    def end(self, name: str) -> None:
        """The stage of a cell is over, if there is one."""
        if stage := self._stages.pop(name, None):
            stage.close()


# --- In the process of a cell ------------------------------------------------------------------


def _in_process(
    cell: Cell,
    run_cell: RunCell,
    initialize: Callable[[], None] | None,
    messages: multiprocessing.Queue,
    share: Mapping[str, Any],
) -> None:
    if "cores" in share:
        os.sched_setaffinity(0, share["cores"])
    if "gpu" in share:
        os.environ["CUDA_VISIBLE_DEVICES"] = share["gpu"]
    logging.set_verbosity(logging.FATAL)  # what goes wrong is told once, by the parent
    threading.Thread(target=_follow, args=[multiprocessing.parent_process()], daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    try:
        with on_sigterm() as preemption:
            if initialize is not None:
                initialize()
            run_cell(cell, _Remote(cell.name, messages), preemption)
    except PreemptedError:
        sys.exit(EXIT_STATUS)  # not os._exit, which would leave semaphores behind
    except Exception as error:
        if not type(error).__module__.startswith("iamcl2r_jax."):
            error = RuntimeError(f"in {cell.name}: {traceback.format_exc()}")
        messages.put((cell.name, "error", error))
        sys.exit(1)


def _follow(parent: Any) -> None:
    """Asks this process to save and stop once its parent is gone."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class _Remote(Reporter):
    """Reports to the queue."""

    def __init__(self, name: str, messages: multiprocessing.Queue):
        super().__init__(plain_console(quiet=True))
        self._name, self._messages = name, messages

    def tell(self, *message: Any) -> None:
        """Puts what a method of `_Board` takes after the name."""
        self._messages.put((self._name, *message))

    def message(self, text: str) -> None:
        self.tell("message", text)

    @contextmanager
    def stage(self, title: str, epochs: int, *, done: int = 0) -> Iterator["_RemoteStage"]:
        self.tell("stage", title, epochs, done)
        stage = _RemoteStage(self)
        yield stage
        stage.tell()
        self.tell("end")


class _RemoteStage:
    """A `Stage` that is shown elsewhere."""

    def __init__(self, reporter: _Remote):
        self._reporter, self._epochs, self._metrics = reporter, 0, None
        self._told = time.monotonic()

    def advance(self) -> None:
        self._epochs += 1
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LOOKS:
            self.tell()

    def epoch(self, metrics: Mapping[str, float]) -> None:
        self._metrics = {name: float(metrics[name]) for name in ("loss", "accuracy")}
        self.advance()

    def tell(self) -> None:
        """What has been done since it was last told."""
        if self._epochs:
            self._reporter.tell("advance", self._epochs, self._metrics)
        self._epochs, self._told = 0, time.monotonic()
