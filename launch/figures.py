"""Draws the paper's figures from runs, and checks its Theorem 1 on them.

python launch/figures.py --figure=losses --workdir=RUN,RUN          # Fig. 3
python launch/figures.py --figure=accuracy --workdir=RUN,RUN        # Fig. 4
python launch/figures.py --figure=compatibility --workdir=RUN,RUN   # Fig. 5
python launch/figures.py --figure=theorem --workdir=RUN             # Theorem 1

Writes PNG, SVG and JSON into --output, and theorem.md; docs/figures.md says how to make the runs.
"""

from absl import flags

from iamcl2r_jax.system import cli, flag_types

_FIGURE = flag_types.name_in(
    "iamcl2r_jax.reports.figures:FIGURES", "figure", None, "What to draw, see above."
)
_WORKDIR = flag_types.several_paths(
    "workdir", None, "Runs; several seeds of one label share a line."
)
_LABELS = flags.DEFINE_list("labels", None, "Of the runs; by default their methods.")
_OUTPUT = flag_types.path("output", "figures", "Directory to write into.")
_RESAMPLES = flags.DEFINE_integer(
    "resamples", 1000, "Of the theorem's bootstrap intervals.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of these.", lower_bound=0)
flags.mark_flags_as_required(["figure", "workdir"])


def main(_):
    from iamcl2r_jax.reports import figures

    figures.main(
        _FIGURE.value,
        _WORKDIR.value,
        _OUTPUT.value,
        labels=_LABELS.value,
        resamples=_RESAMPLES.value,
        seed=_SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
