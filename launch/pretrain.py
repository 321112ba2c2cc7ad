"""Makes an external model: python launch/pretrain.py --config=configs/pretrain_NAME.py."""

from absl import flags
from ml_collections import config_flags

from iamcl2r_jax.system import cli, flag_types

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration of pre-training.")
_WORKDIR = flag_types.path("workdir", None, "Checkpoint to write; default below runs/external.")
flags.mark_flag_as_required("config")


def main(_):
    from iamcl2r_jax.system.preemption import on_sigterm
    from iamcl2r_jax.system.progress import Reporter
    from iamcl2r_jax.training import external, pretraining

    config = _CONFIG.value
    path = _WORKDIR.value or external.checkpoint_path("runs/external", config, config.classes)
    with on_sigterm() as preemption:
        pretraining.pretrain(
            config, {config.classes: path}, Reporter(), preemption, command=cli.command()
        )


if __name__ == "__main__":
    cli.run(main, joins_job=True)
