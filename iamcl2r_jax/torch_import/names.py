"""Names of variables: ours, those of the official PyTorch code, and what wrappers make of them.

The official network is a trunk, `backbone.*`, a bias-free linear map to the feature, `fc1.weight`
[d, C], and the fixed simplex, `fc2.weight` [K, d].
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iamcl2r_jax.system.errors import InputError

_RESNET = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
_SENET = {"shortcut_conv": "shortcut.0", "attention.squeeze": "fc1", "attention.excite": "fc2"}
_REGNET = {
    "shortcut_conv": "shortcut.0",
    "shortcut_bn": "shortcut.1",
    "attention.squeeze": "se.se1",
    "attention.excite": "se.se2",
}
# Names within a block of each backbone: ours and theirs.
BLOCK_NAMES = {
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "senet18": _SENET,
    "regnety_400mf": _REGNET,
}
_LEAF_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Heads of classifiers without a simplex; they are known, and not taken over.
OTHER_HEADS = ("fc.weight", "fc.bias", "linear.weight", "linear.bias")
# What DataParallel, torch.compile and Lightning put before all names, in any order.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_COUNTER = "n_averaged"  # that torch.optim.swa_utils.AveragedModel adds


def torch_name(leaf_path: Sequence[str], backbone: str) -> str:
    """The official name of a variable, e.g. of ("params", "layer1_0", "conv1", "kernel")."""
    _, *modules, leaf = leaf_path
    if modules == ["projection"]:
        return "fc1.weight"
    name = re.sub(r"^layer(\d+)_(\d+)", r"layer\1.\2", ".".join(modules))
    for ours, theirs in BLOCK_NAMES[backbone].items():
        name = name.replace(ours, theirs)
    return f"backbone.{name}.{_LEAF_NAMES[leaf]}"


def official_names(path: str, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by their official names, whichever spelling of them the file has.

    What wrappers put before all names is taken off, and of the averaged model's state its counter.
    A trunk without a prefix, as torchvision has it, is taken for the official one.

    Raises:
      InputError: if one comes under two spellings, or none is of a network known here.
    """
    bare = {name: value for name, value in stored.items() if name != _COUNTER}
    while prefix := next((p for p in _WRAPPERS if _all_begin_with(bare, p)), None):
        bare = {name.removeprefix(prefix): value for name, value in bare.items()}
    official = any(re.match(r"(backbone|fc1|fc2)\.", name) for name in bare)
    renamed = {}
    for name, value in bare.items():
        new = name.replace(".blocks.", ".") if official else f"backbone.{name}"
        if new in renamed:
            raise InputError(
                f"checkpoint {path} holds {shown(new)} twice, with and without .blocks"
            )
        renamed[new] = value
    if not official and not any(re.match(r"backbone\.(conv1|bn1|layer\d)\.", n) for n in renamed):
        first = ", ".join(map(shown, list(stored)[:3]))
        raise InputError(
            f"checkpoint {path} holds tensors of other names ({first}{', ...' * (len(stored) > 3)})"
            "; looked for backbone.conv1.weight, fc1.weight, fc2.weight, or conv1.weight as of "
            f"torchvision, also behind {', '.join(_WRAPPERS)}"
        )
    return renamed


def _all_begin_with(names: Mapping[str, Any], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def options(backbone: str, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The backbone's options that the shape of its first convolution tells."""
    first = stored.get("backbone.conv1.weight")
    found = {"width": 64}
    if first is not None and first.ndim == 4:
        found["width"] = first.shape[0]
    if BLOCK_NAMES[backbone] is _RESNET:
        small = first is not None and first.shape[-1:] == (3,)
        found["stem"] = "small" if small else "imagenet"
    return found


def to_torch(value: np.ndarray, name: str) -> np.ndarray:
    """A variable in PyTorch's order of dimensions, as a view."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    # The linear layers of the attention are written there as 1x1 convolutions.
    return value.T if value.ndim < 2 or name == "fc1.weight" else value.T[:, :, None, None]


def shown(text: Any) -> str:
    """What a message shows of a text that may come from the file: short and on one line."""
    text = str(text)[:100]
    return text if text.isprintable() else ascii(text)
