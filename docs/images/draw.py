"""Draws the README's pictures from finished runs, the first of which gives the matrix.

python docs/images/draw.py LABEL=RUN [LABEL=RUN ...]

Each RUN is the directory of a run. What external models reach alone is drawn too where a comparison
left that in one of them, see `comparisons.external_alone`.
"""

import pathlib
import sys

import numpy as np

from iamcl2r_jax.comparisons import external_alone
from iamcl2r_jax.reports import plots
from iamcl2r_jax.system import files
from iamcl2r_jax.training.schedule import Schedule

EVALUATION = "digits"
HERE = pathlib.Path(__file__).parent


def main(named: list[str]) -> None:
    workdirs = dict(name.split("=", 1) for name in named)
    runs = {
        label: files.read_json(f"{workdir}/results.json") for label, workdir in workdirs.items()
    }
    label, shown = next(iter(runs.items()))
    evaluation, schedule = shown["evaluations"][EVALUATION], Schedule.of_results(shown)
    title = f"{label}: AC {evaluation['ac']:.2f}, AA {evaluation['aa']:.1f} %"
    write(plots.heat_map(evaluation["matrix"], schedule, title), "matrix")
    lines = {label: first_column(run) for label, run in runs.items()}
    kept = (files.read_json(f"{workdir}/{external_alone.FILE}") for workdir in workdirs.values())
    for alone in filter(None, kept):
        # The model in service changes at the replacements alone.
        serving = np.cumsum(np.isin(np.arange(shown["num_tasks"]), schedule.replaced)) - 1
        lines["external models alone"] = np.array(first_column(alone))[serving].tolist()
    curves = plots.curves(
        lines,
        xlabel="queries of the model after task",
        ylabel="found in the gallery of model 1, %",
        schedule=schedule,
    )
    curves.axes[0].xaxis.get_major_locator().set_params(integer=True)
    write(curves, "first_gallery")


def first_column(results) -> list[float]:
    """What each model's queries find in the gallery of the first, in percent."""
    return [100 * row[0] for row in results["evaluations"][EVALUATION]["matrix"]]


def write(figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
