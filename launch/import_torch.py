"""Makes an external model of a PyTorch checkpoint.

python launch/import_torch.py --checkpoint=F.pt --backbone=resnet18 --output=DIR
"""

from absl import flags

from iamcl2r_jax import models, torch_import
from iamcl2r_jax.system import cli

_CHECKPOINT = cli.path_flag("checkpoint", None, "torch.save or .safetensors file to read.")
_BACKBONE = flags.DEFINE_enum("backbone", None, list(models.BACKBONES), "Its architecture.")
_OUTPUT = cli.path_flag("output", None, "Directory of the external model to write.")
_CLASSES = flags.DEFINE_integer("classes", None, "How many classes it was pre-trained on.")
_DATASET = flags.DEFINE_string("dataset", "", "Name of the data it was trained on.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "K of the simplex; only for a checkpoint without one.", lower_bound=2
)
_SEED = flags.DEFINE_integer("seed", 0, "Draws the map to the feature if there is none.")
_SIZE = flags.DEFINE_integer("image_size", None, "Height and width of its images.", lower_bound=8)
_MEAN = flags.DEFINE_multi_float("image_mean", None, "Mean of its images in [0, 1]; three times.")
_STD = flags.DEFINE_multi_float("image_std", None, "Deviation of its images; three times.")
flags.mark_flags_as_required(["checkpoint", "backbone", "output"])


def main(_):
    image = {"size": _SIZE.value, "mean": _MEAN.value, "std": _STD.value}
    lines = torch_import.import_model(
        _CHECKPOINT.value,
        _BACKBONE.value,
        _OUTPUT.value,
        num_classes=_NUM_CLASSES.value,
        classes=_CLASSES.value,
        dataset=_DATASET.value,
        image={name: value for name, value in image.items() if value is not None},
        seed=_SEED.value,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
