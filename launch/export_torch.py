"""Writes a model of ours for PyTorch.

python launch/export_torch.py --checkpoint=DIR --output=F.pt (or F.safetensors)
"""

from absl import flags

from iamcl2r_jax import torch_import
from iamcl2r_jax.system import cli

_CHECKPOINT = cli.path_flag("checkpoint", None, "External model, or task of a run.")
_OUTPUT = cli.path_flag("output", None, "File to write: .pt, .pth or .safetensors.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main(_):
    print("\n".join(torch_import.export_model(_CHECKPOINT.value, _OUTPUT.value)))


if __name__ == "__main__":
    cli.run(main)
