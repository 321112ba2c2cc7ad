"""One job of several processes, on one or more hosts: how it is joined, and who does what.

All processes run the same program on the same data and hold every result; JAX splits the batches
over the devices of all. The first process alone writes files and prints, so all need one file
system. When a process dies, the others end within a minute, and the job continues where it was when
all are started again.
"""

import json
import os
import sys
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
_HEARTBEAT_SECONDS = 20  # a process that is not heard of for so long counts as dead
_SHUTDOWN_SECONDS = 20  # that a process waits for the others when it ends
_FAILURE_SECONDS = 5  # that it waits when it fails: whether all do, as on bad input
# One process preparing a data set while the others wait; the dead are noticed by their heartbeat.
_WAIT_SECONDS = 24 * 3600


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of its job, if there is one; before any device is touched.

    Without arguments it joins what `jax.distributed` finds on a TPU pod or in a SLURM step of
    several tasks; elsewhere it stays alone.

    Args:
      coordinator: HOST:PORT of the first process, that all can reach.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      InputError: if only some are given, they are out of range, or the processes do not meet.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        if not (_in_slurm_step() or _on_tpu()):
            return
    elif missing:
        raise InputError(f"{', '.join(missing)}: needed too, for a job of several processes")
    else:
        _check_flags(coordinator, num_processes, process_id)
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Where flags are needed, all devices of a host are its one process's.
            cluster_detection_method=None if missing else "deactivate",
            initialization_timeout=_START_SECONDS,
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


def _check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: must be in 0..{num_processes - 1}, "
            f"for --num_processes={num_processes}"
        )


def _in_slurm_step() -> bool:
    # Not a batch script or a shell of `salloc`, which is one process whatever the job asked for.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


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
    """Waits for all processes of the job and raises `InputError` in all if they differ.

    Args:
      what: is compared.
      value: JSON.
    """
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
