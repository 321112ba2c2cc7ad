"""What each field of `fields` may hold, one line a field in the same order, and its check."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax import methods, models, retrieval
from iamcl2r_jax.data.augment import AUGMENTATIONS
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.optimizers import OPTIMIZERS
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.values import (
    ANYTHING,
    Each,
    Options,
    Value,
    integer,
    number,
    one_of,
    several,
    string,
)

BOOL = Value(bool)
SEED = integer(0, 2**32 - 1)  # JAX's keys would drop the higher bits
FILE_NAME = Value(str, pattern=("[^./][^/]*", "a plain file name, it names directories"))
PATH = Value(str, pattern=("(?!~).*", "a path written out, without ~"))
RATE = number("(0, 1e6]")
WEIGHT = number("[0, 1e6]")

IMAGE = {
    "size": integer(8, 2**12),
    "mean": several(number("[-1e6, 1e6]"), 3),
    "std": several(RATE, 3),
    "augmentation": one_of(AUGMENTATIONS),
    "augmentation_options": Options(AUGMENTATIONS),
}
MODEL = {
    "backbone": one_of(models.BACKBONES),
    "options": ANYTHING,  # see models.create
}
TRAIN = {
    "epochs": integer(1, 10**6),
    "batch_size": integer(1, 2**16),
    "learning_rate": RATE,
    "final_learning_rate": RATE,
    "optimizer": one_of(OPTIMIZERS),
    "optimizer_options": Options(OPTIMIZERS),
}
SAVING = {
    "every_epochs": integer(0),
    "every_seconds": number("[0, 1e15]"),
    "steps_per_call": integer(1),
}
PRETRAIN = {
    "name": FILE_NAME,
    "seed": SEED,
    "dataset": string(),
    "train_split": string(),
    "test_split": string(),
    "data_dir": PATH,
    "classes": integer(2),
    "num_slots": integer(2, 2**15),  # a simplex of so many takes 4 GiB
    "head": one_of((heads.SIMPLEX, heads.LINEAR)),
    "image": IMAGE,
    "model": MODEL,
    "zero_projection": Value(bool),
    "train": TRAIN,
    "saving": SAVING,
    "resident_gib": number("[0, 1e15]"),
    "tracking": {"tensorboard": BOOL},
}
EVALUATION = {"dataset": string(), "query_split": string(), "gallery_split": string()}
RUN = {
    "name": FILE_NAME,
    "method": one_of(methods.METHODS),
    "method_options": Options(methods.METHODS, lambda method: method.loss),
    "seed": SEED,
    "num_seeds": integer(1, 2**32),
    "data_dir": PATH,
    "num_slots": PRETRAIN["num_slots"],
    "image": IMAGE,
    "model": MODEL,
    "train": TRAIN,
    "saving": SAVING,
    "resident_gib": PRETRAIN["resident_gib"],
    "adapter": {
        "hidden": integer(1, 2**20),
        "steps": integer(1, 2**20),
        "batch_size": integer(1, 2**20),
        "learning_rate": RATE,
        "similarity_weight": WEIGHT,
    },
    "stream": {
        "dataset": string(),
        "train_split": string(),
        "test_split": string(),
        "initial_classes": integer(1),
        "increment": integer(1),
        "limit_per_class": integer(0),
        "class_order_seed": integer(-1),
    },
    "memory_per_class": integer(0),
    "replacements": {
        "tasks": several(integer(0)),
        "checkpoints": several(PATH),
        "classes": several(integer(2)),
        "recipe": PRETRAIN,
        "replaced_weight": number("[0, 1]"),
        "directory": PATH,
        "retrain": several(integer(1)),
        "watch": PATH,
    },
    "evaluations": Each(EVALUATION),
    "metrics": several(one_of(retrieval.METRICS)),
    "tracking": {"tensorboard": BOOL, "wandb": BOOL, "report": BOOL},
}


def check(value: Any, expected: Any, field: str = "") -> None:
    """Checks that a tree holds the fields expected, and each what it may hold.

    Args:
      value: what the field holds; sections are ConfigDicts.
      expected: a tree, see `system.values`.
      field: dotted name of the field; "" for a whole configuration.

    Raises:
      InputError: naming the first field that is missing, unknown or wrong, its value and what
        would be right.
    """
    if expected is ANYTHING:
        return
    if isinstance(expected, Value):
        if not expected.accepts(value):
            raise InputError(f"{field}={shown(value)}: must be {expected.describe()}")
        return
    if isinstance(expected, Options):
        expected = expected.fields()
    if not isinstance(value, ConfigDict):
        names = f" {', '.join(expected)}" if isinstance(expected, dict) else ""
        raise InputError(f"{field}={shown(value)}: must be a ConfigDict with the fields{names}")
    prefix = f"{field}." if field else ""
    if isinstance(expected, Each):
        expected = dict.fromkeys(value, expected.value)
    for name in sorted(expected.keys() - set(value)):
        raise InputError(f"{prefix}{name}: missing field; start from config.default()")
    for name in sorted(set(value) - expected.keys(), key=str):
        near = difflib.get_close_matches(str(name), expected)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(expected)}"
        raise InputError(f"{prefix}{shown(name)[1:-1]}: unknown field; {hint}")
    for name, of_name in expected.items():
        check(value[name], of_name, f"{prefix}{name}")


def shown(value: Any) -> str:
    """What a message shows of any value: short, printable and on one line."""
    try:
        text = " ".join(repr(value).split())[:100]
    except Exception:  # of a foreign object, or of a number with more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]
