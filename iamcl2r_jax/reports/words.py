"""What a compatibility matrix means, in words; one text for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from iamcl2r_jax import retrieval


def of_pairs(figures: Mapping[str, Any]) -> list[str]:
    """The newest model in the oldest gallery, and how many pairs are compatible."""
    matrix, last = figures["matrix"], len(figures["matrix"]) - 1
    if not last:
        return ["One model alone: there is no pair to compare"]
    find, found = retrieval.METRICS[figures["metric"]].verbs
    pairs = last * (last + 1) // 2
    missed = pairs - round(figures["ac"] * pairs)
    near = f", {figures['near_misses']} of them by less than a point" if missed else ""
    return [
        f"Queries of model {last + 1} {find} {100 * matrix[last][0]:.1f} % in the gallery of model "
        f"1, which itself {found} {100 * matrix[0][0]:.1f} %: {of_gain(figures, last, 0)}",
        f"{pairs - missed} of {pairs} pairs of models are compatible; {missed} missed it{near}",
    ]


def of_gain(figures: Mapping[str, Any], new: int, old: int) -> str:
    """C[new, old] - C[old, old] with its interval, in points."""
    matrix = figures["matrix"]
    gain = matrix[new][old] - matrix[old][old]
    return f"{points(gain, figures['gain_intervals'][new][old])} points"


def of_queries_in_gallery(count: int) -> str:
    """A warning where queries find themselves; empty where none does."""
    return f"{count:,} queries are images of the gallery too, and find themselves" if count else ""


def points(value: float, interval: Sequence[float]) -> str:
    """A difference of accuracies and its interval in percentage points."""
    low, high = (100 * end for end in interval)
    return f"{100 * value:+.1f} [{low:+.1f}, {high:+.1f}]"


def printable(text: str) -> str:
    """A text that UTF-8 can hold: of names of files that were in another encoding, too."""
    return text.encode(errors="backslashreplace").decode()
