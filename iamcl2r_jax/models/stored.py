"""A stored model: typed metadata and variables, saved and loaded as one checkpoint directory.

Runs, pre-training, the upgrade gate, PyTorch import and export, and reports all read and write
models here. A directory holds metadata.json, see `Metadata.to_json`, and the arrays as Orbax writes
them; `checkpoints` makes it appear whole and compares its checksums.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from iamcl2r_jax import models, simplex
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.system.errors import InputError

EXTERNAL, TASK, UNTRAINED = "external", "task", "untrained"  # kinds; the last is never stored


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A backbone, its options and the width of its features; hashable.

    Attributes:
      backbone: a key of `models.BACKBONES`.
      num_features: D.
      options: fields of the backbone's module, as sorted pairs of name and value.
    """

    backbone: str
    num_features: int
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, backbone: str, num_features: int, options: Mapping[str, Any]) -> "Architecture":
        """An architecture from a mapping of options."""
        return cls(backbone, num_features, tuple(sorted(options.items())))

    @classmethod
    def of_config(cls, config: Any) -> "Architecture":
        """The one that the configuration of a run or of pre-training asks for."""
        return cls.of(config.model.backbone, config.num_slots - 1, config.model.options)

    def module(self) -> nn.Module:
        """The Flax module; `ValueError` if there is no such backbone or option."""
        return models.create(self.backbone, self.num_features, **dict(self.options))

    def to_json(self) -> dict[str, Any]:
        """As it stands in metadata.json."""
        return dataclasses.asdict(self) | {"options": dict(self.options)}


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """The input of a network.

    Attributes:
      size: height and width in pixels.
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, image: Any) -> "ImageInput":
        """From anything with these attributes, such as `image` of a configuration."""
        return cls(image.size, tuple(image.mean), tuple(image.std))

    def to_json(self) -> dict[str, Any]:
        """As it stands in metadata.json."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a model is.

    Attributes:
      kind: `EXTERNAL`, a pre-trained model, or `TASK`, the model after a task of a run.
      architecture: of the network.
      head: classifier, see `heads`.
      num_slots: K, rows of the classifier; features have K - 1 dimensions.
      slots: first row that it was trained on, and one past the last; (0, 0) if unknown.
      image: input of the network.
      about: whatever else is worth knowing, JSON values; nothing here depends on it.
    """

    kind: str
    architecture: Architecture
    head: str
    num_slots: int
    slots: tuple[int, int]
    image: ImageInput
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def known_rows(self) -> np.ndarray:
        """Rows of the classifier that it was trained on, bool [K]."""
        row, (first, stop) = np.arange(self.num_slots), self.slots
        return (first <= row) & (row < stop)

    def to_json(self) -> dict[str, Any]:
        """The content of metadata.json; `parse` reads it."""
        parts = {"architecture": self.architecture.to_json(), "image": self.image.to_json()}
        return dataclasses.asdict(self) | parts | {"slots": list(self.slots)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
      metadata: what it is.
      variables: as its module's `.apply` takes them, a learnable head among the parameters.
      path: where it was loaded from; "" for a model made here.
      adapter: maps galleries of the task before to this model, see `maps.fan`; None for
        the first task, for external models and for methods that leave galleries as they are.
    """

    metadata: Metadata
    variables: Variables
    path: str = ""
    adapter: Any = None

    @property
    def architecture(self) -> Architecture:
        """Of its network."""
        return self.metadata.architecture

    @property
    def trained(self) -> bool:
        """False for the random variables from which a run without an external model starts."""
        return self.metadata.kind != UNTRAINED

    def classifier_rows(self) -> np.ndarray | jax.Array:
        """Rows of the classifier, [K, D]: of the learnable head, or the simplex."""
        if heads.is_learnable(self.metadata.head):
            return heads.rows_of(self.variables)
        return simplex.dsimplex(self.metadata.num_slots)

    def accuracy(self, features: np.ndarray, rows: np.ndarray) -> float:
        """Share of features [N, D] for which the classifier chooses the right row, int [N].

        The simplex chooses among all K slots, unused ones included; a learnable head among the
        classes that it was trained on, as it has no rows for others.
        """
        head = self.metadata.head
        active = self.metadata.known_rows if heads.is_learnable(head) else None
        chosen = heads.predict(head, features, self.classifier_rows(), active)
        return float(np.mean(chosen == rows))


def require(
    path: str,
    metadata: Metadata,
    *,
    kind: str | None = None,
    head: str | None = None,
    num_slots: int | None = None,
    image: ImageInput | None = None,
    stream_classes: int | None = None,
) -> None:
    """Raises `InputError` if the model at `path` is not what is required; None leaves it open.

    A stream of so many classes needs slots at the simplex's far end which the model was not trained
    on; for the others see `Metadata`.
    """
    if kind is not None and metadata.kind != kind:
        raise InputError(
            f"checkpoint {path} is not an external model but a {metadata.kind}; "
            "launch/pretrain.py makes external models"
            if kind == EXTERNAL
            else f"checkpoint {path}: kind={metadata.kind!r}: must be {kind!r}"
        )
    if head is not None and metadata.head != head:
        raise InputError(
            f"checkpoint {path} was trained with head={metadata.head!r}, the run's method "
            f"needs head={head!r}"
        )
    if num_slots is not None and metadata.num_slots != num_slots:
        raise InputError(
            f"checkpoint {path} was trained with a simplex of K={metadata.num_slots}, "
            f"the run has K={num_slots}; they must be equal"
        )
    if image is not None and metadata.image != image:
        raise InputError(
            f"checkpoint {path} was trained on images with {metadata.image.to_json()}, the run "
            f"has image={image.to_json()}; they must be equal"
        )
    if stream_classes is not None:
        try:
            simplex.check_slots(stream_classes, metadata.slots[1], metadata.num_slots)
        except InputError as error:
            raise InputError(f"checkpoint {path}: {error}") from None


