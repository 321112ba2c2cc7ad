"""Where the training images are: on the device, or on the host and streamed to it with Grain.

What a step trains on does not depend on it: the device draws the batches by the same keys, and only
their samples travel, a call of the compiled program ahead of the one that computes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from iamcl2r_jax.data.sampling import Pool, draw_epoch, epoch_key, steps_per_epoch
from iamcl2r_jax.system import parallel

# One ready and one on its way, beside that in use. The one on its way waits for its batches to be
# drawn until the device is done with a call; the one that is ready covers this.
_READY = 1


@flax.struct.dataclass
class Dataset:
    """A data set on the device.

    Attributes:
      pixels: of each image in one line, uint8 [N, H W 3]; a TPU would keep images so that those of
        one image lie far apart, see `augment.selected`.
      labels: row of the classifier that belongs to each image's class, int32 [N].
      image_shape: (H, W, 3).
    """

    pixels: jax.Array
    labels: jax.Array
    image_shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray) -> "Dataset":
        """Of images uint8 [N, H, W, 3]."""
        return cls(images.reshape(len(images), -1), labels, images.shape[1:])

    @property
    def images(self) -> jax.Array:
        """uint8 [N, H, W, 3]."""
        return self.pixels.reshape(-1, *self.image_shape)


@dataclasses.dataclass(frozen=True)
class HostDataset:
    """A data set on the host: images uint8 [N, H, W, 3], or an np.memmap of such, and int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


@flax.struct.dataclass
class Drawn:
    """The batches of an epoch, drawn from a data set on the device.

    Attributes:
      dataset: the images of all tasks.
      indices: positions in it, int32 [N, B].
      from_memory: whether each came from the memory, bool [N, B].
    """

    dataset: Dataset
    indices: jax.Array
    from_memory: jax.Array

    def batch(self, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Images, which of them are the batch of a step, its labels and `from_memory`."""
        indices, from_memory = self.indices[step], self.from_memory[step]
        return self.dataset.images, indices, self.dataset.labels[indices], from_memory


@flax.struct.dataclass
class Block:
    """The samples of S consecutive steps, read on the host and brought to the device.

    Attributes:
      images: uint8 [S, B, H, W, 3].
      labels: int32 [S, B].
      from_memory: whether each came from the memory, bool [S, B].
      first: the first of the steps, int32 scalar.
    """

    images: jax.Array
    labels: jax.Array
    from_memory: jax.Array
    first: jax.Array

    def batch(self, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Images, which of them are the batch of a step, its labels and `from_memory`."""
        images, labels, from_memory = (
            of_steps[step - self.first] for of_steps in (self.images, self.labels, self.from_memory)
        )
        return images, jnp.arange(len(images)), labels, from_memory


def fits(images: np.ndarray, resident_gib: float) -> bool:
    """Whether images may stay on the device."""
    return images.nbytes <= resident_gib * 2**30


def place(
    images: np.ndarray,
    labels: np.ndarray,
    resident_gib: float,
    batch_sharding: NamedSharding | None,
) -> Dataset | HostDataset:
    """A data set on the devices if it fits, otherwise on the host.

    Args:
      images: uint8 [N, H, W, 3].
      labels: row of the classifier that belongs to each image's class, integer [N].
      resident_gib: most GiB of images on each device.
      batch_sharding: see `parallel.batch_sharding`.
    """
    labels = labels.astype(np.int32)
    if not fits(images, resident_gib):
        return HostDataset(images, labels)
    return parallel.replicate(Dataset.of(images, labels), batch_sharding)


def blocks(
    dataset: HostDataset,
    new: Pool,
    memory: Pool,
    starts: Sequence[tuple[int, int]],
    key: jax.Array,
    *,
    batch_size: int,
    steps_per_call: int,
    batch_sharding: NamedSharding | None,
) -> Iterator[Block]:
    """The samples of each call of the compiled program, read and brought to the devices ahead.

    A thread does it, which ends with the generator. All blocks have one shape: `steps_per_call`
    steps, or as many as the longest epoch that the pools have room for. What lies beyond the end of
    an epoch is of no meaning.

    Args:
      dataset: the images of all tasks.
      new, memory: as of `sampling.sample_batch`, `new` in any order.
      starts: epoch and first step of each call.
      key: random key of the training; epoch e uses `sampling.epoch_key(key, e)`.
      batch_size: B, over all devices.
      steps_per_call: most steps of a call.
      batch_sharding: see `parallel.batch_sharding`. Each process reads what is its devices'.
    """
    longest = steps_per_epoch(len(new.indices), len(memory.indices), batch_size)
    num_steps = min(steps_per_call, longest)

    @lru_cache(maxsize=1)  # an epoch takes several calls
    def drawn(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(draw_epoch(epoch_key(key, epoch), new, memory, batch_size))

    def read(start: tuple[int, int]) -> Block:
        epoch, first = start
        positions, from_memory = (
            np.pad(steps, [(0, num_steps), (0, 0)])[first : first + num_steps]
            for steps in drawn(epoch)
        )

        def put(of_part: Callable[[Any], np.ndarray], *shape: int) -> jax.Array:
            return _put(of_part, (*positions.shape, *shape), batch_sharding)

        return Block(
            put(lambda part: dataset.images[positions[part]], *dataset.images.shape[1:]),
            put(lambda part: dataset.labels[positions[part]]),
            put(lambda part: from_memory[part]),
            parallel.replicate(np.int32(first), batch_sharding),
        )

    # No threads of Grain's for the reading itself, which is one copy for a whole block.
    import grain  # only where images are streamed

    unthreaded = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    pipeline = grain.experimental.ThreadPrefetchIterDataset(
        grain.MapDataset.source(starts).map(read).to_iter_dataset(unthreaded),
        prefetch_buffer_size=_READY,
    )
    with contextlib.closing(iter(pipeline)) as ahead:
        yield from ahead


def _put(
    of_part: Callable[[Any], np.ndarray],
    shape: tuple[int, ...],
    batch_sharding: NamedSharding | None,
) -> jax.Array:
    """An array [S, B, ...] on the devices; of each the part of its samples alone is read.

    `of_part` maps an index of [S, B] to the values there; `shape` is that of the whole.
    """
    if batch_sharding is None:
        return jax.device_put(of_part(...))
    split = parallel.split_blocks(batch_sharding)
    # Not `device_put`: between processes it would compare the whole.
    return jax.make_array_from_callback(shape, split, lambda index: of_part(index[:2]))
