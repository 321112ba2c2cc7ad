"""One job of several processes, on one or more hosts: how it is joined, and who does what.

All processes run the same program on the same data and hold every result; JAX splits the batches
over the devices of all. The first process alone writes files and prints, so all need one file
system. When a process dies, the others end within a minute, and the job continues where it was when
all are started again.
"""

import json
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from iamcl2r_jax.system.errors import InputError

_START_SECONDS = 300  # for all processes to start
_QUIET_SECONDS = 10  # that all but the first wait without a word
_HEARTBEAT_SECONDS = 20  # a process that is not heard of for so long counts as dead
_SHUTDOWN_SECONDS = 20  # that a process waits for the others when it ends
_FAILURE_SECONDS = 5  # that it waits when it fails: whether all do, as on bad input
# One process preparing a data set while the others wait; the dead are noticed by their heartbeat.
_WAIT_SECONDS = 24 * 3600


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int = _START_SECONDS,
) -> None:
    """Makes this process one of its job, if there is one; before any device is touched.

    Without arguments it joins what `jax.distributed` finds on a TPU pod or in a SLURM step of
    several tasks; elsewhere it stays alone. If the others do not come, this process ends with one
    line and status 2.

    Args:
      coordinator: HOST:PORT of the first process, that all can reach.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      start_seconds: how long to wait for all of them.

    Raises:
      InputError: if only some are given, they are out of range, or SLURM's variables are.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    others, first = "the other processes of the job", True
    if len(missing) < len(flags):
        if missing:
            raise InputError(f"{', '.join(missing)}: needed too, for a job of several processes")
        _check_flags(coordinator, num_processes, process_id)
        others = f"the other {num_processes - 1} of {num_processes} processes at {coordinator}"
        first = process_id == 0
    elif (tasks := _slurm_tasks()) > 1:
        others = f"the other {tasks - 1} of {tasks} tasks of the SLURM step"
        first = os.environ["SLURM_PROCID"] == "0"
    elif not _on_tpu():
        return
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    with _patience(f"waiting for {others}", start_seconds, 0 if first else _QUIET_SECONDS):
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                # Where flags are needed, all devices of a host are its one process's.
                cluster_detection_method=None if missing else "deactivate",
                # Longer than our own patience: what gives up first has the word, and this aborts.
                initialization_timeout=start_seconds + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except ValueError as error:
            if _on_tpu() and "coordinator_address" in str(error):
                return  # a TPU machine that belongs to no pod
            raise
        except jax.errors.JaxRuntimeError as error:
            raise InputError(f"the processes of the job did not meet: {error}") from None
    _connect_devices()


@contextmanager
def _patience(waiting: str, seconds: int, quiet_seconds: int) -> Iterator[None]:
    """Ends the process where the block takes longer than `seconds`; it waits outside of Python.

    What is waited for is said at once, or after `quiet_seconds`.
    """

    def announce():
        print(f"{waiting}, {seconds} s at most", file=sys.stderr, flush=True)

    def give_up():
        print(f"error: gave up {waiting} after {seconds} s", file=sys.stderr, flush=True)
        os._exit(2)

    timers = [threading.Timer(quiet_seconds, announce), threading.Timer(seconds, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: must be in 0..{num_processes - 1}, "
            f"for --num_processes={num_processes}"
        )


def _slurm_tasks() -> int:
    """Tasks of the SLURM step that this process is one of; 1 outside of a step.

    A batch script or a shell of `salloc` is in no step: it is one process whatever the job asked
    for. In a step of several, every variable that JAX needs must be as srun sets it.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return 1
    numbers = ("SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")
    wrong = [
        f"{name}={os.environ.get(name, '')}"
        for name in (*numbers, "SLURM_LOCALID", "SLURM_STEP_NODELIST")
        if not (os.environ.get(name, "").isdecimal() or name == "SLURM_STEP_NODELIST")
        or not os.environ.get(name)
    ]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}: must be as srun sets it for a step of several tasks; start with "
            "srun, give --coordinator, --num_processes and --process_id, or unset "
            "SLURM_STEP_NUM_TASKS"
        )
    return int(tasks)


def _on_tpu() -> bool:
    # JAX sets this when it is imported on a TPU machine, unless JAX_PLATFORMS says otherwise.
    return "tpu" in (jax.config.jax_platforms or "")


def _connect_devices() -> None:
    """Opens the connections between devices while all processes are at the same place.

    JAX opens them at their first use and, on CPU, gives up after 30 s; later one process may take
    longer than that to compile or to read its data.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    ones = np.ones(jax.device_count(), np.float32)
    ones = jax.make_array_from_callback(ones.shape, split, lambda index: ones[index])
    jax.jit(jnp.sum)(ones).block_until_ready()
    any_process(False)


def is_first() -> bool:
    """Whether this process writes and prints: always, unless it is a later one of a job."""
    # Alone it touches no device: programs that only read and write files need none.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Returns when every process of the job is here; `place` is the name of no other place."""
    multihost.get_barrier_sync_fn()(key=place, timeout_ms=1000 * _WAIT_SECONDS)


@contextmanager
def first_alone_first(place: str) -> Iterator[None]:
    """Runs the block in the first process and then in the others, which find what it has made."""
    if not is_first():
        wait_for_all(place)
    yield
    if is_first():
        wait_for_all(place)


def any_process(value: bool) -> bool:
    """Whether `value` holds in any process of the job; all must ask together."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.uint8(value)).any())


def check_same(what: str, value: Any) -> None:
    """Waits for all processes of the job; `InputError` in all if the JSON `value` differs."""
    if jax.process_count() == 1:
        return
    wait_for_all(f"{what} compared")
    digest = np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode()))
    digests = multihost_utils.process_allgather(digest)
    others = np.flatnonzero(digests != digests[0]).tolist()
    if others:
        raise InputError(
            f"{what}: differs between process 0 of the job and process {others[0]}; give all the "
            "same command, and the same files to read"
        )


def leave(status: int) -> None:
    """Before the exit of a process that failed; it does not return if the others go on.

    They are not waited for as they would be at the usual exit, and learn of it at once.
    """
    if not jax.distributed.is_initialized():
        return
    try:
        multihost.get_barrier_sync_fn()(key="failed", timeout_ms=1000 * _FAILURE_SECONDS)
    except jax.errors.JaxRuntimeError:
        sys.stdout.flush()
        os._exit(status)
