"""Tables and pictures of a comparison.

By evaluation a directory with
  table.md, table.csv                       all variants, and models that none of them trains
  differences.md, differences.csv           the others less the first variant, seed by seed
  matrix-<variant>                          compatibility matrix of its first seed
  ac, aa                                    bars of the mean over seeds, ± std
  ac_per_task, aa_per_task                  AC_τ and AA_τ, mean over seeds
  trade_off                                 accuracy on old galleries against that on the own one
and for each group of an ablation <group>.md, <group>.csv, and <group>-ac and -aa over its settings.
Pictures are PNG and SVG.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from rich.console import Console

from iamcl2r_jax import retrieval
from iamcl2r_jax.comparisons import tables
from iamcl2r_jax.comparisons.cells import BASE
from iamcl2r_jax.reports.tables import comma_separated, markdown
from iamcl2r_jax.system import files
from iamcl2r_jax.system.progress import Reporter, or_message, print_text
from iamcl2r_jax.training.schedule import Schedule

# Figure, its per-task form, and the axis.
_DRAWN = (("ac", "AC"), ("aa", "AA (%)"))

_NOTE = (
    "Mean ± standard deviation of a sample (n - 1) over n seeds; - is not run or not defined. AC, "
    "AA, ACA, BC and FC are of {metric}, other metrics stand with their AA. AC and ACA in [0, 1]; "
    "BC and FC differences of accuracies in [0, 1]; across: mean accuracy of the pairs of models "
    "with a replacement between them; old galleries: that of all pairs of a model and an older "
    "gallery; own gallery: that of the last model in its own; final task: accuracy of the "
    "classifier on held-out images of all classes after the last task."
)


def write(
    comparison: dict[str, Any],
    first_results: Mapping[str, dict[str, Any]],
    workdir: str,
    reporter: Reporter,
) -> None:
    """Writes the tables and pictures of all evaluations.

    Args:
      comparison: see `comparison.summarize`.
      first_results: by variant, what stands in results.json of its first seed.
      workdir: directory of the comparison.
      reporter: is told if a picture cannot be drawn.
    """
    for name, evaluation in comparison["evaluations"].items():
        directory = epath.Path(workdir) / name
        directory.mkdir(parents=True, exist_ok=True)
        notes = [*_notes(comparison), f"Tabulated by `{comparison['command']}`."]
        notes = "".join(f"\n{note}\n" for note in notes)
        for stem, header, rows, signed in _tables(comparison, evaluation):
            text = tables.text_cells(header, rows, signed=signed)
            unrounded = tables.csv_cells(header, rows)
            files.write_text(str(directory / f"{stem}.md"), markdown(text) + notes)
            files.write_text(str(directory / f"{stem}.csv"), comma_separated(unrounded))
    from iamcl2r_jax.reports import cost_plot, plots  # matplotlib, only where something is drawn

    for name, evaluation in comparison["evaluations"].items():
        with or_message(reporter, f"{name}: not all pictures were drawn", "tables are complete"):
            for stem, figure in _figures(plots, comparison, name, first_results):
                plots.save(figure, os.path.join(workdir, name, stem))
            if points := _trade_offs(evaluation):
                plots.save(
                    cost_plot.trade_offs(points, title=name),
                    os.path.join(workdir, name, "trade_off"),
                )


def show(comparison: dict[str, Any], console: Console) -> None:
    """Prints the tables of all evaluations."""
    for name, evaluation in comparison["evaluations"].items():
        for _, header, rows, signed in _tables(comparison, evaluation):
            text = markdown(tables.text_cells(header, rows, signed=signed))
            print_text(console, f"\n{name}\n\n{text}")
    for note in _notes(comparison):
        print_text(console, note)


def _tables(comparison, evaluation) -> Iterator[tuple[str, str, dict[str, tables.Row], bool]]:
    """Of each table of an evaluation file name, first title, rows, and if these are differences."""
    rows = evaluation["rows"]
    yield "table", "variant", (_run(rows) or rows) | evaluation["references"], False
    if differences := _run(evaluation["differences"]):
        first, *_ = rows
        yield "differences", f"less {first}", differences, True
    for group, variants in comparison["groups"].items():
        labelled = {
            f"{label} (base)" if variant == BASE else label: rows[variant]
            for label, variant in variants["variants"].items()
        }
        yield group, variants["field"], labelled, False


def _run(rows: Mapping[str, tables.Row]) -> dict[str, tables.Row]:
    """Those of which a seed is finished or failed; a note names the cells of the others."""
    return {label: row for label, row in rows.items() if row["n"] or row["failed"]}


def _notes(comparison) -> Iterator[str]:
    yield _NOTE.format(metric=retrieval.METRICS[comparison["metric"]].title)
    cells = comparison["cells"]
    for name, cell in cells.items():
        if cell["state"] == "failed":
            yield f"{name} failed: {cell['error']}"
    missing = [name for name, cell in cells.items() if cell["state"] == "missing"]
    if missing:
        yield f"{len(missing)} of {len(cells)} cells not run: {', '.join(missing)}"


def _figures(plots, comparison, name: str, first_results) -> Iterator[tuple[str, Any]]:
    for variant, results in first_results.items():
        evaluation = results["evaluations"][name]
        title = f"{variant}, {name}: AC {evaluation['ac']:.3f}, AA {evaluation['aa']:.2f} %"
        yield (
            f"matrix-{variant}",
            plots.heat_map(evaluation["matrix"], Schedule.of_results(results), title),
        )
    rows = {v: row for v, row in comparison["evaluations"][name]["rows"].items() if row["n"]}
    if not rows:
        return
    for figure, ylabel in _DRAWN:
        means, stds = _means(rows, figure)
        yield figure, plots.bars(means, ylabel=ylabel, stds=stds, title=name)
        per_task = f"{figure}_per_task"
        yield (
            per_task,
            plots.curves(
                {variant: row[per_task] for variant, row in rows.items()},
                xlabel="task τ",
                ylabel=ylabel.replace(figure.upper(), f"{figure.upper()}$_τ$"),
                schedule=Schedule.of_results(comparison),
                title=name,
            ),
        )
    for group, settings in comparison["groups"].items():
        shown = settings["variants"].items()
        labelled = {label: rows[variant] for label, variant in shown if variant in rows}
        for figure, ylabel in _DRAWN if labelled else ():
            means, stds = _means(labelled, figure)
            yield (
                f"{group}-{figure}",
                plots.curves(
                    {figure: list(means.values())},
                    xlabel=settings["field"],
                    ylabel=ylabel,
                    stds={figure: [stds.get(label, 0.0) for label in means]},
                    title=name,
                    labels=list(means),
                ),
            )


def _trade_offs(evaluation) -> dict[str, tuple[float, float]]:
    """By row, the last model's accuracy in its own gallery and accuracy on old galleries."""
    means = {
        label: [row["figures"].get(name, {}).get("mean") for name in ("own", "old_galleries")]
        for label, row in (evaluation["rows"] | evaluation["references"]).items()
    }
    return {label: tuple(point) for label, point in means.items() if None not in point}


def _means(rows: Mapping[str, tables.Row], figure: str):
    """Means of a figure by label, and its stds where there are several seeds."""
    found = {label: row["figures"][figure] for label, row in rows.items()}
    stds = {label: value["std"] for label, value in found.items() if value["std"] is not None}
    return {label: value["mean"] for label, value in found.items()}, stds
