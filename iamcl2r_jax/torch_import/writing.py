"""Models of ours in the layout of the official PyTorch code, as files."""

import os
from pathlib import Path

import numpy as np
from flax import traverse_util

from iamcl2r_jax import simplex
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.models.stored import load_model
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import import names


def to_torch_state_dict(variables: Variables, backbone: str) -> dict[str, np.ndarray]:
    """Variables of `models.create(backbone, ...)` in the layout of the official code, with simplex.

    Returns:
      NumPy arrays by the official names. Where trunk and feature are of one size and the map
      between them is the identity, `fc1.weight` is left out, as in the official network.

    Raises:
      InputError: if the backbone has no layout there.
    """
    if backbone not in names.BLOCK_NAMES:
        raise InputError(
            f"backbone={backbone!r} cannot be exported: the official code has no such network; "
            f"there are {', '.join(names.BLOCK_NAMES)}"
        )
    state = {}
    for leaf_path, leaf in traverse_util.flatten_dict(variables).items():
        name = names.torch_name(leaf_path, backbone)
        state[name] = np.ascontiguousarray(names.to_torch(np.asarray(leaf), name))
        if name.endswith("running_var"):
            # PyTorch only counts with it when BatchNorm has no momentum.
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    dim, trunk = state["fc1.weight"].shape
    if dim == trunk and np.array_equal(state["fc1.weight"], np.eye(dim)):
        del state["fc1.weight"]
    return state | {"fc2.weight": simplex.dsimplex(dim + 1)}


def export_model(directory: str, output: str) -> list[str]:
    """Writes a checkpoint of ours as a PyTorch one.

    Args:
      directory: an external model, or a task of a run.
      output: file to make, `.pt` or `.pth` ({"net": state dict}; needs torch) or `.safetensors`.

    Returns:
      Lines that say what was done.

    Raises:
      InputError: if the checkpoint is no d-Simplex model, a package is missing, or the file
        exists or has another suffix.
    """
    writers = {".pt": _write_torch, ".pth": _write_torch, ".safetensors": _write_safetensors}
    target = Path(output)
    if target.suffix not in writers:
        raise InputError(f"output={output}: its name must end in {', '.join(writers)}")
    if target.exists():
        raise InputError(f"output={output} exists already; choose another name")

    model = load_model(directory, head=heads.SIMPLEX)
    backbone, options = model.architecture.backbone, model.architecture.options
    state = to_torch_state_dict(model.variables, backbone)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        writers[target.suffix](draft, state)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    options = ", ".join(f"{name} {value}" for name, value in options)
    return [f"exported {backbone} ({options}) with {len(state)} tensors: {output}"]


def _write_torch(path: Path, state: dict[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"writing {path.suffix} files needs PyTorch: pip install "
            '"iamcl2r_jax[torch]"; or choose an output that ends in .safetensors'
        ) from None
    torch.save({"net": {name: torch.from_numpy(value) for name, value in state.items()}}, path)


def _write_safetensors(path: Path, state: dict[str, np.ndarray]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise InputError(
            "writing .safetensors files needs the package safetensors: pip install "
            '"iamcl2r_jax[torch]"'
        ) from None
    save_file(state, path, metadata={"format": "pt"})
