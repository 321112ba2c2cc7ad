"""What each field of `fields` may hold: one line a field, in the same order."""

from iamcl2r_jax import methods, models, retrieval
from iamcl2r_jax.data.augment import AUGMENTATIONS
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.optimizers import OPTIMIZERS
from iamcl2r_jax.system import values
from iamcl2r_jax.system.values import (
    ANYTHING,
    Each,
    Options,
    integer,
    number,
    one_of,
    several,
    string,
)

BOOL = values.Value(bool)
SEED = integer(0, 2**32 - 1)  # JAX's keys would drop the higher bits
FILE_NAME = values.Value(str, pattern=("[^./][^/]*", "a plain file name, it names directories"))
PATH = values.Value(str, pattern=("(?!~).*", "a path written out, without ~"))
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
    "zero_projection": values.Value(bool),
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
    "tracking": {"tensorboard": BOOL, "wandb": BOOL},
}
