"""Data parallelism: the batch is split over all devices, everything else is on each."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def batch_sharding(batch_size: int) -> NamedSharding | None:
    """How a batch lies on the devices of the job; None with a single device.

    The program computes what one device would, batch statistics and HOC candidates over the whole
    batch included; XLA inserts the communication.

    Args:
      batch_size: B, over all devices.

    Raises:
      ValueError: if the devices cannot share the batch evenly.
    """
    count = jax.device_count()
    if count == 1:
        return None
    if batch_size % count:
        raise ValueError(
            f"train.batch_size={batch_size}: must be a multiple of {count}, the number of devices"
        )
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))
