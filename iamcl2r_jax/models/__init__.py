"""Feature extractors by name."""

import inspect
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from iamcl2r_jax.models.regnet import RegNet
from iamcl2r_jax.models.resnet import BasicBlock, BottleneckBlock, CifarResNet, PaddedBlock, ResNet
from iamcl2r_jax.models.senet import SENet
from iamcl2r_jax.models.vit import ViT
from iamcl2r_jax.system.errors import InputError

# A backbone maps images [B, H, W, 3] to unnormalised features [B, num_features].
BACKBONES: dict[str, partial[nn.Module]] = {
    "resnet18": partial(ResNet, block=BasicBlock, stage_sizes=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block=BasicBlock, stage_sizes=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, block=BottleneckBlock, stage_sizes=(3, 4, 6, 3)),
    "resnet20": partial(CifarResNet, block=PaddedBlock, stage_sizes=(3, 3, 3)),
    "resnet32": partial(CifarResNet, block=PaddedBlock, stage_sizes=(5, 5, 5)),
    "senet18": partial(SENet, stage_sizes=(2, 2, 2, 2)),
    "regnety_400mf": partial(RegNet, stage_sizes=(1, 2, 7, 12), stage_widths=(32, 64, 160, 384)),
    "vit_tiny": partial(ViT),
}


def create(name: str, num_features: int = 1023, **options) -> nn.Module:
    """The backbone called `name`.

    Args:
      name: a key of `BACKBONES`.
      num_features: dimension D of the feature; K - 1 for a d-Simplex of K classes.
      **options: fields of the backbone's module, such as `width` and `stem`.

    Raises:
      InputError: if there is no backbone of that name, it has no such option, or the option has
        another value than it may have.
    """
    known = default_options(name)
    _check_kind("num_features", num_features, 0)
    for option, value in options.items():
        if option not in known:
            raise InputError(
                f"backbone {name!r} has no option {_shown(f'{option}={value!r}')}; its options are "
                f"{', '.join(known)}"
            )
        _check_kind(option, value, known[option])
    try:
        return BACKBONES[name](num_features=num_features, **options)
    except InputError as error:
        raise InputError(f"backbone {name!r}: {error}") from None


def default_options(name: str) -> dict[str, Any]:
    """The options of the backbone called `name`, with their defaults; `InputError` if unknown."""
    if not isinstance(name, str) or name not in BACKBONES:
        raise InputError(f"backbone={name!r} is unknown; there are {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]
    # What defines the backbone is no option of it; nor is what Flax adds to every module.
    reserved = {"num_features", "parent", "name", *backbone.keywords}
    fields = inspect.signature(backbone).parameters.values()
    return {field.name: field.default for field in fields if field.name not in reserved}


def init_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Random variables of `model` for images [B, image_size, image_size, 3]."""
    return _compiled_init(jax.default_backend())(model, key, image_size)


def expected_variables(model: nn.Module, image_size: int) -> Any:
    """Names, shapes and dtypes of a model's variables, without computing them."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0), image_size))


def _init(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    return model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32))


@cache
def _compiled_init(platform: str):
    # Loops of random bits for every array: on CPU, LLVM's vectorisation of them takes most of the
    # time of a program that runs once (ResNet-18: 22 s of 27), and the bits are the same without.
    options = {"xla_backend_optimization_level": 1} if platform == "cpu" else None
    return jax.jit(_init, static_argnames=("model", "image_size"), compiler_options=options)


_LARGEST = 2**16  # a slip of the hand; it would end in an error of the memory's


def _check_kind(option: str, value: Any, example: Any) -> None:
    """Raises `InputError` if an option is of another kind than its default, or beyond reason."""
    if option == "dtype":
        return  # the modules know which they compute in
    if type(value) is not type(example):
        raise InputError(
            f"{option}={_shown(repr(value))}: must be of type {type(example).__name__}"
        )
    if isinstance(value, int) and value > _LARGEST:
        raise InputError(f"{option}={value!r}: must be at most {_LARGEST}")


def _shown(text: str) -> str:
    """What a message shows of a text that may come from anywhere: short and on one line."""
    text = text[:100]
    return text if text.isprintable() else ascii(text)[1:-1]
