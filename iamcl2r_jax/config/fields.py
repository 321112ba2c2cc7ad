"""The fields of a configuration: what they mean, their defaults, and what they may hold.

A section is a dictionary of fields, or a function that makes one. A field is a section, or a pair
of its default and of what it may hold, see `system.values`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict, config_dict

from iamcl2r_jax import methods, models, retrieval
from iamcl2r_jax.data.augment import AUGMENTATIONS
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.optimizers import OPTIMIZERS
from iamcl2r_jax.system import values
from iamcl2r_jax.system.values import ANYTHING, Each, Value, integer, number, one_of, several

# Fields of a run and of a pre-training on which no result depends.
WITHOUT_EFFECT = ("resident_gib", "saving", "tracking")

SHIPPED = ("shipped",)  # a value of replacements.checkpoints

SEED = integer(0, 2**32 - 1)  # JAX's keys would drop the higher bits
_BOOL, _STRING = Value(bool), Value(str)
_FILE_NAME = Value(str, pattern=("[^./][^/]*", "a plain file name, it names directories"))
_PATH = Value(str, pattern=("(?!~).*", "a path written out, without ~"))
_RATE = number("(0, 1e6]")
_WEIGHT = number("[0, 1e6]")


def _options(registry: Mapping[str, Callable]) -> dict[str, Any]:
    """A section for each registered function, of its options."""
    return {name: values.options(function) for name, function in registry.items()}


# K, pre-allocated classes of the simplex, of which the most take 4 GiB; features have K - 1
# dimensions.
_NUM_SLOTS = (1024, integer(2, 2**15))
# Training images of up to so many GiB, as uint8, stay on the device, on each if there are several;
# more are streamed to it from the host, four calls' batches at once at most. No result depends on
# it. The default is half of a small accelerator's memory; ImageNet at 32x32 takes 3.7.
_RESIDENT_GIB = (8.0, number("[0, 1e15]"))
_DATA_DIR = ("", _PATH)  # where TFDS keeps data sets; "" for TFDS's default

_IMAGE = {  # the network's input
    "size": (32, integer(8, 2**12)),  # height and width in pixels
    "mean": ((0.5, 0.5, 0.5), several(number("[-1e6, 1e6]"), 3)),  # per channel, in [0, 1]
    "std": ((0.25, 0.25, 0.25), several(_RATE, 3)),  # per channel, of pixels in [0, 1]
    "augmentation": ("crop_flip", one_of(AUGMENTATIONS)),  # of training images
    "augmentation_options": partial(_options, AUGMENTATIONS),  # only those of the one in use count
}
_MODEL = {
    "backbone": ("resnet18", one_of(models.BACKBONES)),
    # Fields of the backbone's module: `width` is the channels of its first stage, `stem` is
    # "imagenet" (7x7 stride 2 and max-pool) or "small" (3x3 stride 1). A config file may add
    # `dtype`, "bfloat16" to compute in it; it goes with a model, so external ones need it too.
    # Checked by models.create.
    "options": ({"width": 16, "stem": "imagenet"}, ANYTHING),
}
_SAVING = {  # how often training saves where it stands; no result depends on it
    "every_epochs": (0, integer(0)),  # save after so many epochs; 0 to go by the seconds alone
    "every_seconds": (60.0, number("[0, 1e15]")),  # or seconds; 0 to go by the epochs alone
    # Steps of one call of the compiled program. Between calls a run can save and be asked to stop.
    "steps_per_call": (50, integer(1)),
}
# Who is told of every epoch beside metrics.jsonl; no result depends on it.
_TRACKING = {"tensorboard": (True, _BOOL)}  # event files in DIR/tensorboard


def _train(*, epochs: int, learning_rate: float) -> dict[str, Any]:
    """The schedule of each task, or of pre-training."""
    return {
        "epochs": (epochs, integer(1, 10**6)),
        # Over all devices; half of it from memory once there is one.
        "batch_size": (128, integer(1, 2**16)),
        "learning_rate": (learning_rate, _RATE),  # in the first epoch
        # That the cosine falls to, once an epoch.
        "final_learning_rate": (learning_rate / 100, _RATE),
        "optimizer": ("sgd", one_of(OPTIMIZERS)),
        "optimizer_options": partial(_options, OPTIMIZERS),  # only those of the one in use count
    }


PRETRAIN = {
    "name": ("glyphs", _FILE_NAME),  # names the directory of the checkpoints
    "seed": (0, SEED),  # of initialisation, batches and augmentation
    "dataset": ("glyphs/external", _STRING),  # TFDS name, or folder:DIR
    "train_split": ("train", _STRING),
    # Held-out images, for the accuracy that is reported; "" for none.
    "test_split": ("test", _STRING),
    "data_dir": _DATA_DIR,
    "classes": (600, integer(2)),  # pre-train on the first so many, simplex slots 0, 1, ...
    "num_slots": _NUM_SLOTS,
    # Classifier: "simplex", or "linear" for methods with a learnable one.
    "head": (heads.SIMPLEX, one_of((heads.SIMPLEX, heads.LINEAR))),
    "image": _IMAGE,
    "model": _MODEL,
    # Start with zeros in the last layer, the linear map to the feature: the features then stay in
    # the span of the classes trained on. The official code starts with random numbers.
    "zero_projection": (True, _BOOL),
    "train": _train(epochs=8, learning_rate=0.1),
    "saving": _SAVING,
    "resident_gib": _RESIDENT_GIB,
    "tracking": _TRACKING,
}


def evaluation(
    dataset: str, *, query_split: str = "train", gallery_split: str = "test"
) -> ConfigDict:
    """One open-set evaluation: the data set (TFDS name or folder:DIR) and its two splits."""
    return ConfigDict(
        {"dataset": dataset, "query_split": query_split, "gallery_split": gallery_split}
    )


_EVALUATION = {"dataset": _STRING, "query_split": _STRING, "gallery_split": _STRING}

RUN = {
    "name": ("glyphs", _FILE_NAME),  # names the run and its default directory
    "method": ("hoc", one_of(methods.METHODS)),  # what to train with
    # Options of each method, by its name; only those of `method` are used.
    "method_options": lambda: _options({name: m.loss for name, m in methods.METHODS.items()}),
    "seed": (0, SEED),  # of initialisation, memory, batches and augmentation
    # Runs trained at once, with seed, seed + 1, ..., see lifelong.run.
    "num_seeds": (1, integer(1, 2**32)),
    "data_dir": _DATA_DIR,
    "num_slots": _NUM_SLOTS,
    "image": _IMAGE,
    # Of the networks that start from random variables: at the first task without an external model,
    # and where the run retrains.
    "model": _MODEL,
    "train": _train(epochs=8, learning_rate=0.06),
    "saving": _SAVING,
    "resident_gib": _RESIDENT_GIB,
    "adapter": {  # of methods that carry stored galleries on, see maps.fan.Settings
        "hidden": (1024, integer(1, 2**20)),  # width of its hidden layer
        "steps": (500, integer(1, 2**20)),  # of Adam
        "batch_size": (128, integer(1, 2**20)),  # pairs of features in a step
        "learning_rate": (1e-3, _RATE),  # of Adam in the first step; it falls to zero
        "similarity_weight": (100.0, _WEIGHT),  # α, of the cosine distance beside the cross-entropy
    },
    "stream": {
        "dataset": ("glyphs/stream", _STRING),  # TFDS name, or folder:DIR
        "train_split": ("train", _STRING),
        "test_split": ("test", _STRING),  # held-out images, for task_accuracy
        "initial_classes": (10, integer(1)),  # classes of the first task
        "increment": (15, integer(1)),  # classes of each later task
        "limit_per_class": (300, integer(0)),  # train on the first so many of each class; 0: all
        "class_order_seed": (-1, integer(-1)),  # shuffles the classes; -1: the data set's order
    },
    "memory_per_class": (20, integer(0)),  # images remembered of each class once its task is over
    "replacements": {
        "tasks": ((0, 2, 4), several(integer(0))),  # 0-based, that start from an external model
        # Directories of the external models, one per task above; () to make them by `recipe`;
        # SHIPPED to make only those that do not come with this package.
        "checkpoints": (SHIPPED, several(_PATH)),
        "classes": ((100, 300, 600), several(integer(2))),  # of the models made by `recipe`
        # Its `classes` come from the line above, its `head` from the method, its `tracking` from
        # below.
        "recipe": PRETRAIN,
        # α in [0, 1]: at a replacement, a method's terms that read an old model are 1-α of the
        # external model's and α of the replaced one's. 0 is the paper's.
        "replaced_weight": (0.0, number("[0, 1]")),
        "directory": ("runs/external", _PATH),  # where models made by `recipe` are kept and found
        # 0-based tasks at which a new network is trained on the images of all tasks so far, without
        # the memory; the old model is that of the task before.
        "retrain": ((), several(integer(1))),
        # Directory that is looked into before each task of neither kind: the best external model
        # there that is better than the one in use is taken up. "Better" is more classes of
        # pre-training, then a higher held-out accuracy. "" for none.
        "watch": ("", _PATH),
    },
    "evaluations": ({}, Each(_EVALUATION)),  # open-set evaluations, by name
    # Retrieval metrics; the first gives matrix, AC and AA.
    "metrics": (
        ("identification", "recall_at_1", "mean_average_precision"),
        several(one_of(retrieval.METRICS)),
    ),
    "tracking": _TRACKING
    | {
        "wandb": (False, _BOOL),  # Weights & Biases: log in first, or set WANDB_MODE=offline
        "report": (True, _BOOL),  # report.html and its figures once the run is finished
    },
}


def _with_defaults(section: Any) -> ConfigDict:
    c = ConfigDict()
    for name, field in (section() if callable(section) else section).items():
        if not isinstance(field, tuple):
            c[name] = _with_defaults(field)
            continue
        default, value = field
        if default is None:  # a placeholder knows how to read a value from the command line
            default = config_dict.placeholder(value.kind)
        c[name] = ConfigDict(default) if isinstance(default, dict) else default
    return c


def default_pretrain() -> ConfigDict:
    """Pre-training of an external model; the values are those of the embedded default."""
    return _with_defaults(PRETRAIN)


def default() -> ConfigDict:
    """A lifelong run; the values are those of the embedded default."""
    c = _with_defaults(RUN)
    set_recipe(c, c.replacements.recipe)
    c.evaluations.digits = evaluation("glyphs/digits")
    c.evaluations.unseen = evaluation("glyphs/unseen")
    c.evaluations.handwriting = evaluation("handwriting")
    return c


def set_recipe(c: ConfigDict, recipe: ConfigDict) -> None:
    """Makes `recipe` that of a run's external models; the simplex is the interface."""
    c.replacements.recipe = recipe
    for shared in ("num_slots", "resident_gib"):
        recipe[shared] = c.get_ref(shared)


def makes_external_models(config: ConfigDict) -> bool:
    """Whether a run's external models are those of its recipe, and not given by their paths."""
    return tuple(config.replacements.checkpoints) in ((), SHIPPED)


def choose_backbone(model: ConfigDict, name: str) -> None:
    """Makes `model` of a configuration that backbone, with all its options at their defaults.

    Options that the one before has too keep their values; all can then be given as
    --config.model.options.NAME=VALUE. Raises `InputError` if there is no backbone of that name.
    """
    options = models.default_options(name)
    del options["dtype"]  # not JSON; a run computes in the default
    kept = {option: value for option, value in model.options.items() if option in options}
    model.backbone = name
    with model.unlocked():
        model.options = ConfigDict(options | kept)
