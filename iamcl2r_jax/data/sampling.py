"""Batches drawn on the device: a shuffled set, or half memory and half new samples.

Every set of samples is a `Pool` of one fixed shape, so that one compiled program serves all tasks.
"""

from functools import partial

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Pool:
    """Samples that may be drawn.

    Attributes:
      indices: int32 [capacity], positions in the data set; only the first `size` count.
      size: int32 scalar.
    """

    indices: jax.Array
    size: jax.Array


def make_pool(indices: np.ndarray, capacity: int) -> Pool:
    """Pads `indices` [n] to `capacity`; `ValueError` if they are more."""
    if len(indices) > capacity:
        raise ValueError(f"a pool of capacity {capacity} cannot hold {len(indices)} samples")
    padded = np.zeros(capacity, np.int32)
    padded[: len(indices)] = indices
    return Pool(indices=jnp.asarray(padded), size=jnp.asarray(len(indices), jnp.int32))


def steps_per_epoch(num_new: int, num_memory: int, batch_size: int) -> int:
    """⌊(new + memory) / batch⌋, but a set smaller than a batch still trains: at least 1."""
    return max(1, (num_new + num_memory) // batch_size)


def epoch_key(key: jax.Array, epoch: int) -> jax.Array:
    """Random key of an epoch, from that of its training; or of each, from a batch of keys."""
    if key.ndim == 0:
        return jax.random.fold_in(key, epoch)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, epoch)


def _step_keys(key: jax.Array, step: jax.Array) -> jax.Array:
    """Random keys of a step, to draw its batch and to augment it, from that of its epoch."""
    _, key_steps = jax.random.split(key)
    return jax.random.split(jax.random.fold_in(key_steps, step))


def augmentation_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """Random key to augment the batch of a step, from that of its epoch."""
    return _step_keys(key, step)[1]


@partial(jax.jit, static_argnames="batch_size")
def draw_epoch(
    key: jax.Array, new: Pool, memory: Pool, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draws all batches of an epoch, of every step as `sample_batch` does.

    Args:
      key: random key of this epoch; or of the epoch of each of S seeds, [S], whose memories then
        have a leading axis too.
      new: samples of the current task, in any order.
      memory: samples of earlier tasks, possibly none.
      batch_size: B.

    Returns:
      Positions in the data set, int32 [N, B], and whether each came from memory, bool [N, B]; with
      a leading axis S for several seeds. N is the number of steps of the longest epoch that the
      pools have room for; what lies beyond this epoch's last step is zero.
    """
    if key.ndim:
        draw = partial(draw_epoch, batch_size=batch_size)
        # Sizes do not differ between seeds, and so remain what decides how batches are drawn: were
        # they vectorised, every way of drawing would be computed.
        return jax.vmap(draw, in_axes=(0, None, Pool(indices=0, size=None)))(key, new, memory)
    key_shuffle, _ = jax.random.split(key)
    new = shuffled(key_shuffle, new)
    num_steps = jnp.maximum(1, (new.size + memory.size) // batch_size)
    longest = steps_per_epoch(len(new.indices), len(memory.indices), batch_size)

    def add_step(step, drawn):
        of_step = sample_batch(_step_keys(key, step)[0], step, new, memory, batch_size)
        return jax.tree.map(lambda steps, one: steps.at[step].set(one), drawn, of_step)

    # One step after the other: all at once would take much memory.
    nothing = jnp.zeros((longest, batch_size), jnp.int32), jnp.zeros((longest, batch_size), bool)
    return jax.lax.fori_loop(0, num_steps, add_step, nothing)


def _random_order(key: jax.Array, pool: Pool) -> jax.Array:
    """A random score for each sample of the pool and -1 for the padding: [capacity]."""
    scores = jax.random.uniform(key, pool.indices.shape)
    return jnp.where(jnp.arange(len(scores)) < pool.size, scores, -1.0)


def shuffled(key: jax.Array, pool: Pool) -> Pool:
    """The same pool in random order."""
    order = jnp.argsort(_random_order(key, pool), descending=True)
    return pool.replace(indices=pool.indices[order])


def draw(key: jax.Array, pool: Pool, num: int) -> jax.Array:
    """Draws `num` samples: int32 [num].

    Without replacement if the pool holds more than `num` samples, else with replacement (the
    official rule: a pool of exactly `num` is drawn with replacement too).
    """
    chex.assert_axis_dimension_gteq(pool.indices, 0, num)

    def without_replacement():
        return jax.lax.top_k(_random_order(key, pool), num)[1]

    def with_replacement():
        return jax.random.randint(key, (num,), 0, pool.size, jnp.int32)

    chosen = jax.lax.cond(pool.size > num, without_replacement, with_replacement)
    return pool.indices[chosen]


def sample_batch(
    key: jax.Array, step: jax.Array, new: Pool, memory: Pool, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draws the batch of one step.

    Without memory: the step-th slice of `new`, which the caller has shuffled for this epoch, or
    draws from it if it is smaller than a batch. With memory: ⌊batch/2⌋ draws from memory, the rest
    from `new`, each without replacement within the batch.

    Args:
      key: random key of this step.
      step: position in the epoch.
      new: samples of the current task, shuffled.
      memory: samples of earlier tasks, possibly none. Both pools need a capacity of at least
        `batch_size`.
      batch_size: B.

    Returns:
      Positions in the data set, int32 [B], and whether each came from memory, bool [B].
    """
    num_memory = batch_size // 2

    def slice_of_shuffled():
        return jax.lax.dynamic_slice(new.indices, (step * batch_size,), (batch_size,))

    def small():
        return draw(key, new, batch_size)

    def balanced():
        key_memory, key_new = jax.random.split(key)
        return jnp.concatenate(
            [draw(key_memory, memory, num_memory), draw(key_new, new, batch_size - num_memory)]
        )

    has_memory = memory.size > 0
    case = jnp.where(has_memory, 2, jnp.where(new.size < batch_size, 1, 0))
    indices = jax.lax.switch(case, (slice_of_shuffled, small, balanced))
    return indices, has_memory & (jnp.arange(batch_size) < num_memory)
