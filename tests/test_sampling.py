"""What a batch may hold, over single pools and over whole streams with memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax.data.sampling import draw, make_pool, sample_batch, shuffled, steps_per_epoch
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.data.stream import build_stream, remember

KEY = jax.random.key(0)
NO_MEMORY = np.zeros(0, np.int32)


@partial(jax.jit, static_argnames=("most_steps", "batch_size"))
def _batches(key, new, memory, num_steps, *, most_steps, batch_size):
    key_shuffle, key_steps = jax.random.split(key)
    new = shuffled(key_shuffle, new)

    def one_step(step, drawn):
        batch = sample_batch(jax.random.fold_in(key_steps, step), step, new, memory, batch_size)
        return jax.tree.map(lambda all_, one: all_.at[step].set(one), drawn, batch)

    empty = (
        jnp.full((most_steps, batch_size), -1),
        jnp.zeros((most_steps, batch_size), bool),
    )
    return jax.lax.fori_loop(0, num_steps, one_step, empty)


def _epoch(key, new, memory, batch_size, *, capacity=64):
    """All batches of one epoch: indices and from_memory, [steps, B], drawn as training does."""
    steps = steps_per_epoch(len(new), len(memory), batch_size)
    pools = (make_pool(np.asarray(part, np.int32), capacity) for part in (new, memory))
    drawn = _batches(key, *pools, steps, most_steps=32, batch_size=batch_size)
    return tuple(np.asarray(part)[:steps] for part in drawn)


@partial(jax.jit, static_argnames=("num_draws", "num"))
def _many(pool, *, num_draws, num):
    keys = jax.random.split(KEY, num_draws)
    return jax.lax.map(lambda key: draw(key, pool, num), keys)


def _draws(num_draws, pool, num):
    """Independent draws by as many keys: [num_draws, num]."""
    return np.asarray(_many(pool, num_draws=num_draws, num=num))


def _num_distinct(row):
    return len(set(row.tolist()))


@pytest.mark.parametrize(
    ("new", "memory", "batch_size", "steps"),
    [(1000, 0, 128, 7), (1024, 0, 128, 8), (4500, 200, 128, 36), (5, 0, 8, 1), (3, 4, 8, 1)],
)
def test_steps_per_epoch(new, memory, batch_size, steps):
    assert steps_per_epoch(new, memory, batch_size) == steps


def test_a_pool_keeps_its_samples_and_refuses_more_than_its_capacity():
    pool = make_pool(np.array([7, 5, 9]), 5)
    np.testing.assert_array_equal(pool.indices[: pool.size], [7, 5, 9])
    assert (len(pool.indices), pool.indices.dtype) == (5, jnp.int32)
    with pytest.raises(ValueError, match="a pool of capacity 2 cannot hold 3 samples"):
        make_pool(np.array([7, 5, 9]), 2)


def test_shuffling_permutes_the_samples_and_leaves_the_padding_out():
    samples = np.arange(100, 130)
    orders = []
    for seed in range(3):
        pool = shuffled(jax.random.key(seed), make_pool(samples, 50))
        assert int(pool.size) == 30
        assert sorted(pool.indices[:30].tolist()) == samples.tolist()
        orders.append(tuple(pool.indices[:30].tolist()))
    assert len({tuple(samples.tolist()), *orders}) == 4


@pytest.mark.parametrize(("size", "num"), [(9, 8), (30, 8), (50, 8), (50, 49)])
def test_a_larger_set_is_drawn_without_replacement(size, num):
    samples = 1000 + np.arange(size)
    for drawn in _draws(20, make_pool(samples, 50), num):
        assert drawn.shape == (num,)
        assert set(drawn.tolist()) <= set(samples.tolist())
        assert _num_distinct(drawn) == num


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_set_no_larger_than_the_draw_is_drawn_with_replacement(size):
    samples = 1000 + np.arange(size)
    draws = _draws(100, make_pool(samples, 50), 8)
    assert set(draws.ravel().tolist()) == set(samples.tolist())
    if size == 8:  # where a draw without replacement would have been possible
        assert any(_num_distinct(drawn) < 8 for drawn in draws)


def test_every_sample_is_drawn_equally_often():
    pool = make_pool(np.arange(10), 64)
    for num in (5, 10):
        drawn = _draws(4000, pool, num)
        shares = np.bincount(drawn.ravel(), minlength=10) / drawn.size
        # Five standard deviations of a share of 0.1 over 20,000 draws.
        np.testing.assert_allclose(shares, 0.1, atol=5 * np.sqrt(0.09 / 20_000))


@pytest.mark.parametrize("size", [8, 16, 31])
def test_without_memory_an_epoch_visits_each_sample_at_most_once(size):
    indices, from_memory = _epoch(KEY, np.arange(size) + 40, NO_MEMORY, 8)
    assert indices.shape == (size // 8, 8)
    assert _num_distinct(indices.ravel()) == indices.size
    assert set(indices.ravel().tolist()) <= set(range(40, 40 + size))
    assert not from_memory.any()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_set_smaller_than_a_batch_still_trains(size):
    indices, from_memory = _epoch(KEY, np.arange(size) + 40, NO_MEMORY, 8)
    assert indices.shape == (1, 8)
    assert set(indices.ravel().tolist()) <= set(range(40, 40 + size))
    assert not from_memory.any()


@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize(("num_new", "num_memory"), [(40, 20), (5, 20), (40, 3), (4, 4), (2, 1)])
def test_with_memory_half_of_every_batch_comes_from_it(num_new, num_memory, batch_size):
    new, memory = np.arange(num_new), 100 + np.arange(num_memory)
    indices, from_memory = _epoch(KEY, new, memory, batch_size)
    assert len(indices) == max(1, (num_new + num_memory) // batch_size)
    np.testing.assert_array_equal(from_memory, indices >= 100)
    half = batch_size // 2
    for row, old in zip(indices, from_memory, strict=True):
        assert old.sum() == half
        assert set(row.tolist()) <= {*new.tolist(), *memory.tolist()}
        for part, size in ((row[old], num_memory), (row[~old], num_new)):
            if size > len(part):
                assert _num_distinct(part) == len(part)


def test_one_key_gives_one_epoch_and_another_key_another():
    for memory in (NO_MEMORY, 100 + np.arange(20)):
        first, again, other = (
            _epoch(jax.random.key(seed), np.arange(40), memory, 8)[0] for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        # Steps differ too.
        assert (first[0] != first[1]).any()


@pytest.mark.parametrize("memory", [NO_MEMORY, 100 + np.arange(20)])
@pytest.mark.parametrize("num_new", [5, 40])
def test_padding_changes_nothing(num_new, memory):
    small, large = (_epoch(KEY, np.arange(num_new), memory, 8, capacity=c)[0] for c in (64, 333))
    np.testing.assert_array_equal(small, large)


def _stream(num_classes, initial, increment, *, per_class=11):
    # Labels are interleaved and the classes shuffled, so that position and task are unrelated.
    labels = (np.arange(num_classes * per_class) * 5 % num_classes).astype(np.int32)
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    image_set = ImageSet(images, labels, tuple(map(str, range(num_classes))))
    return build_stream(
        image_set,
        image_set,
        initial_classes=initial,
        increment=increment,
        limit_per_class=None,
        class_order_seed=3,
    )


@pytest.mark.parametrize("per_class_memory", [0, 1, 4])
@pytest.mark.parametrize(
    ("num_classes", "initial", "increment"),
    [(11, 4, 3), (7, 7, 1), (6, 1, 1), (11, 2, 4)],  # the last task is smaller; one task only
)
def test_no_batch_of_a_stream_holds_a_sample_of_a_future_task(
    num_classes, initial, increment, per_class_memory
):
    stream = _stream(num_classes, initial, increment)
    memory = NO_MEMORY
    for task, classes in enumerate(stream.tasks):
        new = stream.train_indices(task)
        indices, from_memory = _epoch(jax.random.key(task), new, memory, 16, capacity=128)
        assert len(indices) == max(1, (len(new) + len(memory)) // 16)
        labels = stream.train.labels[indices]
        assert labels.max() < classes.stop
        # What is not from memory is of this task, and what is from memory is not.
        np.testing.assert_array_equal(labels < classes.start, from_memory)
        assert set(indices[from_memory].tolist()) <= set(memory.tolist())
        assert from_memory.sum(axis=1).tolist() == [8 if len(memory) else 0] * len(indices)
        memory = remember(stream, task, memory, per_class_memory, seed=0)
