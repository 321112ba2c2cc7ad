"""Table and picture of maps after the fact beside training for compatibility.

By evaluation, beside the tables of the comparison:
  maps.md, maps.csv, maps.json   every way of every chain of models, mean ± std over the seeds
  maps.png, maps.svg             accuracy on the old galleries against the seconds to get there
"""

import os
from collections.abc import Mapping
from typing import Any

from iamcl2r_jax.comparisons.map_axis import EXTERNAL, TRAINED
from iamcl2r_jax.comparisons.tables import Column
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.evaluation.intervals import mean_and_std
from iamcl2r_jax.reports.tables import comma_separated, markdown
from iamcl2r_jax.system import files
from iamcl2r_jax.system.progress import Reporter, or_message, print_text

_COLUMNS = {
    "ac": Column("AC", ".3f"),
    "aa": Column("AA %"),
    "old_galleries": Column("old galleries %"),
    "own": Column("last on its own %"),
    "seconds": Column("seconds"),
    "fit_seconds": Column("fit s"),
    "query_seconds": Column("µs a query", ".0f", 1e6),
    "map_bytes": Column("map MiB", factor=2.0**-20),
    "gallery_bytes": Column("gallery MiB", factor=2.0**-20),
}
_NOTE = (
    "Mean ± standard deviation of a sample (n - 1) over n seeds. Of {metric}, for the last model "
    "before each replacement and the last of all; old galleries: all pairs of a model and an older "
    "gallery. Maps are fitted on up to {pairs:,} images of the stream, which no evaluation holds. "
    "Costs are means over the upgrades: seconds to get there (training, fitting the map, embedding "
    "the gallery again), of the fit alone, added to a query; bytes of the map, and of the gallery "
    "that are written again."
)

Row = dict[str, Any]


def rows_of(by_cell: Mapping[tuple[str, int], dict[str, Any]], evaluation: str) -> list[Row]:
    """A row for each chain and way, with figures over the seeds.

    Chains of external models are the same for all variants with one kind of head: that of the first
    is taken. `by_cell` is what `map_axis.evaluate_run` gives, by variant and seed.
    """
    seen: dict[tuple, dict[int, dict]] = {}
    for (variant, seed), found in by_cell.items():
        for chain, of_chain in found["chains"].items():
            label = variant if chain == TRAINED else f"{EXTERNAL}, {of_chain['head']}"
            for way in of_chain["evaluations"][evaluation]:
                key = label, way["kind"], way["map"], way["direction"]
                seen.setdefault(key, {}).setdefault(seed, way["figures"])
    return [
        {
            "chain": chain,
            "way": name or kind,
            "direction": direction,
            "n": len(of_seeds),
            "figures": {
                figure: mean_and_std([found[figure] for found in of_seeds.values()])
                for figure in _COLUMNS
            },
        }
        for (chain, kind, name, direction), of_seeds in seen.items()
    ]


def write(
    by_cell: Mapping[tuple[str, int], dict[str, Any]], workdir: str, reporter: Reporter
) -> None:
    """Writes, prints and draws the tables of all evaluations, see the module."""
    first = next(iter(by_cell.values()))
    note = _NOTE.format(metric=first["metric"].replace("_", " "), pairs=first["pairs"])
    for evaluation in next(iter(first["chains"].values()))["evaluations"]:
        rows, stem = rows_of(by_cell, evaluation), os.path.join(workdir, evaluation, "maps")
        text = markdown(text_cells(rows))
        files.write_json(f"{stem}.json", {"evaluation": evaluation, "rows": rows})
        files.write_text(f"{stem}.md", f"{text}\n{note}\n")
        files.write_text(f"{stem}.csv", comma_separated(csv_cells(rows)))
        print_text(reporter.console, f"\n{evaluation}, maps after the fact\n\n{text}")
        with or_message(reporter, f"{stem}.svg was not drawn", "the tables are complete"):
            from iamcl2r_jax.reports import cost_plot, plots  # matplotlib, only where it is drawn

            plots.save(cost_plot.costs(points(rows), title=evaluation), stem)
    print_text(reporter.console, note)


def points(rows: list[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """By chain and way, seconds to get there and accuracy on the old galleries, as means."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        seconds, accuracy = (row["figures"][name]["mean"] for name in ("seconds", "old_galleries"))
        found.setdefault(row["chain"], {})[_way(row)] = seconds, accuracy
    return found


def _way(row: Row) -> str:
    where = {maps.QUERIES: ", queries", maps.GALLERY: ", gallery", None: ""}
    return f"{row['way']}{where[row['direction']]}"


def text_cells(rows: list[Row]) -> list[list[str]]:
    """The table as text: the titles, then a line for each row."""
    lines = [["models", "way", "n", *(column.title for column in _COLUMNS.values())]]
    for row in rows:
        cells = (column.text(row["figures"][name]) for name, column in _COLUMNS.items())
        lines.append([row["chain"], _way(row), str(row["n"]), *cells])
    return lines


def csv_cells(rows: list[Row]) -> list[list[Any]]:
    """The table unrounded: mean and std of each figure."""
    parts = "mean", "std"
    titles = [f"{name}_{part}" for name in _COLUMNS for part in parts]
    lines: list[list[Any]] = [["models", "way", "direction", "n", *titles]]
    for row in rows:
        values = [row["figures"][name][part] for name in _COLUMNS for part in parts]
        lines.append([row["chain"], row["way"], row["direction"], row["n"], *values])
    return lines
