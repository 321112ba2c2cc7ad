"""The ways to upgrade and the advice, for a person."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iamcl2r_jax import retrieval
from iamcl2r_jax.evaluation import maps, ways

_APPLIED_TO = {maps.QUERIES: "queries → old", maps.GALLERY: "gallery → new", None: ""}
_MIB = 2**20


def show(results: dict[str, Any], console: Console) -> None:
    """Prints what `from_features.compare` found."""
    console.print()
    for number, table in enumerate(results["features"], start=1):
        _line(console, f"model {number}: {table['name']}, features of width {table['width']}")
    for role in ("gallery", "query"):
        found = results[role]
        _line(console, f"{role}: {found['rows']:,} rows of {found['classes']:,} classes")
    if results["queries_without_class"]:
        _line(
            console,
            f"{results['queries_without_class']:,} queries are of classes that the gallery lacks; "
            "they count as wrong",
        )
    if results["pairs"]:
        _line(
            console, f"maps are fitted on up to {results['pairs']:,} pairs, none of them searched"
        )
    show_upgrades(results["upgrades"], results, console)
    if "ac" in results and len(results["features"]) > 2:
        _line(console, f"\nas they are: AC {results['ac']:.3f}   AA {results['aa']:.2f} %")


def show_upgrades(
    upgrades: list[dict[str, Any]], results: dict[str, Any], console: Console
) -> None:
    """Prints the ways of each upgrade, and the advice; `results` names metric and confidence."""
    title = retrieval.METRICS[results["metric"]].title
    for upgrade in upgrades:
        _line(
            console,
            f"\nmodel {upgrade['old'] + 1} → {upgrade['new'] + 1}: {title} of "
            f"{100 * upgrade['before']:.1f} % before; in percentage points, with "
            f"{100 * results['confidence']:.0f} % intervals over the queries",
        )
        console.print(_table(upgrade, title))
        advice = upgrade["advice"]
        if any(way["kind"] == ways.MAP for way in upgrade["ways"]):
            _line(console, f"advice, by the {advice['queries']:,} queries that chose no map:")
        _line(console, " ".join(advice["text"]))


def _table(upgrade: dict[str, Any], title: str) -> Table:
    table = Table("way", "applied to")
    for column in (
        "pairs",
        f"{title} %",
        "gain",
        "re-embedding adds",
        "fit s",
        "µs a query",
        "map MiB",
        "gallery MiB",
    ):
        table.add_column(column, justify="right")
    for way in upgrade["ways"]:
        table.add_row(
            way["map"] or way["kind"],
            _APPLIED_TO[way["direction"]],
            f"{way['pairs']:,}" if way["pairs"] else "",
            f"{100 * way['value']:.1f}",
            Text(
                points(way["gain"], way["gain_interval"]),
                style="" if way["compatible"] else "red",
            ),
            points(way["reindexing_gain"], way["reindexing_interval"]),
            f"{way['fit_seconds']:.2f}" if way["map"] else "",
            f"{1e6 * way['query_seconds']:.0f}" if way["query_seconds"] else "",
            f"{way['map_bytes'] / _MIB:.2f}" if way["map"] else "",
            f"{way['gallery_bytes'] / _MIB:.1f}" if way["gallery_bytes"] else "",
        )
    return table


def points(value: float, interval: list[float]) -> str:
    """A difference and its interval, in percentage points."""
    low, high = (100 * end for end in interval)
    return f"{100 * value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
