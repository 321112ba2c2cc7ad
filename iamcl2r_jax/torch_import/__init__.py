"""Takes over PyTorch checkpoints as models of ours, and gives ours back in their layout.

Our variables are the tensors of the official code's network under other names (`names`), channels
last. A classifier in torchvision's layout (trunk without a prefix and a head of its own) is taken
over as a starting point: its trunk, under a new map to the feature.

Reading needs no PyTorch (`torch_files`, `pickles`); writing `.pt` files does, and `.safetensors`
files need their package. Both are in the optional extra `torch`.
"""

from iamcl2r_jax.torch_import.external import import_model
from iamcl2r_jax.torch_import.reading import Imported, read
from iamcl2r_jax.torch_import.writing import export_model, to_torch_state_dict

__all__ = ["Imported", "export_model", "import_model", "read", "to_torch_state_dict"]
