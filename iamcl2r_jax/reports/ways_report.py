"""The ways to upgrade and the advice, for a person."""

from typing import Any

from rich.console import Console

from iamcl2r_jax import retrieval
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.reports.tables import markdown
from iamcl2r_jax.reports.words import points
from iamcl2r_jax.system.progress import print_text

_APPLIED_TO = {maps.QUERIES: "queries → old", maps.GALLERY: "gallery → new", None: ""}
_MIB = 2**20


def show(results: dict[str, Any], console: Console) -> None:
    """Prints what `from_features.compare` found."""
    print_text(console, "")
    for number, table in enumerate(results["features"], start=1):
        print_text(console, f"model {number}: {table['name']}, features of width {table['width']}")
    for role in ("gallery", "query"):
        found = results[role]
        print_text(console, f"{role}: {found['rows']:,} rows of {found['classes']:,} classes")
    if results["queries_without_class"]:
        print_text(
            console,
            f"{results['queries_without_class']:,} queries are of classes that the gallery lacks; "
            "they count as wrong",
        )
    if results["pairs"]:
        print_text(
            console, f"maps are fitted on up to {results['pairs']:,} pairs, none of them searched"
        )
    show_upgrades(results["upgrades"], results, console, ways=True)
    if "ac" in results and len(results["features"]) > 2:
        print_text(console, f"\nas they are: AC {results['ac']:.3f}   AA {results['aa']:.2f} %")


def show_upgrades(
    upgrades: list[dict[str, Any]], results: dict[str, Any], console: Console, *, ways: bool
) -> None:
    """Prints the advice on each upgrade, and its ways if these are asked for.

    Args:
      upgrades: see `advice.advise_all`.
      results: has `metric` and `confidence`.
      console: where to.
      ways: whether to print them.
    """
    title = retrieval.METRICS[results["metric"]].title
    for upgrade in upgrades:
        which = f"model {upgrade['old'] + 1} → {upgrade['new'] + 1}"
        advice = upgrade["advice"]
        if ways:
            print_text(
                console,
                f"\n{which}: {title} of {100 * upgrade['before']:.1f} % before; in percentage "
                f"points, with {100 * results['confidence']:.0f} % intervals over the queries",
            )
            print_text(console, markdown(_table(upgrade, title)))
        judged = ""
        if any(way["map"] for way in upgrade["ways"]):
            judged = f", by the {advice['queries']:,} queries that did not choose the map"
        print_text(console, f"advice, {which}{judged}: {' '.join(advice['text'])}")


def _table(upgrade: dict[str, Any], title: str) -> list[tuple[str, ...]]:
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
                points(way["gain"], way["gain_interval"]),
                "yes" if way["compatible"] else "no",
                points(way["reindexing_gain"], way["reindexing_interval"]),
                f"{way['fit_seconds']:.2f}" if way["map"] else "",
                f"{1e6 * way['query_seconds']:.0f}" if way["query_seconds"] else "",
                f"{way['map_bytes'] / _MIB:.2f}" if way["map"] else "",
                f"{way['gallery_bytes'] / _MIB:.1f}" if way["gallery_bytes"] else "",
            )
        )
    return lines
