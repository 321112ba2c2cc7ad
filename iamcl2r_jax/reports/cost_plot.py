"""What is reached against what it costs, as a matplotlib figure without global state."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from iamcl2r_jax.reports.plots import COLOURS, default_style

_MARKS = "osD^vP*X"


@default_style()
def costs(points: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str = "") -> Figure:
    """By label, a mark, and way, a colour, the seconds of an upgrade and accuracy in percent.

    Seconds are logarithmic above 0.1.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    looks = {}
    for number, way in enumerate(dict.fromkeys(way for ways in points.values() for way in ways)):
        colour = COLOURS[number % len(COLOURS)]
        filled = colour if number < len(COLOURS) else "none"  # more ways than colours
        looks[way] = {"color": colour, "mfc": filled}
    for number, (label, ways) in enumerate(points.items()):
        mark = _MARKS[number % len(_MARKS)]
        for way, (cost, value) in ways.items():
            axes.plot(cost, value, mark, **looks[way])
        axes.plot([], [], mark, color="black", label=label)
    for way, look in looks.items():
        axes.plot([], [], "o", **look, label=way)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=-0.02)
    axes.set(xlabel="seconds to get there, per upgrade", ylabel="accuracy on old galleries (%)")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


@default_style()
def trade_offs(points: Mapping[str, tuple[float, float]], *, title: str = "") -> Figure:
    """By label, accuracy of the last model in its own gallery and that on old ones, in percent."""
    figure = Figure(figsize=(7.8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, (x, y)) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        mark = _MARKS[number // len(COLOURS) % len(_MARKS)]
        axes.plot(x, y, mark, color=colour, label=label)
    axes.set(xlabel="last model in its own gallery (%)", ylabel="accuracy on old galleries (%)")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
