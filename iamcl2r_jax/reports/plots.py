"""The figures of comparisons and papers, as matplotlib figures without global state.

They are drawn in matplotlib's default style, whatever the user's matplotlibrc says.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from etils import epath
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from iamcl2r_jax import compatibility
from iamcl2r_jax.evaluation import theorem
from iamcl2r_jax.reports.colours import COLOURS, VIRIDIS, heat_colours
from iamcl2r_jax.training.schedule import PLAIN, Schedule

_LINES = ("-", "--", "-.", ":")
_COLOUR_MAP = LinearSegmentedColormap.from_list("viridis", VIRIDIS)
_REPLACED, _RETRAINED = "model replaced", "retrained from scratch"
_DPI = 160  # of PNG files
_COMPRESSION = 1  # of PNG files; 6, the default, takes several times as long
_MOST_NUMBERED = 12  # tasks up to which a matrix has a number in each cell


@contextmanager
def default_style() -> Iterator[None]:
    """Matplotlib's own defaults inside the block; a decorator, too.

    Names of classes that its first typeface lacks are drawn in another that it ships.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", "STIXGeneral"]
        yield


@default_style()
def heat_map(matrix, schedule: Schedule = PLAIN, title: str = "") -> Figure:
    """A compatibility matrix in percent: incompatible entries hatched, replacements in bold.

    Tasks that were retrained are slanted, with a plus, and a line below says so. Every cell has its
    number; where there are too many for that, a colour bar stands for them.

    Args:
      matrix: [T, T] in [0, 1]; NaN or None above the diagonal.
      schedule: of the tasks.
      title: of the figure.
    """
    side = _side(len(matrix))
    figure = Figure(figsize=(side, side), layout="constrained")
    image = _draw_matrix(figure.add_subplot(), matrix, schedule, title, *_range([matrix]))
    if len(matrix) > _MOST_NUMBERED:
        figure.colorbar(image, label="%", shrink=0.75)
    if schedule.retrained:
        marks = [f"bold: {_REPLACED}"] * bool(schedule.replaced) + [f"+: {_RETRAINED}"]
        figure.supxlabel("\n".join(marks), fontsize=8)
    return figure


@default_style()
def heat_maps(panels: Mapping[str, tuple[Sequence, Schedule]], title: str = "") -> Figure:
    """Compatibility matrices side by side on one scale of colours, each as of `heat_map`.

    Args:
      panels: by their titles, the matrix [T, T] and the schedule of its tasks.
      title: of the figure, which explains the marks.
    """
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    rows = -(-len(panels) // columns)
    matrices = [matrix for matrix, _ in panels.values()]
    side = _side(max(map(len, matrices)))
    figure = Figure(figsize=(side * columns, side * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    low, high = _range(matrices)
    for axes, (name, (matrix, schedule)) in zip(places, panels.items(), strict=False):
        image = _draw_matrix(axes, matrix, schedule, name, low, high)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=places, shrink=0.8, label="%")
    figure.suptitle(title, fontsize=10)
    return figure


def _side(size: int) -> float:
    """Inches of a matrix of `size` tasks."""
    return max(2.6, 0.52 * min(size, _MOST_NUMBERED) + 1.2)


def _range(matrices) -> tuple[float, float]:
    """Lowest and highest percentage of some matrices."""
    values = np.concatenate([100 * np.asarray(m, float)[np.tril_indices(len(m))] for m in matrices])
    return values.min(), values.max()


def _draw_matrix(axes, matrix, schedule, title, low, high):
    values = 100 * np.asarray(matrix, float)
    size = len(values)
    incompatible = np.tril(np.ones_like(values, bool), -1)
    incompatible &= ~compatibility.is_compatible(matrix)
    image = axes.imshow(values, cmap=_COLOUR_MAP, vmin=low, vmax=high)
    if size <= _MOST_NUMBERED:
        cells, ink = heat_colours(values, (low, high))
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
    axes.add_collection(_hatched(np.argwhere(incompatible)))
    _task_ticks(axes, size, schedule)
    axes.set_xlabel("gallery of model")
    axes.set_ylabel("queries of model")
    axes.set_title(title, fontsize=10, parse_math=False)
    return image


@default_style()
def curves(
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    schedule: Schedule = PLAIN,
    stds: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> Figure:
    """Lines over tasks 1 … T (or epochs), replacements as dotted verticals, ± std as bands.

    With retrained tasks, which are dashed verticals, the legend names both.

    Args:
      values: of each line, by its label.
      xlabel: what is counted from 1.
      ylabel: quantity and unit.
      schedule: 0-based positions to mark.
      stds: half width of the band around a line, by label.
      title: of the figure.
      labels: of the positions, where these are not numbers to count.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _draw_curves(axes, values, stds)
    named = bool(schedule.retrained)  # of two kinds the legend says which is which
    dotted = {"color": "0.5", "linestyle": ":", "linewidth": 1.2}
    dashed = {"color": "0.3", "linestyle": "--", "linewidth": 1}
    _draw_marks(axes, schedule.replaced, _REPLACED if named else None, dotted)
    _draw_marks(axes, schedule.retrained, _RETRAINED, dashed)
    if labels is not None:
        axes.set_xticks(np.arange(1, len(labels) + 1), labels)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > 4:
        axes.legend(
            fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3
        )
    elif entries > 1:
        axes.legend(fontsize=8, framealpha=0.6, loc="best", handlelength=3)
    return figure


@default_style()
def curve_panels(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    stds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    title: str = "",
) -> Figure:
    """Panels of lines side by side, each as of `curves`; a label has one colour in all of them.

    Args:
      panels: by their titles, the values of each line by its label.
      xlabel: what is counted from 1.
      stds: half width of the bands, by panel and label.
      title: of the figure.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.3), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, values) in zip(row, panels.items(), strict=True):
        _draw_curves(axes, values, (stds or {}).get(name))
        if min(map(min, values.values())) > 0:  # a loss that falls to a hundredth
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(xlabel)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    lines, labels = row[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center"
    )
    return figure


@default_style()
def theorem_panels(checks: Mapping[str, Sequence[theorem.Check]], title: str = "") -> Figure:
    """Both inequalities of Theorem 1 and the concentrations, one point per update and class.

    Distances before the update stand to the right, after it upwards; the side of the diagonal on
    which an inequality holds, and on which caps would make it hold, is white. Colours say what the
    bootstrap intervals do: of the panel's own inequality, for the concentrations of the first.

    Args:
      checks: of each update, by kind of update; a kind has one mark.
      title: of the figure.
    """
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = (
        ("(a) distance within a class", "same", "before", "after", -1),
        ("(b) distance to other classes", "other", "before", "after", 1),
        ("concentration κ", "same", "kappa_old", "kappa_new", 1),
    )
    handles = {}
    for axes, (name, inequality, across, upwards, sign) in zip(
        figure.subplots(1, 3), panels, strict=True
    ):
        for (kind, kept), marker in zip(checks.items(), "osD^", strict=False):
            for check in kept:
                about = getattr(check, inequality)
                owner = check if across.startswith("kappa") else about
                x, y = getattr(owner, across), getattr(owner, upwards)
                low, high = np.moveaxis(about.interval, -1, 0)
                for verdict, colour, which in (
                    ("holds beyond the interval", COLOURS[0], low > 0),
                    ("undecided", COLOURS[7], (low <= 0) & (high >= 0)),
                    ("violated beyond the interval", COLOURS[1], high < 0),
                ):
                    style = {"color": colour, "ms": 4, "mew": 0, "alpha": 0.6}
                    (points,) = axes.plot(x[which], y[which], marker, **style)
                    if which.any():
                        handles[f"{kind}: {verdict}"] = points
        limits = _square_limits(axes)
        wrong_side = limits[1] if sign < 0 else limits[0]
        axes.fill_between(limits, limits, wrong_side, color="0.93", lw=0, zorder=0)
        axes.plot(limits, limits, color="0.6", lw=1, zorder=1)
        axes.set_xlabel("old model" if owner is not about else "before: old to old features")
        axes.set_ylabel("new model" if owner is not about else "after: new to old features")
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    labels = sorted(handles)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        fontsize=7,
        frameon=False,
        ncols=3,
        loc="outside lower center",
    )
    return figure


