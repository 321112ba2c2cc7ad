"""Compares systems, or settings of one, under one protocol.

python launch/compare.py --config=configs/compare_glyphs.py [--workdir=DIR] [--only=hoc,er-seed1]
python launch/compare.py --config=configs/compare_glyphs.py --only= --maps=procrustes,ridge

Exit status: 0, 1 if a cell failed, 2 for bad input.
"""

from absl import flags
from ml_collections import config_flags

from iamcl2r_jax.comparisons import comparison
from iamcl2r_jax.evaluation.maps import MAPS
from iamcl2r_jax.system import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to compare.")
_WORKDIR = cli.path_flag("workdir", None, "Directory of the comparison; default runs/NAME.")
_ONLY = flags.DEFINE_list(
    "only",
    None,
    "Variants, or cells as VARIANT-seedSEED, to run; empty to only tabulate. The tables are of all "
    "that is finished.",
)
_MAPS = flags.DEFINE_list(
    "maps",
    [],
    "Maps after the fact to try on the models of every finished run: all, or some of "
    f"{', '.join(MAPS)}.",
)
flags.mark_flag_as_required("config")


def main(_):
    return comparison.main(_CONFIG.value, _WORKDIR.value, _ONLY.value, cli.command(), _MAPS.value)


if __name__ == "__main__":
    cli.run(main)
