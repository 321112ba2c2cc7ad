"""Draws the README's pictures from finished runs, the first of which gives the matrix.

python docs/images/draw.py LABEL=runs/NAME [LABEL=runs/OTHER ...]
"""

import pathlib
import sys

from iamcl2r_jax.reports import plots
from iamcl2r_jax.reports.schedule import Schedule
from iamcl2r_jax.system import files

EVALUATION = "digits"
HERE = pathlib.Path(__file__).parent


def main(named: list[str]) -> None:
    workdirs = dict(name.split("=", 1) for name in named)
    runs = {
        label: files.read_json(f"{workdir}/results.json") for label, workdir in workdirs.items()
    }
    label, shown = next(iter(runs.items()))
    evaluation = shown["evaluations"][EVALUATION]
    title = f"{label}: AC {evaluation['ac']:.2f}, AA {evaluation['aa']:.1f} %"
    write(plots.heat_map(evaluation["matrix"], Schedule.of_results(shown), title), "matrix")
    first_columns = {
        label: [100 * row[0] for row in run["evaluations"][EVALUATION]["matrix"]]
        for label, run in runs.items()
    }
    curves = plots.curves(
        first_columns,
        xlabel="queries of the model after task",
        ylabel="found in the gallery of model 1, %",
        schedule=Schedule.of_results(shown),
    )
    curves.axes[0].xaxis.get_major_locator().set_params(integer=True)
    write(curves, "first_gallery")


def write(figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
