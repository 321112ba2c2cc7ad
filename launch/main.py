"""Runs the IAM-CL²R procedure: python launch/main.py --config=configs/NAME.py [--workdir=DIR]."""

from absl import flags
from ml_collections import config_flags

from iamcl2r_jax.system import cli, flag_types

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration of the run.")
_WORKDIR = flag_types.path("workdir", None, "Directory of the run; default runs/NAME.")
flags.mark_flag_as_required("config")


def main(_):
    from iamcl2r_jax.reports.report import print_results, print_seeds
    from iamcl2r_jax.system import distributed
    from iamcl2r_jax.system.preemption import on_sigterm
    from iamcl2r_jax.training import lifelong

    config = _CONFIG.value
    workdir = _WORKDIR.value or f"runs/{config.name}"
    with on_sigterm() as preemption:
        results = lifelong.run(config, workdir, preemption=preemption, command=cli.command())
    if distributed.is_first():
        show = print_seeds if config.num_seeds > 1 else print_results
        show(results, workdir)


if __name__ == "__main__":
    cli.run(main, joins_job=True)
