"""Tasks, class order and episodic memory."""

import numpy as np
import pytest

from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.data.stream import build_stream, remember, split_tasks
from iamcl2r_jax.system.errors import InputError


def _image_set(num_classes, per_class):
    """Interleaved classes; the image's first pixel is its position, the second its class."""
    labels = np.tile(np.arange(num_classes, dtype=np.int32), per_class)
    images = np.zeros((len(labels), 2, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    images[:, 1, 0, 0] = labels
    return ImageSet(images, labels, tuple(f"class {c}" for c in range(num_classes)))


def _build(num_classes=8, per_class=6, **options):
    defaults = {
        "initial_classes": 3,
        "increment": 2,
        "limit_per_class": None,
        "class_order_seed": None,
    }
    return build_stream(
        _image_set(num_classes, per_class), _image_set(num_classes, 2), **defaults | options
    )


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ((100, 10, 15), [10] + 6 * [15]),  # the paper's 7 tasks
        ((100, 10, 3), [10] + 30 * [3]),  # and its 31
        ((52, 10, 7), 1 * [10] + 6 * [7]),
        ((10, 4, 4), [4, 4, 2]),  # a last task with fewer classes
        ((10, 9, 4), [9, 1]),
        ((10, 3, 100), [3, 7]),
        ((5, 1, 1), 5 * [1]),
        ((10, 10, 4), [10]),  # one task only
        ((1, 1, 1), [1]),
    ],
)
def test_tasks_follow_one_another_over_all_classes(split, sizes):
    tasks = split_tasks(*split)
    assert [len(task) for task in tasks] == sizes
    assert [label for task in tasks for label in task] == list(range(split[0]))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((10, 0, 2), r"stream.initial_classes=0: must be in 1..10"),
        ((10, 11, 2), r"stream.initial_classes=11: must be in 1..10"),
        ((10, 5, 0), r"stream.increment=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        split_tasks(*split)


def test_each_image_arrives_once_with_its_own_class():
    stream = _build()
    assert [len(task) for task in stream.tasks] == [3, 2, 2, 1]
    arrived = [stream.train_indices(task) for task in range(4)]
    assert sorted(np.concatenate(arrived)) == list(range(48))
    for indices, classes in zip(arrived, stream.tasks, strict=True):
        assert set(stream.train.labels[indices]) == set(classes)
    # Without a seed the order is the data set's.
    np.testing.assert_array_equal(stream.train.labels, stream.train.images[:, 1, 0, 0])


def test_held_out_images_are_of_all_classes_so_far():
    stream = _build(class_order_seed=1)
    for task, classes in enumerate(stream.tasks):
        seen = stream.seen_test_indices(task)
        assert sorted(stream.test.labels[seen]) == sorted(2 * list(range(classes.stop)))


def test_a_class_order_renames_classes_by_arrival():
    plain, stream, again, other = (_build(class_order_seed=s) for s in (None, 1, 1, 2))
    original = stream.train.images[:, 1, 0, 0]
    assert (original != stream.train.labels).any()
    for images in (stream.train, stream.test):
        # One new label per class, the same in both splits, and it names that class.
        for label, pixel in zip(images.labels, images.images[:, 1, 0, 0], strict=True):
            assert images.class_names[label] == f"class {pixel}"
    assert stream.train.class_names == stream.test.class_names
    assert sorted(stream.train.class_names) == sorted(plain.train.class_names)
    assert stream.train.class_names == again.train.class_names
    assert stream.train.class_names != other.train.class_names
    np.testing.assert_array_equal(stream.train.images, plain.train.images)


@pytest.mark.parametrize("seed", [None, 1])
def test_the_limit_keeps_the_first_training_images_of_each_class(seed):
    stream = _build(limit_per_class=4, class_order_seed=seed)
    assert np.bincount(stream.train.labels).tolist() == 8 * [4]
    np.testing.assert_array_equal(stream.train.images[:, 0, 0, 0], np.arange(8 * 4))
    assert np.bincount(stream.test.labels).tolist() == 8 * [2]
    assert len(_build(limit_per_class=100).train) == 48


def test_a_class_without_training_images_is_refused():
    train = _image_set(4, 3)
    keep = train.labels != 2
    train = ImageSet(train.images[keep], train.labels[keep], train.class_names)
    options = {"initial_classes": 2, "increment": 1, "limit_per_class": None}
    with pytest.raises(InputError, match="class 'class 2' has no image in the training split"):
        build_stream(train, train, class_order_seed=0, **options)


def _memory(stream, per_class, seed):
    """The memory after each task."""
    memories = [np.zeros(0, np.int32)]
    for task in range(len(stream.tasks)):
        memories.append(remember(stream, task, memories[-1], per_class, seed))
    return memories[1:]


@pytest.mark.parametrize(("per_class", "kept"), [(0, 0), (1, 1), (4, 4), (6, 6), (20, 6)])
def test_memory_keeps_so_many_images_of_each_class_so_far(per_class, kept):
    stream = _build()
    memories = _memory(stream, per_class, seed=0)
    for before, after, classes in zip(
        [memories[0][:0], *memories[:-1]], memories, stream.tasks, strict=True
    ):
        np.testing.assert_array_equal(after[: len(before)], before)  # never given up again
        added = stream.train.labels[after[len(before) :]]
        assert sorted(added) == sorted(kept * list(classes))
        assert len(set(after.tolist())) == len(after)
        assert after.dtype == np.int32


def test_memory_is_random_and_depends_on_seed_and_task_alone():
    stream = _build(per_class=30)
    first, again, other = (_memory(stream, 5, seed)[-1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    # Not the first images of each class.
    assert (first >= 8 * 5).any()
    # A resumed run, which knows only the task and the memory so far, adds the same.
    resumed = remember(stream, 2, np.zeros(0, np.int32), 5, 0)
    np.testing.assert_array_equal(resumed, first[5 * 5 : 7 * 5])
    # Tasks do not choose the same places within their classes.
    places = [{i // 8 for i in first[c * 5 : c * 5 + 5].tolist()} for c in (0, 3, 5)]
    assert places[0] != places[1] != places[2]
