"""Figures of many runs in one table: mean ± std over seeds, for Markdown, CSV and JSON.

A row is what the seeds of one variant reached on one evaluation:
  n           seeds that are finished
  failed      seeds that diverged
  figures     {figure: see `intervals.mean_and_std`}; units as in results.json
  ac_per_task, aa_per_task   means over the seeds
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iamcl2r_jax import compatibility
from iamcl2r_jax.evaluation.intervals import mean_and_std
from iamcl2r_jax.evaluation.pairs import finite

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """How a figure stands in a table: title, format, and what it is multiplied by."""

    title: str
    form: str = ".2f"
    factor: float = 1.0

    def text(self, figure: Mapping[str, float | None], *, signed: bool = False) -> str:
        """Mean and std, see `intervals.mean_and_std`; "-" without a mean."""
        if figure["mean"] is None:
            return "-"
        form = self.form.lstrip("+")
        mean = format(self.factor * figure["mean"], f"+{form}" if signed else self.form)
        if figure["std"] is None:
            return mean
        return f"{mean} ± {format(self.factor * figure['std'], form)}"


_COLUMNS = {
    "ac": Column("AC", ".3f"),
    "aa": Column("AA %"),
    "across": Column("across %"),
    "old_galleries": Column("old galleries %"),
    "own": Column("own gallery %"),
    "aca": Column("ACA", ".3f"),
    "bc": Column("BC", "+.3f"),
    "fc": Column("FC", "+.3f"),
    "recall_at_1": Column("Recall@1 %"),
    "mean_average_precision": Column("mAP %"),
    "final_accuracy": Column("final task %", ".1f", factor=100),
}


def make_row(evaluation: str, results: Sequence[dict | None], failed: int = 0) -> Row:
    """What the seeds of one variant reached on one evaluation.

    Args:
      evaluation: its name.
      results: what stands in results.json of each seed's run; None for a run that is not there.
      failed: how many of these diverged.
    """
    finished = [run for run in results if run is not None]
    per_seed = [None if run is None else figures(run, evaluation) for run in results]
    names = dict.fromkeys(name for values in per_seed if values for name in values)
    return {
        "n": len(finished),
        "failed": failed,
        "figures": {
            name: mean_and_std([values and values.get(name) for values in per_seed])
            for name in names
        },
    } | {
        name: np.mean([run["evaluations"][evaluation][name] for run in finished], axis=0).tolist()
        for name in ("ac_per_task", "aa_per_task")
        if finished
    }


def reference_row(per_seed: Sequence[Mapping[str, float | None]]) -> Row:
    """What models reach that no variant trains, from the figures of each seed."""
    names = per_seed[0]
    return {
        "n": len(per_seed),
        "failed": 0,
        "figures": {name: mean_and_std([of[name] for of in per_seed]) for name in names},
    }


def figures(results: dict, evaluation: str) -> dict[str, float | None]:
    """The figures of one run on one evaluation, in the units of results.json.

    AC, AA, ACA, BC and FC are of the main metric, and so are, in percent, "across", the accuracy
    across replacements, "old_galleries" and "own", the last model's in its own gallery; every other
    metric is there by its AA.
    """
    found = results["evaluations"][evaluation]
    matrix = found["matrix"]
    across = compatibility.accuracy_across_replacements(matrix, results["replacements"])
    figures = {
        "ac": found["ac"],
        "aa": found["aa"],
        "across": finite(across),
        "old_galleries": finite(compatibility.accuracy_on_old_galleries(matrix)),
        "own": compatibility.accuracy_on_own_gallery(matrix),
        **{name: found[name] for name in ("aca", "bc", "fc")},
        **{metric: summary["aa"] for metric, summary in found["metrics"].items()},
    }
    if accuracies := results.get("task_accuracy"):
        figures["final_accuracy"] = accuracies[-1]
    return figures


def difference_row(row: Row, base: Row) -> Row:
    """A row less another, seed by seed: mean and std of the differences over the seeds of both.

    What a comparison says of two variants: seeds, and external models with them, differ more than
    variants do, and that is in both.
    """
    figures = {
        name: mean_and_std(
            [
                None if None in (value, of_base) else value - of_base
                for value, of_base in zip(
                    figure["values"], base["figures"][name]["values"], strict=True
                )
            ]
        )
        for name, figure in row["figures"].items()
        if name in base["figures"]
    }
    there = [value is not None for value in figures["aa"]["values"]] if figures else []
    return {"n": sum(there), "failed": row["failed"], "figures": figures}


def text_cells(header: str, rows: Mapping[str, Row], *, signed: bool = False) -> list[list[str]]:
    """The table as text: titles, `header` the first of them, then a line for each row by its label.

    With `signed` figures are differences, which have a sign.
    """
    names = _figure_names(rows)
    lines = [[header, "n", *(_column(name).title for name in names)]]
    for label, row in rows.items():
        count = f"{row['n']}, {row['failed']} failed" if row["failed"] else str(row["n"])
        lines.append([label, count, *(_text(name, row, signed) for name in names)])
    return lines


def csv_cells(header: str, rows: Mapping[str, Row]) -> list[list[Any]]:
    """The table unrounded: mean and std of each figure in the units of results.json, or None."""
    names, parts = _figure_names(rows), ("mean", "std")
    lines = [[header, "n", "failed", *(f"{name}_{part}" for name in names for part in parts)]]
    for label, row in rows.items():
        found = (row["figures"].get(name, {}) for name in names)
        values = (figure.get(part) for figure in found for part in parts)
        lines.append([label, row["n"], row["failed"], *values])
    return lines


def _figure_names(rows: Mapping[str, Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows.values() for name in row["figures"])
    if not names:  # nothing is finished; the table says so in the usual columns
        return list(_COLUMNS)
    # The last column stays the last, whichever metrics come before it.
    return sorted(names, key="final_accuracy".__eq__)


def _column(name: str) -> Column:
    return _COLUMNS.get(name) or Column(f"{name.replace('_', ' ')} %")


def _text(name: str, row: Row, signed: bool) -> str:
    figure = row["figures"].get(name)
    if figure is None or figure["mean"] is None:
        return "failed" if row["failed"] and not row["n"] else "-"
    return _column(name).text(figure, signed=signed)
