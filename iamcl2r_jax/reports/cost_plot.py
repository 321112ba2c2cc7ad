"""What is reached against what it costs, as a matplotlib figure without global state."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from iamcl2r_jax.reports.plots import COLOURS, default_style

_MARKS = "osD^vP*X"


@default_style()
def costs(
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    xlabel: str = "seconds to get there, per upgrade",
    ylabel: str = "accuracy on old galleries (%)",
    title: str = "",
) -> Figure:
    """What is reached against what it costs: a mark for each label, a colour for each way.

    Args:
      points: by label and way, cost (zero or more) and value.
      xlabel, ylabel: of the axes; costs are logarithmic above 0.1.
      title: of the figure.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    all_ways = list(dict.fromkeys(way for ways in points.values() for way in ways))
    for number, (label, ways) in enumerate(points.items()):
        for way, (cost, value) in ways.items():
            style = all_ways.index(way)
            colour = COLOURS[style % len(COLOURS)]
            filled = colour if style < len(COLOURS) else "none"  # more ways than colours
            axes.plot(cost, value, _MARKS[number % len(_MARKS)], color=colour, mfc=filled)
        axes.plot([], [], _MARKS[number % len(_MARKS)], color="black", label=label)
    for style, way in enumerate(all_ways):
        colour = COLOURS[style % len(COLOURS)]
        filled = colour if style < len(COLOURS) else "none"
        axes.plot([], [], "o", color=colour, mfc=filled, label=way)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=-0.02)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


@default_style()
def trade_offs(
    points: Mapping[str, tuple[float, float]],
    *,
    xlabel: str = "last model in its own gallery (%)",
    ylabel: str = "accuracy on old galleries (%)",
    title: str = "",
) -> Figure:
    """What one figure costs of another: a named point for each label.

    Args:
      points: by label, both values.
      xlabel, ylabel: of the axes.
      title: of the figure.
    """
    figure = Figure(figsize=(7.8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, (x, y)) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        mark = _MARKS[number // len(COLOURS) % len(_MARKS)]
        axes.plot(x, y, mark, color=colour, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
