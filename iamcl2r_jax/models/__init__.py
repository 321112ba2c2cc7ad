"""Feature extractors by name."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from iamcl2r_jax.models.resnet import ResNet

# A backbone maps images [B, H, W, 3] to unnormalised features [B, num_features].
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2)),
}


def create(name: str, num_features: int = 1023, **options) -> nn.Module:
    """The backbone called `name`.

    Args:
      name: a key of `BACKBONES`.
      num_features: dimension D of the feature; K - 1 for a d-Simplex of K classes.
      **options: fields of the backbone's module, such as `width` and `stem`.

    Returns:
      A module whose `.apply(variables, images [B, H, W, 3], train=False)` is [B, num_features].

    Raises:
      ValueError: if there is no backbone of that name, or it has no such option.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone={name!r} is unknown; there are {', '.join(BACKBONES)}")
    try:
        return BACKBONES[name](num_features=num_features, **options)
    except TypeError as error:
        raise ValueError(f"backbone {name!r}: {error}") from None
