"""Data parallelism: the batch is split over all devices, everything else is on each."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from iamcl2r_jax.system.errors import InputError


def batch_sharding(batch_size: int) -> NamedSharding | None:
    """How a batch lies on the devices of the job; None with a single device.

    The program computes what one device would, batch statistics and HOC candidates over the whole
    batch included; XLA inserts the communication. Raises `InputError` if the devices cannot share
    the batch evenly.
    """
    count = jax.device_count()
    if batch_size % count:
        raise InputError(
            f"train.batch_size={batch_size}: must be a multiple of {count}, the number of devices"
        )
    return split_over(jax.devices())


def local_sharding(batch_size: int) -> NamedSharding | None:
    """How a batch lies on the devices of this process alone.

    None with a single device, or with as many as cannot share the batch evenly.
    """
    devices = jax.local_devices()
    return None if batch_size % len(devices) else split_over(devices)


def split_over(devices: Sequence[jax.Device]) -> NamedSharding | None:
    """How a batch lies on these devices; None for a single one."""
    if len(devices) == 1:
        return None
    shape, types = (len(devices),), (AxisType.Auto,)
    mesh = jax.make_mesh(shape, ("data",), axis_types=types, devices=devices)
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(batch: NamedSharding) -> NamedSharding:
    """Whole on each of the devices that share a batch."""
    return NamedSharding(batch.mesh, PartitionSpec())


def split_blocks(batch: NamedSharding) -> NamedSharding:
    """Batches of several steps, [S, B, ...], each split as a batch is."""
    return NamedSharding(batch.mesh, PartitionSpec(None, *batch.spec))


def replicate(tree: Any, batch: NamedSharding | None) -> Any:
    """Arrays that every process holds, put whole on each of the devices that share a batch."""
    if batch is None:
        return jax.device_put(tree)
    # Not `device_put`: it takes no random keys to the devices of other processes.
    return _to_each(replicated(batch))(tree)


@cache  # or every call would be compiled again
def _to_each(whole: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, in_shardings=whole, out_shardings=whole)
