"""The results of a run or of a comparison of models, for a person."""

import os
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iamcl2r_jax import compatibility, retrieval
from iamcl2r_jax.reports import html_report


def print_results(results: dict, workdir: str, console: Console | None = None) -> None:
    """Prints the compatibility matrices, AC and AA, and where the results are."""
    console = console or Console(highlight=False)
    print_evaluations(
        results["evaluations"],
        results["replacements"],
        console,
        results["references"],
        results.get("retrained", []),
    )
    if results.get("fixed_schedule"):
        console.print(
            f"the same run as a fixed schedule: {results['fixed_schedule']}",
            markup=False,
            soft_wrap=True,
        )
    accuracies = "  ".join(f"{accuracy:.1%}" for accuracy in results["task_accuracy"])
    console.print(
        "accuracy on held-out images of the classes seen so far, among all that the classifier "
        f"knows, after each task: {accuracies}",
        soft_wrap=True,
    )
    seconds = results["seconds"]
    stages = "  ".join(
        f"{name} {value:.0f}" for name, value in seconds.items() if name not in ("compile", "total")
    )
    console.print(
        f"seconds: {stages}  total {seconds['total']:.0f}, of which compiling "
        f"{seconds['compile']:.0f}",
        soft_wrap=True,
    )
    console.print(f"results: {os.path.join(workdir, 'results.json')}", soft_wrap=True)
    page = os.path.join(workdir, html_report.FILE)
    if os.path.exists(page):
        console.print(f"report: {page}", soft_wrap=True)


def print_seeds(summary: dict, workdir: str, console: Console | None = None) -> None:
    """Prints AC and AA over the seeds of an experiment, see `seeds.summary`, and where they are."""
    console = console or Console(highlight=False)
    seeds = ", ".join(map(str, summary["seeds"]))
    for name, figures in summary["evaluations"].items():
        ac, aa = figures["ac"], figures["aa"]
        _print_line(
            console,
            f"{name}: AC {ac['mean']:.3f} ± {ac['deviation']:.3f}   AA {aa['mean']:.2f} ± "
            f"{aa['deviation']:.2f} %   mean and deviation over seeds {seeds}",
        )
    _print_line(console, f"results: {os.path.join(workdir, 'results.json')}, of each in seed*/")


def print_evaluations(
    evaluations: dict,
    replacements: list[int],
    console: Console,
    references: dict[str, dict[str, float]] | None = None,
    retrained: Sequence[int] = (),
) -> None:
    """Prints the compatibility matrices of a run, with AC, AA and what reference models reach."""
    for name, evaluation in evaluations.items():
        _print_matrix(console, name, evaluation, replacements, retrained)
        figures = [f"{name}: AC {evaluation['ac']:.3f}", f"AA {evaluation['aa']:.2f} %"]
        across = compatibility.accuracy_across_replacements(evaluation["matrix"], replacements)
        if np.isfinite(across):
            figures.append(f"across replacements {across:.2f} %")
        figures += [
            f"{reference.replace('_', ' ')} model alone {value:.2f} %"
            for reference, value in (references or {}).get(name, {}).items()
        ]
        _print_line(console, "   ".join(figures))
        _print_line(console, pairs_in_words(evaluation))
        if evaluation["queries_in_gallery"]:
            _print_line(console, queries_in_gallery(evaluation["queries_in_gallery"]))
    console.print()


def pairs_in_words(figures: dict) -> str:
    """What a matrix says of the oldest gallery, and how many pairs are compatible.

    Args:
      figures: the main metric of an evaluation, as in results.json.
    """
    matrix, metric = figures["matrix"], retrieval.METRICS[figures["metric"]]
    last = len(matrix) - 1
    if not last:
        return "one model: no pair to compare"
    now, then = metric.verbs
    low, high = figures["gain_intervals"][last][0]
    pairs = last * (last + 1) // 2
    compatible = round(figures["ac"] * pairs)
    return (
        f"queries of model {last + 1} {now} {100 * matrix[last][0]:.1f} % in the gallery of model "
        f"1, which itself {then} {100 * matrix[0][0]:.1f} %: "
        f"{_points(matrix[last][0] - matrix[0][0], [low, high])} points\n"
        f"{compatible} of {pairs} pairs of models are compatible; {figures['near_misses']} others "
        "missed by less than a point"
    )