def _square_limits(axes) -> tuple[float, float]:
    """Gives both axes the same limits and returns them."""
    limits = (
        min(axes.get_xlim()[0], axes.get_ylim()[0]),
        max(axes.get_xlim()[1], axes.get_ylim()[1]),
    )
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_box_aspect(1)
    return limits


def _draw_curves(axes, values, stds) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        if stds and label in stds:
            spread = np.asarray(stds[label], float)
            axes.fill_between(at, line - spread, line + spread, color=colour, alpha=0.15, lw=0)


def _draw_marks(axes, positions: Sequence[int], name: str | None, style: dict) -> None:
    """Verticals at 0-based positions, once named in the legend."""
    for position in positions:
        label = name if position == positions[0] else None
        axes.axvline(position + 1, zorder=0, label=label, **style)


@default_style()
def bars(
    values: Mapping[str, float],
    *,
    ylabel: str,
    stds: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """One bar for each label, with ± std where given."""
    names = 0.07 * max(map(len, values))  # inches that the slanted labels take
    figure = Figure(figsize=(max(3.0, 0.5 * len(values) + 1.2), 2.6 + names), layout="constrained")
    axes = figure.add_subplot()
    errors = [(stds or {}).get(label, 0.0) for label in values]
    axes.bar(list(values), list(values.values()), yerr=errors, capsize=3, color=COLOURS[0])
    for label in axes.get_xticklabels():
        label.set(rotation=50, ha="right", rotation_mode="anchor")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    return figure


@default_style()
def save(figure: Figure, stem: str) -> None:
    """Writes STEM.png and STEM.svg; the same figure gives the same SVG."""
    path = epath.Path(stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(_DPI)
    if (layout := figure.get_layout_engine()) is not None:
        # Once for both files: savefig would draw everything to lay it out, and again to write it.
        layout.execute(figure)
        figure.set_layout_engine(None)
    # Without a salt of their own, identifiers in the file would be random.
    salt = {"svg.hashsalt": path.name}
    with matplotlib.rc_context(salt), epath.Path(f"{stem}.svg").open("wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    with epath.Path(f"{stem}.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI, pil_kwargs={"compress_level": _COMPRESSION})


def _hatched(cells: np.ndarray) -> PolyCollection:
    """Hatching of cells (row, column), [N, 2]; one artist, as hundreds would take seconds."""
    corners = np.asarray([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    squares = cells[:, np.newaxis, ::-1] + corners
    return PolyCollection(
        squares, facecolor="none", edgecolor=COLOURS[1], linewidth=0, hatch="////"
    )


def _task_ticks(axes, size: int, schedule: Schedule) -> None:
    step = 1 if size <= _MOST_NUMBERED else 5
    ticks = sorted({*range(0, size, step), *schedule.replaced, *schedule.retrained})
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(
            ticks, [f"{tick + 1}{'+' if tick in schedule.retrained else ''}" for tick in ticks]
        )
        for tick, label in zip(ticks, axis.get_ticklabels(), strict=True):
            label.set_fontweight("bold" if tick in schedule.replaced else "normal")
            label.set_fontstyle("italic" if tick in schedule.retrained else "normal")
