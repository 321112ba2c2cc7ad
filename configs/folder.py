"""Your own images: a stream of the classes of a folder, DIR/<split>/<class>/<image file>.

    python launch/main.py --config=configs/folder.py:root=DIR
    python launch/main.py --config=configs/folder.py:root=DIR,size=64     # pixels; 32 by default

What is derived from the folder; any field can then be given as --config.FIELD=VALUE:
  stream       the classes of split `train` in alphabetical order, in up to five tasks of two or
               more classes; the first task also takes what is left over
  held out     split `test`, `validation` or `val`, with images of each class of `train`
  evaluation   queries of split `query` in images of split `gallery`, whose classes may be others
               than those of `train`; without these two, the held-out images in the training images
  num_slots    K, a power of two and at least twice the classes, so that half of the simplex is
               free for external models
  batch_size   a power of two up to a quarter of a task's images, 8 to 128, and the learning rate
               in proportion
No replacement is made until external models are named, for instance with
  --config.replacements.tasks='(2,)' --config.replacements.checkpoints="('runs/external/new',)"
Nothing is known of the figures or the time that your images will give.
"""

import pathlib

from ml_collections import ConfigDict

from iamcl2r_jax import config
from iamcl2r_jax.config.args import ConfigArgError, Free, parse
from iamcl2r_jax.data import folders, sources
from iamcl2r_jax.system.errors import InputError

_HELD_OUT = ("test", "validation", "val")


def get_config(arg=None):
    options = parse(arg, {"root": Free("DIR"), "size": Free("a number of pixels", int, 32)})
    root, size = options["root"], options["size"]
    dataset = f"{folders.PREFIX}{root}"
    classes = _classes_by_split(dataset)
    held_out = _check_splits(root, classes)
    num_classes = len(classes["train"])
    num_tasks = max(1, min(5, num_classes // 2))

    c = config.default()
    c.name = f"folder-{pathlib.Path(root).expanduser().resolve().name}"
    c.num_slots = max(16, _power_of_two(4 * num_classes - 1))
    c.image.size = size
    c.image.augmentation_options.crop_flip.padding = size // 8
    c.image.augmentation_options.crop_flip.flip = True  # not for characters
    c.model.options.width = 64  # the full ResNet-18; a smaller one is much faster

    c.stream.dataset = dataset
    c.stream.test_split = held_out
    c.stream.increment = num_classes // num_tasks
    c.stream.initial_classes = num_classes - (num_tasks - 1) * c.stream.increment
    images_of_task = _count_images(root) // num_tasks
    c.train.batch_size = min(128, max(8, _power_of_two(images_of_task // 4)))
    # From scratch the customary 0.1 at batch 128; a noisier gradient takes a smaller step.
    c.train.learning_rate = 0.1 * c.train.batch_size / 128
    c.train.final_learning_rate = c.train.learning_rate / 100

    c.replacements.tasks = ()
    c.replacements.classes = ()
    c.evaluations = ConfigDict()
    if "gallery" in classes:
        c.evaluations.gallery = config.evaluation(
            dataset, query_split="query", gallery_split="gallery"
        )
    else:
        c.evaluations.held_out = config.evaluation(
            dataset, query_split=held_out, gallery_split="train"
        )
    return c


def _classes_by_split(dataset):
    """Class names of each split that means something here."""
    known = ("train", "gallery", "query", *_HELD_OUT)
    try:
        splits = sources.describe(dataset).splits
        return {
            split: set(sources.describe(dataset, split).class_names)
            for split in splits
            if split in known
        }
    except InputError as error:
        raise ConfigArgError(str(error)) from None


def _check_splits(root, classes):
    """The held-out split, if the splits are there and fit together."""
    held_out = next((split for split in _HELD_OUT if split in classes), None)
    if "train" not in classes or held_out is None:
        raise ConfigArgError(
            f"root={root} must have a split 'train' and one of {', '.join(_HELD_OUT)}, as "
            f"DIR/<split>/<class>/<image file>; it has {', '.join(classes) or 'none of these'}"
        )
    if ("gallery" in classes) != ("query" in classes):
        raise ConfigArgError(f"root={root} must have both splits 'gallery' and 'query', or neither")
    if len(classes["train"]) < 2:
        raise ConfigArgError(f"root={root}: split 'train' has only one class, at least 2 needed")
    pairs = [("train", held_out)]
    pairs += [("query", "gallery")] if "gallery" in classes else [(held_out, "train")]
    for split, other in pairs:
        lacking = sorted(classes[split] - classes[other])
        if lacking:
            raise ConfigArgError(
                f"root={root}: split {other!r} lacks {len(lacking)} of the classes of {split!r}, "
                f"{', '.join(lacking[:3])}{' ...' if lacking[3:] else ''}; add or remove them"
            )
    return held_out


def _count_images(root):
    classes = (pathlib.Path(root).expanduser() / "train").iterdir()
    return sum(len(folders.image_files(path)) for path in classes if path.is_dir())


def _power_of_two(most):
    """The largest power of two up to `most`; 1 at least."""
    return 1 << max(0, most.bit_length() - 1)
