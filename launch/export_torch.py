"""Writes a model of ours for PyTorch.

python launch/export_torch.py --checkpoint=DIR --output=F.pt (or F.safetensors)
"""

from absl import flags

from iamcl2r_jax.system import cli, flag_types

_CHECKPOINT = flag_types.path("checkpoint", None, "External model, or task of a run.")
_OUTPUT = flag_types.path("output", None, "File to write: .pt, .pth or .safetensors.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main(_):
    from iamcl2r_jax import torch_import

    print("\n".join(torch_import.export_model(_CHECKPOINT.value, _OUTPUT.value)))


if __name__ == "__main__":
    cli.run(main)
