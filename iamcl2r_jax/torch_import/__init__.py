"""Takes over PyTorch checkpoints as models of ours, and gives ours back in their layout.

Our variables are the tensors of the official code's network under other names (`names`), channels
last. A classifier in torchvision's layout (trunk without a prefix and a head of its own) is taken
over as a starting point: its trunk, under a new map to the feature.

Reading needs no PyTorch (`torch_files`, `pickles`); writing `.pt` files does, and `.safetensors`
files need their package. Both are in the optional extra `torch`.
"""

import jax

from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.torch_import.external import import_model
from iamcl2r_jax.torch_import.reading import Imported, read
from iamcl2r_jax.torch_import.writing import export_model, to_torch_state_dict

__all__ = ["Imported", "export_model", "import_model", "load", "read", "to_torch_state_dict"]


def load(
    path: str, backbone: str, *, num_features: int | None = None, key: jax.Array | None = None
) -> Variables:
    """The variables of `models.create(backbone, ...)` that a PyTorch checkpoint holds.

    See `read` for arguments and errors.
    """
    return read(path, backbone, num_features=num_features, key=key).variables
