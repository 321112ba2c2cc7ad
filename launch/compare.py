"""Compares systems, or settings of one, under one protocol.

python launch/compare.py --config=configs/compare_glyphs.py [--workdir=DIR] [--only=hoc,er-seed1]
python launch/compare.py --config=configs/compare_glyphs.py --only= --maps=procrustes,ridge
python launch/compare.py --config=configs/compare_glyphs.py --jobs=2

Exit status: 0, 1 if a cell failed, 2 for bad input.
"""

import sys

from absl import flags
from ml_collections import config_flags

from iamcl2r_jax.system import cli, flag_types

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to compare.")
_WORKDIR = flag_types.path("workdir", None, "Directory of the comparison; default runs/NAME.")
_ONLY = flags.DEFINE_list(
    "only",
    None,
    "Variants, or cells as VARIANT-seedSEED, to run; empty to only tabulate. The tables are of all "
    "that is finished.",
)
_MAPS = flag_types.several_names_in(
    "iamcl2r_jax.evaluation.maps:MAPS",
    "maps",
    "Maps after the fact to try on the models of every finished run, or of those in --only.",
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Cells at a time, each in a process with its share of the cores, or a GPU where there are "
    "several.",
    lower_bound=1,
)
flags.mark_flag_as_required("config")


def load_config():
    """Loads the config file again in another process, for what it registers."""
    flags.FLAGS(sys.argv)
    _ = _CONFIG.value


def main(_):
    from iamcl2r_jax.comparisons import comparison

    return comparison.main(
        _CONFIG.value,
        _WORKDIR.value,
        _ONLY.value,
        cli.command(),
        _MAPS.value,
        num_jobs=_JOBS.value,
        initialize=load_config,
    )


if __name__ == "__main__":
    cli.run(main)
