"""Charts of a page, as coordinates in a box that templates/charts.html draws as SVG."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from iamcl2r_jax.reports.colours import COLOURS
from iamcl2r_jax.reports.projections import FeatureView
from iamcl2r_jax.training.schedule import PLAIN, Schedule

_MOST_DOTTED = 40  # points of a line up to which each is marked, with its value on hover
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a chart lies in its drawing, in SVG's units, y downwards."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


LINES = Box(width=560, height=300, left=52, right=548, top=10, bottom=256)
PLANE = Box(width=420, height=420, left=10, right=410, top=10, bottom=410)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line: its colour and dashes, all points as SVG's `points`, and dots (x, y, text)."""

    name: str
    colour: str
    dashes: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclasses.dataclass(frozen=True)
class LineChart:
    """Lines over 1, 2, …, with ticks (place, label) and verticals (x, kind)."""

    box: Box
    xlabel: str
    ylabel: str
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    verticals: list[tuple[float, str]]
    lines: list[Line]


def line_chart(
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    schedule: Schedule = PLAIN,
    boundaries: Sequence[int] = (),
) -> LineChart:
    """Lines over tasks 1 … T or epochs, with a vertical where a model was not simply trained on.

    Args:
      values: of each line, finite, by its name; all of one length.
      xlabel: what is counted from 1.
      ylabel: quantity and unit.
      schedule: 0-based positions to mark as "replaced" and "retrained".
      boundaries: 0-based positions of "task" verticals, where a task begins among epochs.
    """
    box, count = LINES, max(map(len, values.values()))
    every = np.concatenate([np.asarray(line, float) for line in values.values()])
    low, high = every.min(), every.max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin

    def x(position: float) -> float:
        share = (position - 0.5) / count
        return round(box.left + share * (box.right - box.left), 1)

    def y(value: float) -> float:
        return round(box.bottom - (value - low) / (high - low) * (box.bottom - box.top), 1)

    steps = [int(step) for step in ticks(1, count, 12) if step.is_integer()]
    kinds = {"task": boundaries, "retrained": schedule.retrained, "replaced": schedule.replaced}
    lines = []
    for number, (name, line) in enumerate(values.items()):
        places = [(x(at), y(value)) for at, value in enumerate(line, start=1)]
        lines.append(
            Line(
                name=name,
                colour=COLOURS[number % len(COLOURS)],
                dashes=_DASHES[number // len(COLOURS) % len(_DASHES)],
                points=" ".join(f"{across:g},{down:g}" for across, down in places),
                dots=[
                    (*place, f"{name}, {xlabel} {at}: {value:.4g}")
                    for at, (place, value) in enumerate(zip(places, line, strict=True), start=1)
                    if count <= _MOST_DOTTED
                ],
            )
        )
    return LineChart(
        box,
        xlabel,
        ylabel,
        xticks=[(x(step), str(step)) for step in steps],
        yticks=[(y(value), f"{value:g}".replace("-", "−")) for value in ticks(low, high, 6)],
        verticals=[(x(at + 1), kind) for kind, places in kinds.items() for at in places],
        lines=lines,
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers at equal distances within low and high, low < high: at most `most` + 1."""
    if high <= low:
        return [float(low)]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * number:.12g}") for number in range(first, last + 1)]


@dataclasses.dataclass(frozen=True)
class PlaneChart:
    """Points in the plane of three classes, with the classifier's vectors as stars.

    Attributes:
      box: where the chart lies.
      stars: places of the vectors.
      names: place, text and colour of each class's name.
      groups: features, of each model.
    """

    box: Box
    stars: list[tuple[float, float]]
    names: list[tuple[float, float, str, str]]
    groups: list["Points"]


@dataclasses.dataclass(frozen=True)
class Points:
    """Features of one model: places and colours, drawn hollow or filled."""

    model: str
    filled: bool
    places: list[tuple[float, float, str]]


def plane_chart(view: FeatureView, names: Sequence[str]) -> PlaneChart:
    """Features of some models around the vectors of three classes, whose names are given."""
    box = PLANE
    shown = np.concatenate([1.3 * view.vertices, *view.features.values()])
    middle = (shown.min(axis=0) + shown.max(axis=0)) / 2
    scale = (box.right - box.left) / np.ptp(shown, axis=0).max()

    def place(point) -> tuple[float, float]:
        across, up = (np.asarray(point) - middle) * scale
        return round(box.width / 2 + across, 1), round(box.height / 2 - up, 1)

    return PlaneChart(
        box,
        stars=[place(vertex) for vertex in view.vertices],
        names=[
            (*place(1.15 * vertex), name, colour)
            for vertex, name, colour in zip(view.vertices, names, COLOURS, strict=False)
        ],
        groups=[
            Points(
                model,
                filled=number % 2 == 1,
                places=[
                    (*place(point), COLOURS[cls])
                    for point, cls in zip(points, view.labels, strict=True)
                ],
            )
            for number, (model, points) in enumerate(view.features.items())
        ],
    )
