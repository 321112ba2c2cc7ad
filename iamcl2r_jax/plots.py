"""The figures of reports, comparisons and papers, as matplotlib figures without global state."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from iamcl2r_jax import compatibility
from iamcl2r_jax.projections import FeatureView
from iamcl2r_jax.retrieval_strip import Strip

# Okabe and Ito's colours, told apart with any colour vision; black is left to axes and marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7F7F7F")
_LINES = ("-", "--", "-.", ":")
RIGHT, WRONG = "#009E73", "#D55E00"
_BRIGHT = 0.6  # above this share of the colour map, black is read better than white
_MOST_NUMBERED = 12  # tasks up to which a matrix has a number in each cell


def heat_colours(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the cells of a heat map and of the numbers on them, as #rrggbb, shaped as values.

    The lowest finite value is darkest and the highest brightest; what is not finite is white.
    """
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    shares = Normalize(values[finite].min(), values[finite].max())(np.where(finite, values, 0))
    shares = np.ma.filled(shares, 0.0)
    cells = matplotlib.colormaps["viridis"](shares)
    cells[~finite] = 1
    colours = np.apply_along_axis(to_hex, -1, cells)
    return colours, np.where(finite & (shares <= _BRIGHT), "#ffffff", "#000000")


def heat_map(matrix, replacements: Sequence[int] = (), title: str = "") -> Figure:
    """A compatibility matrix in percent: incompatible entries hatched, replacements in bold.

    Every cell has its number; where there are too many for that, a colour bar stands for them.

    Args:
      matrix: [T, T] in [0, 1]; NaN or None above the diagonal.
      replacements: 0-based tasks at which the model was replaced.
      title: of the figure.
    """
    values = 100 * np.asarray(matrix, float)
    size = len(values)
    incompatible = np.tril(np.ones_like(values, bool), -1)
    incompatible &= ~compatibility.is_compatible(matrix)
    side = max(2.6, 0.52 * min(size, _MOST_NUMBERED) + 1.2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    lower = values[np.tril_indices(size)]
    image = axes.imshow(values, cmap="viridis", vmin=lower.min(), vmax=lower.max())
    if size <= _MOST_NUMBERED:
        cells, ink = heat_colours(values)
        for row, column in zip(*np.tril_indices(size), strict=True):
            plate = {"facecolor": cells[row, column], "edgecolor": "none", "pad": 1.0}
            axes.text(
                column,
                row,
                f"{values[row, column]:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=ink[row, column],
                bbox=plate if incompatible[row, column] else None,  # on top of the hatching
            )
    else:
        figure.colorbar(image, shrink=0.7, label="%")
    axes.add_collection(_hatched(np.argwhere(incompatible)))
    _task_ticks(axes, size, replacements)
    axes.set_xlabel("gallery of model")
    axes.set_ylabel("queries of model")
    axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def curves(
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    replacements: Sequence[int] = (),
    boundaries: Sequence[int] = (),
    deviations: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> Figure:
    """Lines over tasks 1 … T (or epochs), replacements as dotted verticals, ± deviations as bands.

    Args:
      values: of each line, by its label.
      xlabel: what is counted from 1.
      ylabel: quantity and unit.
      replacements: 0-based positions to mark.
      boundaries: 0-based positions of faint verticals, where a task begins among epochs.
      deviations: half width of the band around a line, by label.
      title: of the figure.
      labels: of the positions, where these are not numbers to count.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for position in boundaries:
        axes.axvline(position + 1, color="0.92", linewidth=1, zorder=0)
    for position in replacements:
        axes.axvline(position + 1, color="0.5", linestyle=":", linewidth=1.2, zorder=0)
    for number, (label, line) in enumerate(values.items()):
        line, at = np.asarray(line, float), np.arange(1, len(line) + 1)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            at,
            line,
            label=label,
            color=colour,
            linestyle=_LINES[number // len(COLOURS) % len(_LINES)],
            marker="o" if len(line) <= _MOST_NUMBERED else None,
            markersize=3,
        )
        if deviations and label in deviations:
            spread = np.asarray(deviations[label], float)
            axes.fill_between(at, line - spread, line + spread, color=colour, alpha=0.15, lw=0)
    if labels is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(np.arange(1, len(labels) + 1), labels)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    if len(values) > 4:
        axes.legend(
            fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3
        )
    elif len(values) > 1:
        axes.legend(fontsize=8, framealpha=0.6, loc="best", handlelength=3)
    return figure


def bars(
    values: Mapping[str, float],
    *,
    ylabel: str,
    deviations: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """One bar for each label, with ± deviations where given."""
    names = 0.07 * max(map(len, values))  # inches that the slanted labels take
    figure = Figure(figsize=(max(3.0, 0.5 * len(values) + 1.2), 2.6 + names), layout="constrained")
    axes = figure.add_subplot()
    errors = [(deviations or {}).get(label, 0.0) for label in values]
    axes.bar(list(values), list(values.values()), yerr=errors, capsize=3, color=COLOURS[0])
    for label in axes.get_xticklabels():
        label.set(rotation=50, ha="right", rotation_mode="anchor")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    return figure


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
            axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, lw=1.8))
            below = {"ha": "center", "va": "top", "fontsize": 9, "color": colour}
            axes.text(
                x + side / 2, y + 1.06 * side, mark + _shortened(name), parse_math=False, **below
            )
    above = {"y": -0.08 * side, "ha": "left", "va": "bottom", "fontsize": 9}
    axes.text(0, s="query", **above)
    axes.text(left[1], s="nearest first", **above)
    axes.imshow(
        canvas, extent=(0, canvas.shape[1], canvas.shape[0], 0), interpolation="none", aspect="auto"
    )
    axes.set_xlim(-0.1 * side, width + 0.1 * side)
    axes.set_ylim(height + foot, -head)
    return figure


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


def save(figure: Figure, stem: str) -> None:
    """Writes STEM.png and STEM.svg; the same figure gives the same SVG."""
    path = epath.Path(stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=160)
    figure.set_layout_engine("none")  # it is laid out now
    # Without a salt of their own, identifiers in the file would be random.
    with (
        matplotlib.rc_context({"svg.hashsalt": path.name}),
        path.with_name(f"{path.name}.svg").open("wb") as file,
    ):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _span(start: float, length: int) -> slice:
    return slice(round(start), round(start) + length)


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """The image [H, W, 3] at [side, side, 3], each pixel a block of its own."""
    nearest = np.arange(side) * len(image) // side
    return image[nearest][:, nearest]


def _shortened(name: str, length: int = 9) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _hatched(cells: np.ndarray) -> PolyCollection:
    """Hatching of cells (row, column), [N, 2]; one artist, as hundreds would take seconds."""
    corners = np.asarray([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    squares = cells[:, np.newaxis, ::-1] + corners
    return PolyCollection(squares, facecolor="none", edgecolor=WRONG, linewidth=0, hatch="////")


def _task_ticks(axes, size: int, replacements: Sequence[int]) -> None:
    step = 1 if size <= _MOST_NUMBERED else 5
    ticks = sorted({*range(0, size, step), *replacements})
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(tick + 1) for tick in ticks])
        for tick, label in zip(ticks, axis.get_ticklabels(), strict=True):
            label.set_fontweight("bold" if tick in replacements else "normal")
