"""The figures of reports, comparisons and papers, as matplotlib figures without global state."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from iamcl2r_jax import compatibility

# Okabe and Ito's colours, told apart with any colour vision; black is left to axes and marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7F7F7F")
_LINES = ("-", "--", "-.", ":")

_MOST_NUMBERED = 12  # tasks up to which a matrix has a number in each cell


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
        for row in range(size):
            for column in range(row + 1):
                bright = image.norm(values[row, column]) > 0.6
                axes.text(
                    column,
                    row,
                    f"{values[row, column]:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if bright else "white",
                )
    else:
        figure.colorbar(image, label="%", shrink=0.75)
    for row, column in np.argwhere(incompatible):
        axes.add_patch(_hatched(column, row))
    _task_ticks(axes, size, replacements)
    axes.set_xlabel("gallery of model")
    axes.set_ylabel("queries of model")
    axes.set_title(title, fontsize=10)
    return figure


def curves(
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    replacements: Sequence[int] = (),
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
      deviations: half width of the band around a line, by label.
      title: of the figure.
      labels: of the positions, where these are not numbers to count.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for position in replacements:
        axes.axvline(position + 1, color="0.7", linestyle=":", linewidth=1, zorder=0)
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
    if len(values) > 1:
        axes.legend(
            fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3
        )
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


def save(figure: Figure, stem: str) -> None:
    """Writes STEM.png and STEM.svg; the same figure gives the same SVG."""
    path = pathlib.Path(stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=160)
    figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _hatched(column: int, row: int):
    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#D55E00", linewidth=0
    )


def _task_ticks(axes, size: int, replacements: Sequence[int]) -> None:
    step = 1 if size <= _MOST_NUMBERED else 5
    ticks = sorted({*range(0, size, step), *replacements})
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(tick + 1) for tick in ticks])
        for tick, label in zip(ticks, axis.get_ticklabels(), strict=True):
            label.set_fontweight("bold" if tick in replacements else "normal")
