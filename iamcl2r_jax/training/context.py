"""What is the same for all tasks of a run: configuration, data, programs, and who is told of it."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import optax
from ml_collections import ConfigDict

from iamcl2r_jax import methods, simplex
from iamcl2r_jax.data import streaming
from iamcl2r_jax.data.augment import AUGMENTATIONS, ImageOptions
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.methods.optimizers import OPTIMIZERS
from iamcl2r_jax.models.stored import Architecture, Model
from iamcl2r_jax.system.parallel import batch_sharding
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.step import CompiledEpoch, Program
from iamcl2r_jax.training.tracking import Tracker


def image_options(image: ConfigDict) -> ImageOptions:
    """The configuration's `image` as the compiled program takes it."""
    options = image.augmentation_options[image.augmentation]
    augment = partial(AUGMENTATIONS[image.augmentation], **options)
    return ImageOptions(tuple(image.mean), tuple(image.std), augment)


def optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """The configuration's `train.optimizer` with its options."""
    return OPTIMIZERS[train.optimizer](**train.optimizer_options[train.optimizer])


class ProgramsByArchitecture:
    """Compiled programs by architecture, made when first asked for.

    Raises `InputError` if the devices cannot share a batch.

    Attributes:
      batch_sharding: of all of them, see `parallel.batch_sharding`.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self._epochs: dict[tuple[Any, ...], CompiledEpoch] = {}
        self._features: dict[Architecture, FeatureExtractor] = {}
        self.batch_sharding = batch_sharding(config.train.batch_size)

    def epoch(
        self,
        architecture: Architecture,
        teachers: tuple[Architecture, ...] = (),
        num_seeds: int = 1,
    ) -> CompiledEpoch:
        """The program that trains so many seeds at once, taught by none, one or two old models."""
        key = architecture, teachers, num_seeds
        if key not in self._epochs:
            config, method = self._config, methods.get(self._config.method)
            old, replaced, *_ = *(teacher.module() for teacher in teachers), None, None
            program = Program(
                model=architecture.module(),
                old_model=old,
                replaced_model=replaced,
                replaced_weight=config.replacements.replaced_weight,
                loss=partial(method.loss, **config.method_options[config.method]),
                head=method.head,
                image_options=image_options(config.image),
                batch_size=config.train.batch_size,
                optimizer=optimizer(config.train),
                batch_sharding=self.batch_sharding,
            )
            self._epochs[key] = CompiledEpoch(program, num_seeds)
        return self._epochs[key]

    def features(self, architecture: Architecture) -> FeatureExtractor:
        """The program that embeds images."""
        if architecture not in self._features:
            options = image_options(self._config.image)
            self._features[architecture] = FeatureExtractor(architecture.module(), options)
        return self._features[architecture]

    def traces(self) -> int:
        """How often a train program was traced."""
        return sum(epoch.traces for epoch in self._epochs.values())


@dataclasses.dataclass(frozen=True)
class Context:
    """What is the same for all tasks of a run.

    Attributes:
      config: see `config.default`.
      workdir: of the run.
      stream: images of all tasks.
      dataset: the stream's training images, labelled by row of the classifier.
      external: the external models of fixed replacements, by task.
      programs: compiled programs by architecture.
      reporter: shows the progress.
      preemption: says when to save and stop.
      tracker: is told of every epoch; by default tells nobody.
    """

    config: ConfigDict
    workdir: str
    stream: Stream
    dataset: streaming.Dataset | streaming.HostDataset
    external: Mapping[int, Model]
    programs: ProgramsByArchitecture
    reporter: Reporter
    preemption: Preemption
    tracker: Tracker = dataclasses.field(default_factory=Tracker)


def stream_dataset(
    config: ConfigDict, stream: Stream, programs: ProgramsByArchitecture
) -> streaming.Dataset | streaming.HostDataset:
    """The stream's training images, labelled by row of the classifier, on the devices or not."""
    slots = simplex.downstream_slot(stream.train.labels, config.num_slots)
    return streaming.place(stream.train.images, slots, config.resident_gib, programs.batch_sharding)
