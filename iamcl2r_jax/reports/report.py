"""The results of a run or of a comparison of models, for a person at a terminal or in a log."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from iamcl2r_jax import compatibility, retrieval
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.reports import words
from iamcl2r_jax.reports.tables import markdown
from iamcl2r_jax.system.progress import plain_console, print_text
from iamcl2r_jax.training.runs import REPORT
from iamcl2r_jax.training.schedule import PLAIN, Schedule

_MOST_COLUMNS = 12  # models up to which a matrix is printed whole
_APPLIED_TO = {maps.QUERIES: "queries → old", maps.GALLERY: "gallery → new", None: ""}
_MIB = 2**20


def print_results(results: Mapping[str, Any], workdir: str, console: Console | None = None) -> None:
    """Prints the compatibility matrices, AC and AA, and where the results are."""
    console = console or plain_console()
    schedule = Schedule.of_results(results)
    print_evaluations(results["evaluations"], schedule, console, results["references"])
    if results.get("fixed_schedule"):
        print_text(console, f"the same run as a fixed schedule: {results['fixed_schedule']}")
    accuracies = "  ".join(f"{accuracy:.1%}" for accuracy in results["task_accuracy"])
    print_text(
        console,
        "accuracy on held-out images of the classes seen so far, among all that the classifier "
        f"knows, after each task: {accuracies}",
    )
    seconds = results["seconds"]
    stages = "  ".join(
        f"{name} {value:.0f}" for name, value in seconds.items() if name not in ("compile", "total")
    )
    print_text(
        console,
        f"seconds: {stages}  total {seconds['total']:.0f}, of which compiling "
        f"{seconds['compile']:.0f}",
    )
    print_text(console, f"results: {os.path.join(workdir, 'results.json')}")
    page = os.path.join(workdir, REPORT)
    if os.path.exists(page):
        print_text(console, f"report: {page}")


def print_seeds(summary: Mapping[str, Any], workdir: str, console: Console | None = None) -> None:
    """Prints AC and AA over the seeds of an experiment, see `seeds.summary`, and where they are."""
    console = console or plain_console()
    seeds = ", ".join(map(str, summary["seeds"]))
    for name, figures in summary["evaluations"].items():
        ac, aa = figures["ac"], figures["aa"]
        print_text(
            console,
            f"{name}: AC {ac['mean']:.3f} ± {ac['std']:.3f}   AA {aa['mean']:.2f} ± "
            f"{aa['std']:.2f} %   mean and std over seeds {seeds}",
        )
    print_text(console, f"results: {os.path.join(workdir, 'results.json')}, of each in seed*/")


def print_evaluations(
    evaluations: Mapping[str, Any],
    schedule: Schedule,
    console: Console,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Prints the compatibility matrices of a run, with AC, AA and what reference models reach."""
    for name, evaluation in evaluations.items():
        _print_matrix(console, name, evaluation, schedule)
        figures = [f"{name}: AC {evaluation['ac']:.3f}", f"AA {evaluation['aa']:.2f} %"]
        across = compatibility.accuracy_across_replacements(evaluation["matrix"], schedule.replaced)
        if np.isfinite(across):
            figures.append(f"across replacements {across:.2f} %")
        figures += [
            f"{reference.replace('_', ' ')} model alone {value:.2f} %"
            for reference, value in (references or {}).get(name, {}).items()
        ]
        print_text(console, "   ".join(figures))
        _print_words(console, evaluation)
    print_text(console, "")


def print_upgrades(results: Mapping[str, Any], console: Console) -> None:
    """Prints the matrix of the compared models and what is to be said of each upgrade."""
    print_text(console, "")
    for number, model in enumerate(results["models"], start=1):
        print_text(console, f"model {number}: {model['path']} ({model['backbone']})")
    for role in ("gallery", "query"):
        said = "{}: split {split} of {dataset}, {images:,} images of {classes} classes"
        print_text(console, said.format(role, **results[role]))
    _print_queries_without_class(console, results)
    _print_matrix(console, "matrix", results, PLAIN, header="model")
    print_text(console, f"AC {results['ac']:.3f}   AA {results['aa']:.2f} %")
    _print_words(console, results)
    upgrades = results["upgrades"]
    print_text(
        console,
        "\nupgrades, in percentage points, with "
        f"{100 * results['confidence']:.0f} % intervals over the queries\n"
        f"{markdown([('old → new', 'compatible', 'gain', 're-indexing'), *_upgrades(upgrades)])}"
        "gain: new queries in place of old ones, on the old gallery\n"
        "re-indexing: what embedding the gallery again would add to that",
    )
    wrong = sum(not upgrade["compatible"] for upgrade in upgrades)
    count = f"{wrong} of {len(upgrades)} upgrades not compatible"
    print_text(console, count if wrong else "every upgrade is compatible")


def print_features(results: dict[str, Any], console: Console) -> None:
    """Prints what `from_features.compare` found."""
    print_text(console, "")
    for number, table in enumerate(results["features"], start=1):
        print_text(console, f"model {number}: {table['name']}, features of width {table['width']}")
    for role in ("gallery", "query"):
        found = results[role]
        print_text(console, f"{role}: {found['rows']:,} rows of {found['classes']:,} classes")
    _print_queries_without_class(console, results)
    if results["pairs"]:
        print_text(
            console, f"maps are fitted on up to {results['pairs']:,} pairs, none of them searched"
        )
    print_advice(results, console, ways=True)
    if "ac" in results and len(results["features"]) > 2:
        print_text(console, f"\nas they are: AC {results['ac']:.3f}   AA {results['aa']:.2f} %")