def queries_in_gallery(count: int) -> str:
    """A warning about queries that find themselves."""
    return f"{count:,} queries are images of the gallery too, where they find themselves"


def print_upgrades(results: dict, console: Console) -> None:
    """Prints the matrix of the compared models and what is to be said of each upgrade."""
    console.print()
    for number, model in enumerate(results["models"], start=1):
        _print_line(console, f"model {number}: {model['path']} ({model['backbone']})")
    for role in ("gallery", "query"):
        said = "{}: split {split} of {dataset}, {images:,} images of {classes} classes"
        _print_line(console, said.format(role, **results[role]))
    if results["queries_without_class"]:
        _print_line(
            console,
            f"{results['queries_without_class']:,} queries are of classes that the gallery lacks; "
            "they count as wrong",
        )
    if results["queries_in_gallery"]:
        _print_line(console, queries_in_gallery(results["queries_in_gallery"]))
    _print_matrix(console, "matrix", results, [], [], header="model")
    _print_line(console, f"AC {results['ac']:.3f}   AA {results['aa']:.2f} %")
    _print_line(console, pairs_in_words(results))
    _print_line(
        console,
        "\nupgrades, in percentage points, with "
        f"{100 * results['confidence']:.0f} % intervals over the queries",
    )
    console.print(_upgrade_table(results["upgrades"]))
    _print_line(
        console,
        "gain: new queries in place of old ones, on the old gallery\n"
        "re-indexing: what embedding the gallery anew would add to that",
    )
    wrong = sum(not upgrade["compatible"] for upgrade in results["upgrades"])
    count = f"{wrong} of {len(results['upgrades'])} upgrades not compatible"
    _print_line(console, count if wrong else "every upgrade is compatible")


def _upgrade_table(upgrades: list[dict]) -> Table:
    table = Table("old → new", "compatible")
    table.add_column("gain", justify="right")
    table.add_column("re-indexing", justify="right")
    for upgrade in upgrades:
        table.add_row(
            f"{upgrade['old'] + 1} → {upgrade['new'] + 1}",
            Text("yes") if upgrade["compatible"] else Text("✗ no", style="red"),
            Text(_points(upgrade["gain"], upgrade["gain_interval"])),
            Text(_points(upgrade["reindexing_gain"], upgrade["reindexing_interval"])),
        )
    return table


def _points(value: float, interval: list[float]) -> str:
    low, high = (100 * end for end in interval)
    return f"{100 * value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _print_matrix(
    console: Console,
    name: str,
    evaluation: dict,
    replacements: Sequence[int],
    retrained: Sequence[int],
    header: str = "task",
) -> None:
    matrix = np.asarray(evaluation["matrix"], float)
    compatible = compatibility.is_compatible(matrix)
    table = Table(header)
    for task in range(len(matrix)):
        table.add_column(_task(task, replacements, retrained), justify="right")
    for task, row in enumerate(matrix):
        cells = [
            _cell(value, incompatible=k < task and not compatible[task, k])
            for k, value in enumerate(row[: task + 1])
        ]
        table.add_row(_task(task, replacements, retrained), *cells)
    # As a title, it would be broken to the width of a small table.
    _print_line(
        console,
        f"\n{name}, {retrieval.METRICS[evaluation['metric']].title}, %: "
        "query model (row) against gallery of an earlier model (column)",
    )
    console.print(table)
    marks = "* model replaced at this task   " if replacements else ""
    marks += "+ retrained at this task   " if retrained else ""
    _print_line(console, f"{marks}✗ not above the old model on its own gallery")


def _task(task: int, replacements: Sequence[int], retrained: Sequence[int]) -> str:
    return f"{task + 1}{'*' if task in replacements else '+' if task in retrained else ''}"


def _cell(value: float, incompatible: bool) -> Text:
    text = f"{100 * value:.1f}"
    return Text(f"✗ {text}", style="red") if incompatible else Text(text)
