"""The results of a run, for a person."""

import os

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iamcl2r_jax import compatibility


def print_results(results: dict, workdir: str, console: Console | None = None) -> None:
    """Prints the compatibility matrices, AC and AA, and where the results are."""
    console = console or Console(highlight=False)
    for name, evaluation in results["evaluations"].items():
        console.print()
        console.print(_matrix_table(name, evaluation, results["replacements"]))
        console.print(
            f"{name}: AC {evaluation['ac']:.3f}   AA {evaluation['aa']:.2f} %   "
            + "   ".join(
                f"{reference.replace('_', ' ')} model alone {value:.2f} %"
                for reference, value in results["references"][name].items()
            ),
            soft_wrap=True,
        )
    console.print()
    accuracies = "  ".join(f"{accuracy:.1%}" for accuracy in results["task_accuracy"])
    console.print(f"accuracy on the classes seen so far, after each task: {accuracies}")
    seconds = results["seconds"]
    console.print("seconds: " + "  ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    console.print(f"results: {os.path.join(workdir, 'results.json')}", soft_wrap=True)


def _matrix_table(name: str, evaluation: dict, replacements: list[int]) -> Table:
    matrix = np.asarray(evaluation["matrix"], float)
    compatible = compatibility.is_compatible(matrix)
    table = Table(
        title=f"{name}, {evaluation['measure'].replace('_', ' ')}, %: "
        "query model (row) against gallery of an earlier model (column)",
        caption="* model replaced at this task   ✗ not above the old model on its own gallery",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("task")
    for task in range(len(matrix)):
        table.add_column(_task(task, replacements), justify="right")
    for task, row in enumerate(matrix):
        cells = [
            _cell(value, incompatible=k < task and not compatible[task, k])
            for k, value in enumerate(row[: task + 1])
        ]
        table.add_row(_task(task, replacements), *cells)
    return table


def _task(task: int, replacements: list[int]) -> str:
    return f"{task + 1}{'*' if task in replacements else ''}"


def _cell(value: float, incompatible: bool) -> Text:
    text = f"{100 * value:.1f}"
    return Text(f"✗ {text}", style="red") if incompatible else Text(text)