def print_advice(results: dict[str, Any], console: Console, *, ways: bool) -> None:
    """Prints the advice on each upgrade, see `advice.advise_all`, and with `ways` its ways."""
    title = retrieval.METRICS[results["metric"]].title
    for upgrade in results["upgrades"]:
        which = f"model {upgrade['old'] + 1} → {upgrade['new'] + 1}"
        advice = upgrade["advice"]
        if ways:
            print_text(
                console,
                f"\n{which}: {title} of {100 * upgrade['before']:.1f} % before; in percentage "
                f"points, with {100 * results['confidence']:.0f} % intervals over the queries",
            )
            print_text(console, markdown(_ways(upgrade, title)))
        judged = ""
        if any(way["map"] for way in upgrade["ways"]):
            judged = f", by the {advice['queries']:,} queries that did not choose the map"
        print_text(console, f"advice, {which}{judged}: {' '.join(advice['text'])}")


def _ways(upgrade: dict[str, Any], title: str) -> list[tuple[str, ...]]:
    lines = [
        (
            *("way", "applied to", "pairs", f"{title} %", "gain", "compatible"),
            *("re-embedding adds", "fit s", "µs a query", "map MiB", "gallery MiB"),
        )
    ]
    for way in upgrade["ways"]:
        lines.append(
            (
                way["map"] or way["kind"],
                _APPLIED_TO[way["direction"]],
                f"{way['pairs']:,}" if way["pairs"] else "",
                f"{100 * way['value']:.1f}",
                words.points(way["gain"], way["gain_interval"]),
                "yes" if way["compatible"] else "no",
                words.points(way["reindexing_gain"], way["reindexing_interval"]),
                f"{way['fit_seconds']:.2f}" if way["map"] else "",
                f"{1e6 * way['query_seconds']:.0f}" if way["query_seconds"] else "",
                f"{way['map_bytes'] / _MIB:.2f}" if way["map"] else "",
                f"{way['gallery_bytes'] / _MIB:.1f}" if way["gallery_bytes"] else "",
            )
        )
    return lines


def _upgrades(upgrades: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for upgrade in upgrades:
        yield (
            f"{upgrade['old'] + 1} → {upgrade['new'] + 1}",
            "yes" if upgrade["compatible"] else "no",
            words.points(upgrade["gain"], upgrade["gain_interval"]),
            words.points(upgrade["reindexing_gain"], upgrade["reindexing_interval"]),
        )


def _print_queries_without_class(console: Console, results: Mapping[str, Any]) -> None:
    if count := results["queries_without_class"]:
        print_text(
            console,
            f"{count:,} queries are of classes that the gallery lacks; they count as wrong",
        )


def _print_words(console: Console, evaluation: Mapping[str, Any]) -> None:
    warning = words.of_queries_in_gallery(evaluation["queries_in_gallery"])
    for line in (*words.of_pairs(evaluation), *([warning] if warning else [])):
        print_text(console, line)


def _print_matrix(
    console: Console,
    name: str,
    evaluation: Mapping[str, Any],
    schedule: Schedule,
    header: str = "task",
) -> None:
    values = 100 * np.asarray(evaluation["matrix"], float)
    compatible = compatibility.is_compatible(values / 100)
    cross = "✗" if console.encoding.startswith("utf") else "x"
    title = f"\n{name}, {retrieval.METRICS[evaluation['metric']].title}, %: "
    if len(values) <= _MOST_COLUMNS:
        title += "query model (row) against gallery of an earlier model (column)"
        lines = _matrix(values, compatible, schedule, cross)
        marks = f"{cross} not above the old model on its own gallery"
    else:
        title += "galleries of the models, searched by the newest"
        lines = _galleries(values, compatible, evaluation, schedule)
        marks = "whole matrix: results.json and the report"
    if schedule.retrained:
        marks = f"+ retrained at this task   {marks}"
    if schedule.replaced:
        marks = f"* model replaced at this task   {marks}"
    (_, *titles), *rows = lines
    print_text(console, f"{title}\n{markdown([[header, *titles], *rows])}{marks}")


def _matrix(values, compatible, schedule: Schedule, cross: str) -> Iterator[Sequence[str]]:
    labels = list(map(schedule.label, range(len(values))))
    yield "", *labels
    for t, label in enumerate(labels):
        cells = [
            f"{'' if k == t or compatible[t, k] else f'{cross} '}{values[t, k]:.1f}"
            for k in range(t + 1)
        ]
        yield label, *cells, *[""] * (len(labels) - len(cells))


def _galleries(values, compatible, evaluation, schedule: Schedule) -> Iterator[Sequence[str]]:
    yield "", "itself", "newest", "difference [95 %]", "compatible models"
    last = len(values) - 1
    for k in range(len(values)):
        difference = "" if k == last else words.of_gain(evaluation, last, k).removesuffix(" points")
        yield (
            schedule.label(k),
            f"{values[k, k]:.1f}",
            f"{values[last, k]:.1f}",
            difference,
            "" if k == last else f"{compatible[k + 1 :, k].sum()} of {last - k}",
        )
