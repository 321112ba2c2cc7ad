"""The class-incremental stream of tasks and its episodic memory.

Classes are renamed by their order of arrival: stream label 0 is the first class of the first task.
"""

import dataclasses

import numpy as np

from iamcl2r_jax.data import sources
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.system.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images of all tasks; labels are stream labels.

    Attributes:
      train: images to train on.
      test: held-out images of the same classes.
      tasks: stream labels of each task's classes.
    """

    train: ImageSet
    test: ImageSet
    tasks: tuple[range, ...]

    def train_indices(self, task: int) -> np.ndarray:
        """Positions in `train` of the images that arrive with a task."""
        return np.flatnonzero(np.isin(self.train.labels, self.tasks[task]))

    def seen_test_indices(self, task: int) -> np.ndarray:
        """Positions in `test` of the images of all classes seen up to a task."""
        return np.flatnonzero(self.test.labels < self.tasks[task].stop)


def split_tasks(num_classes: int, initial_classes: int, increment: int) -> tuple[range, ...]:
    """Stream labels of each task: the first has `initial_classes`, later ones `increment`.

    The last task takes what is left, if that is fewer. `initial_classes` may be all. Raises
    `InputError` if a size is not positive or exceeds what there is.
    """
    if not 1 <= initial_classes <= num_classes:
        raise InputError(
            f"stream.initial_classes={initial_classes}: must be in 1..{num_classes}, "
            "the number of classes"
        )
    if increment < 1:
        raise InputError(f"stream.increment={increment}: must be at least 1")
    starts = [0, *range(initial_classes, num_classes, increment)]
    stops = [*starts[1:], num_classes]
    return tuple(range(start, stop) for start, stop in zip(starts, stops, strict=True))


def build_stream(
    train: ImageSet,
    test: ImageSet,
    *,
    initial_classes: int,
    increment: int,
    limit_per_class: int | None,
    class_order_seed: int | None,
) -> Stream:
    """Splits a data set into tasks.

    Args:
      train: images to train on.
      test: held-out images of the same classes.
      initial_classes: classes of the first task.
      increment: classes of each later task.
      limit_per_class: keep the first so many training images of each class; None for all.
      class_order_seed: shuffles the classes; None for the data set's order.

    Raises:
      InputError: see `split_tasks`; or if a class has no training image, or the first
        task no held-out one.
    """
    num_classes = len(train.class_names)
    tasks = split_tasks(num_classes, initial_classes, increment)
    order = np.arange(num_classes)
    if class_order_seed is not None:
        order = np.random.default_rng(class_order_seed).permutation(order)
    train, test = (sources.select_classes(images, order) for images in (train, test))
    counts = np.bincount(train.labels, minlength=num_classes)
    if not counts.all():
        empty = train.class_names[int(np.argmin(counts))]
        raise InputError(
            f"stream: class {empty!r} has no image in the training split; every class needs one"
        )
    if not np.isin(test.labels, tasks[0]).any():
        raise InputError(
            "stream: the held-out split has no image of the first task's classes, so that its "
            "accuracy cannot be told; choose another stream.test_split"
        )
    return Stream(sources.limit_per_class(train, limit_per_class), test, tasks)


def remember(
    stream: Stream, task: int, memory: np.ndarray, per_class: int, seed: int
) -> np.ndarray:
    """Adds random images of a task's classes to the episodic memory.

    The choice depends on the seed and the task alone, so that a resumed run makes the same.

    Args:
      stream: the stream.
      task: the task just finished.
      memory: positions in `stream.train` of what is remembered so far; so is what is returned.
      per_class: images to keep of each class; all of a class that has fewer.
      seed: of the run.
    """
    rng = np.random.default_rng([seed, task])
    chosen = [memory]
    for label in stream.tasks[task]:
        samples = np.flatnonzero(stream.train.labels == label)
        chosen.append(rng.choice(samples, min(per_class, len(samples)), replace=False))
    return np.concatenate(chosen).astype(np.int32)
