"""Pictures of a report that show images and features, as matplotlib figures."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iamcl2r_jax.reports.plots import COLOURS, RIGHT, WRONG, default_style
from iamcl2r_jax.reports.projections import FeatureView
from iamcl2r_jax.reports.retrieval_strip import Strip


@default_style()
def retrieval_strip(strip: Strip) -> Figure:
    """A row for each query: its image, then the nearest gallery images, right and wrong marked."""
    queries, found = strip.right.shape
    side = max(96, strip.query_images.shape[1])  # pixels; a viewer that smooths must not blur
    down, gap, head, foot = 1.45 * side, 0.3 * side, 0.4 * side, 0.45 * side
    left = np.arange(found + 1) * 1.14 * side + gap * (np.arange(found + 1) > 0)
    width, height = left[-1] + side, (queries - 1) * down + side
    canvas = np.full((math.ceil(height), math.ceil(width), 3), 255, np.uint8)
    inches = 0.58 / side
    total = head + height + foot
    figure = Figure(figsize=(inches * (width + 0.2 * side), inches * total))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    frames, colours = [], []
    for row in range(queries):
        names = [strip.query_classes[row], *strip.nearest_classes[row]]
        images = [strip.query_images[row], *strip.nearest_images[row]]
        for column, (name, image) in enumerate(zip(names, images, strict=True)):
            x, y = left[column], row * down
            canvas[_span(y, side), _span(x, side)] = _enlarged(image, side)
            mark, colour = "", "black"
            if column:
                right = strip.right[row, column - 1]
                mark, colour = ("✓ ", RIGHT) if right else ("✗ ", WRONG)
            frames.append(((x, y), (x + side, y), (x + side, y + side), (x, y + side)))
            colours.append(colour)
            below = {"ha": "center", "va": "top", "fontsize": 8, "color": colour}
            axes.text(
                x + side / 2, y + 1.06 * side, mark + _shortened(name, 8), parse_math=False, **below
            )
    squares = PolyCollection(frames, facecolor="none", edgecolor=colours, linewidth=1.8)
    axes.add_collection(squares, autolim=False)  # one artist, as a patch each would take longer
    above = {"y": -0.08 * side, "ha": "left", "va": "bottom", "fontsize": 9}
    axes.text(0, s="query", **above)
    axes.text(left[1], s="nearest first", **above)
    axes.imshow(
        canvas, extent=(0, canvas.shape[1], canvas.shape[0], 0), interpolation="none", aspect="auto"
    )
    axes.set_xlim(-0.1 * side, width + 0.1 * side)
    axes.set_ylim(height + foot, -head)
    return figure


@default_style()
def feature_view(view: FeatureView, names: Sequence[str]) -> Figure:
    """Features of some models in the plane of three classes, and the classifier's vectors there.

    Args:
      view: what to show.
      names: of the three classes.
    """
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*view.vertices[[0, 1, 2, 0]].T, color="0.75", linewidth=1, zorder=0)
    axes.plot(*view.vertices.T, "k*", markersize=12, zorder=3)
    legend = [Line2D([], [], color="black", marker="*", linestyle="", label="classifier")]
    for number, (model, points) in enumerate(view.features.items()):
        filled, marker = number % 2 == 1, "o^sD"[number % 4]
        for cls in range(3):
            axes.plot(
                *points[view.labels == cls].T,
                marker,
                color=COLOURS[cls],
                markerfacecolor=COLOURS[cls] if filled else "none",
                markersize=4.5,
                markeredgewidth=0.8,
                alpha=0.75,
            )
        face = {"color": "0.35", "markerfacecolor": "0.35" if filled else "none"}
        legend.append(Line2D([], [], marker=marker, linestyle="", label=model, **face))
    for cls, name in enumerate(names):
        axes.text(
            *(1.15 * view.vertices[cls]),
            _shortened(name),
            color=COLOURS[cls],
            ha="center",
            va="center",
            fontweight="bold",
            parse_math=False,
        )
    axes.set_aspect("equal")
    shown = np.concatenate([1.3 * view.vertices, *view.features.values()])
    (left, bottom), (right, top) = shown.min(axis=0), shown.max(axis=0)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.legend(handles=legend, fontsize=8, frameon=False, ncols=len(legend), loc="upper center",
                bbox_to_anchor=(0.5, -0.08))  # fmt: skip
    return figure


def _span(start: float, length: int) -> slice:
    return slice(round(start), round(start) + length)


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """The image [H, W, 3] at [side, side, 3], each pixel a block of its own."""
    nearest = np.arange(side) * len(image) // side
    return image[nearest][:, nearest]


def _shortened(name: str, length: int = 9) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