def parse(path: str, written: Any) -> Metadata:
    """The metadata of the checkpoint at `path`, from what its metadata.json holds.

    Raises `InputError`, naming the field, its value and what would be right.
    """
    fields = {field.name for field in dataclasses.fields(Metadata)}
    missing = fields - written.keys()
    if missing:
        raise InputError(
            f"checkpoint {path}: its metadata lacks {', '.join(sorted(missing))}; it must be an "
            "external model or a task of a run"
        )

    def must(good: bool, field: str, what: str) -> None:
        if not good:
            raise InputError(f"checkpoint {path}: {field}={written[field]!r:.200}: must be {what}")

    kind, head, num_slots = written["kind"], written["head"], written["num_slots"]
    must(kind in (EXTERNAL, TASK), "kind", f"{EXTERNAL!r} or {TASK!r}")
    known = (heads.SIMPLEX, heads.LINEAR, heads.COSINE)
    must(head in known, "head", f"one of {', '.join(known)}")
    must(type(num_slots) is int and num_slots >= 2, "num_slots", "a whole number, at least 2")
    must(isinstance(written["about"], dict), "about", "a JSON object")
    match written["architecture"]:
        case {"backbone": str(backbone), "num_features": int(width), "options": dict(options)}:
            architecture = Architecture.of(backbone, width, options)
            try:
                architecture.module()
            except (TypeError, ValueError) as error:
                raise InputError(f"checkpoint {path}: architecture: {error}") from None
            must(width == num_slots - 1, "architecture", f"of {num_slots - 1} features, K - 1")
        case _:
            must(False, "architecture", "a backbone, num_features and options")
    match written["slots"]:
        case [int(first), int(stop)] if 0 <= first <= stop <= num_slots:
            slots = first, stop
        case _:
            must(False, "slots", f"the first and one past the last, in 0..{num_slots}")
    match written["image"]:
        case {"size": int(size), "mean": list(mean), "std": list(std)} if (
            size > 0 and _three_numbers(mean) and _three_numbers(std) and min(std) > 0
        ):
            image = ImageInput(size, tuple(mean), tuple(std))
        case _:
            must(False, "image", "a size in pixels, a mean and a positive std per channel")
    return Metadata(kind, architecture, head, num_slots, slots, image, written["about"])


def _three_numbers(values: Sequence[Any]) -> bool:
    return len(values) == 3 and all(type(v) in (int, float) and math.isfinite(v) for v in values)


def expected_variables(metadata: Metadata) -> Any:
    """Names, shapes and dtypes of a model's variables, its learnable head's included."""
    architecture = metadata.architecture
    variables = models.expected_variables(architecture.module(), metadata.image.size)
    return heads.attach_expected(
        variables, metadata.head, metadata.num_slots, architecture.num_features
    )


def save_model(path: str, model: Model, beside: Sequence[epath.Path] = ()) -> None:
    """Writes a model as a checkpoint directory, see `checkpoints.save`; its path is not read."""
    arrays = model.variables | ({} if model.adapter is None else {"adapter": model.adapter})
    checkpoints.save(path, arrays, model.metadata.to_json(), beside)


def load_metadata(path: str, **required: Any) -> Metadata:
    """What the model at `path` is; errors as of `load_model`, without those of its arrays."""
    metadata = parse(path, checkpoints.load_metadata(path))
    require(path, metadata, **required)
    return metadata


def load_model(path: str, **required: Any) -> Model:
    """The model at `path`, which must be as required, see `require`.

    Raises:
      InputError: if there is no finished checkpoint, it is damaged, not as required, its arrays
        are not those of its architecture, or hold values that are not finite.
    """

    def expected(written: dict[str, Any]) -> Any:
        metadata = parse(path, written)
        require(path, metadata, **required)
        return expected_variables(metadata) | _expected_adapter(path, metadata)

    written, variables = checkpoints.load(path, expected)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise InputError(f"checkpoint {path}: it holds values that are not finite")
    adapter = variables.pop("adapter", None)
    return Model(parse(path, written), variables, path, adapter)


def _expected_adapter(path: str, metadata: Metadata) -> dict[str, Any]:
    match metadata.about.get("adapter"):
        case None:
            return {}
        case {"hidden": int(hidden)} if hidden > 0:
            width = metadata.architecture.num_features
            shapes = {"hidden": (width, hidden), "out": (hidden, width)}
            return {
                "adapter": {
                    name: {
                        "kernel": jax.ShapeDtypeStruct(shape, np.float32),
                        "bias": jax.ShapeDtypeStruct(shape[1:], np.float32),
                    }
                    for name, shape in shapes.items()
                }
            }
        case adapter:
            raise InputError(f"checkpoint {path}: its adapter is {adapter!r}")
