"""Models, images and streams that need no data set: speed does not depend on what is in them."""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import methods, models, simplex
from iamcl2r_jax.config import recipes
from iamcl2r_jax.data.augment import ImageOptions, crop_flip
from iamcl2r_jax.data.sampling import draw_epoch, make_pool
from iamcl2r_jax.data.sources import Evaluation, ImageSet
from iamcl2r_jax.data.stream import Stream, build_stream
from iamcl2r_jax.data.streaming import Dataset, Drawn
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.stored import EXTERNAL, Architecture, ImageInput, Metadata, Model
from iamcl2r_jax.training.seeds import stacked, stacked_data
from iamcl2r_jax.training.step import OldModel, Program, TaskData

# Of `hoc_case`, to see that a program works.
SMALL = {"batch_size": 8, "width": 4, "num_slots": 32, "num_new": 40, "num_memory": 20}


@dataclasses.dataclass(frozen=True)
class Case:
    """A train program and what it trains with.

    Attributes:
      program: what is compiled.
      variables: of the model in training.
      data: teacher, images, new samples and memory.
    """

    program: Program
    variables: Variables
    data: TaskData


def image_options() -> ImageOptions:
    """Input and augmentation of the paper's protocol."""
    return ImageOptions(
        recipes.CIFAR_MEAN, recipes.CIFAR_STD, partial(crop_flip, padding=4, flip=True)
    )


def images(num: int, num_classes: int, *, size: int = 32, seed: int = 0) -> ImageSet:
    """Random images, `num` in all, the classes equally often."""
    rng = np.random.default_rng(seed)
    return ImageSet(
        rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8),
        np.arange(num, dtype=np.int32) % num_classes,
        tuple(map(str, range(num_classes))),
    )


def random_variables(model: nn.Module, *, seed: int = 0, size: int = 32) -> Variables:
    """Variables like freshly initialised ones, without a program to compile for them."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim > 1:
            deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, models.expected_variables(model, size))


def hoc_case(
    *,
    width: int = 64,
    num_slots: int = 1024,
    batch_size: int = 128,
    num_new: int = 4500,
    num_memory: int = 200,
    replaced_weight: float = 0.0,
    **options,
) -> Case:
    """The train step of d-Simplex-HOC on ResNet-18; by default the second of the paper's 7 tasks.

    Args:
      width: channels of the first stage.
      num_slots: K.
      batch_size: B.
      num_new: samples of the task.
      num_memory: samples of earlier tasks.
      replaced_weight: share of a second teacher, as in a task with replacement; 0 for one teacher.
      **options: others of the backbone.
    """
    model = models.create("resnet18", num_slots - 1, width=width, **options)
    program = Program(
        model=model,
        old_model=model,
        loss=methods.get("hoc").loss,
        image_options=image_options(),
        batch_size=batch_size,
        replaced_model=model if replaced_weight else None,
        replaced_weight=replaced_weight,
    )
    stream_classes = min(25, num_slots)
    train = images(num_new + num_memory, stream_classes)
    slots = simplex.downstream_slot(train.labels, num_slots)
    data = TaskData(
        old=_teacher(model, seed=1),
        replaced=_teacher(model, seed=2) if replaced_weight else None,
        classifier=jnp.asarray(simplex.dsimplex(num_slots)),
        dataset=Dataset.of(jnp.asarray(train.images), jnp.asarray(slots, jnp.int32)),
        new=make_pool(np.arange(num_new), max(num_new, batch_size)),
        memory=make_pool(np.arange(num_new, num_new + num_memory), max(num_memory, batch_size)),
    )
    return Case(program, random_variables(model), data)


def _teacher(model: nn.Module, *, seed: int) -> OldModel:
    return OldModel(jax.device_put(random_variables(model, seed=seed)), jnp.asarray(True))


def drawn(data: TaskData, key: jax.Array, batch_size: int) -> Drawn:
    """The batches of an epoch, as `fit` draws them before its first step."""
    return Drawn(data.dataset, *draw_epoch(key, data.new, data.memory, batch_size))


def at_once(case: Case, seeds: int) -> tuple[Variables, TaskData, jax.Array]:
    """Variables, data and keys of so many seeds of a case, for a `CompiledEpoch` of them."""
    known = jnp.zeros(len(case.data.classifier), bool)
    data = case.data.replace(classes=methods.Classes(active=known, new=known))
    keys = jax.random.split(jax.random.key(0), seeds)
    return stacked([case.variables] * seeds), stacked_data([data] * seeds), keys


def stream(config: ConfigDict, num_classes: int, per_class: int, *, held_out: int = 1) -> Stream:
    """A stream as `inputs.load_stream` would load it, of random images."""
    size = config.image.size
    train, test = (
        images(number * num_classes, num_classes, size=size, seed=seed)
        for seed, number in enumerate((per_class, held_out))
    )
    return build_stream(
        train,
        test,
        initial_classes=config.stream.initial_classes,
        increment=config.stream.increment,
        limit_per_class=None,
        class_order_seed=None,
    )


def evaluation(num_queries: int, num_gallery: int, *, size: int = 32) -> Evaluation:
    """An open-set evaluation of ten classes."""
    query, gallery = (
        images(number, 10, size=size, seed=seed)
        for seed, number in ((2, num_queries), (3, num_gallery))
    )
    return Evaluation(query, gallery)


def external_models(config: ConfigDict) -> dict[int, Model]:
    """Random networks in the place of pre-trained ones, at each replacement of the protocol."""
    architecture = Architecture.of_config(config)
    model = architecture.module()
    metadata = Metadata(
        EXTERNAL,
        architecture,
        methods.get(config.method).external_head,
        config.num_slots,
        (0, 0),
        ImageInput.of(config.image),
    )
    external = {}
    for task in config.replacements.tasks:
        variables = random_variables(model, seed=task, size=config.image.size)
        external[task] = Model(metadata, variables, f"random-{task}")
    return external
