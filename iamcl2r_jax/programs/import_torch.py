"""Makes an external model of a PyTorch checkpoint."""

from typing import Any

from absl import flags

from iamcl2r_jax.system import cli, flag_types


def main() -> None:
    """Runs the program: launch/import_torch.py, installed as iamcl2r-import-torch."""
    cli.run_installed(_define, _run, __doc__)


def _define() -> None:
    flag_types.path("checkpoint", None, "torch.save or .safetensors file to read.")
    flag_types.name_in("iamcl2r_jax.models:BACKBONES", "backbone", None, "Its architecture.")
    flag_types.path("output", None, "Directory of the external model to write.")
    flags.DEFINE_integer("classes", None, "How many classes it was pre-trained on.")
    flags.DEFINE_string("dataset", "", "Name of the data it was trained on.")
    flags.DEFINE_integer(
        "num_classes",
        None,
        "K of the simplex; only for a checkpoint without one.",
        lower_bound=2,
    )
    flags.DEFINE_integer("seed", 0, "Draws the map to the feature if there is none.")
    flags.DEFINE_integer("image_size", None, "Height and width of its images.", lower_bound=8)
    flags.DEFINE_multi_float("image_mean", None, "Mean of its images in [0, 1]; three times.")
    flags.DEFINE_multi_float("image_std", None, "Deviation of its images; three times.")
    flags.mark_flags_as_required(["checkpoint", "backbone", "output"])


def _run(values: dict[str, Any]) -> None:
    from iamcl2r_jax import torch_import

    image = {name: values[f"image_{name}"] for name in ("size", "mean", "std")}
    lines = torch_import.import_model(
        values["checkpoint"],
        values["backbone"],
        values["output"],
        num_classes=values["num_classes"],
        classes=values["classes"],
        dataset=values["dataset"],
        image={name: value for name, value in image.items() if value is not None},
        seed=values["seed"],
    )
    print("\n".join(lines))
