"""Marks of plots, read back from the figures."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from iamcl2r_jax.data import alphabets
from iamcl2r_jax.reports import plots
from iamcl2r_jax.training.schedule import Schedule

MATRIX = np.where(np.tri(4, dtype=bool), np.arange(16).reshape(4, 4) / 20, np.nan)


def ticks(axis):
    return [(t.get_text(), t.get_fontweight(), t.get_fontstyle()) for t in axis.get_ticklabels()]


def test_matrix_marks_what_was_retrained_apart_from_what_was_replaced():
    figure = plots.heat_map(MATRIX, Schedule([0, 2], [3]), "title")
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert ticks(axis) == [
            ("1", "bold", "normal"),
            ("2", "normal", "normal"),
            ("3", "bold", "normal"),
            ("4+", "normal", "italic"),
        ]
    assert figure.get_supxlabel() == "bold: model replaced\n+: retrained from scratch"
    assert (
        plots.heat_map(MATRIX, Schedule(retrained=[3])).get_supxlabel()
        == "+: retrained from scratch"
    )
    assert plots.heat_map(MATRIX, Schedule([0, 2])).get_supxlabel() == ""


def test_a_long_matrix_has_a_tick_at_every_mark():
    figure = plots.heat_map(np.tri(31) / 2, Schedule([0], [7]))
    assert ("8+", "normal", "italic") in ticks(figure.axes[0].xaxis)


def test_each_of_several_matrices_has_its_own_marks():
    panels = {"a": (MATRIX, Schedule([1])), "b": (MATRIX, Schedule(retrained=[2]))}
    figure = plots.heat_maps(panels)
    assert [text for text, *_ in ticks(figure.axes[0].xaxis)] == ["1", "2", "3", "4"]
    assert [text for text, *_ in ticks(figure.axes[1].xaxis)] == ["1", "2", "3+", "4"]


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_curves_name_both_marks_where_there_are_two(lines):
    values = {str(n): [n, n + 1, n + 2, n + 3] for n in range(lines)}
    figure = plots.curves(values, xlabel="x", ylabel="y", schedule=Schedule([0, 2], [1, 3]))
    (axes,) = figure.axes
    legend = axes.get_legend()
    named = {
        text.get_text(): handle.get_linestyle()
        for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    marks = {"model replaced": ":", "retrained from scratch": "--"}
    assert named == dict.fromkeys(values, "-") | marks
    for style, at in ((":", [1, 3]), ("--", [2, 4])):
        verticals = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == style]
        assert verticals == at


def test_curves_without_retraining_stay_as_they_are():
    axes = {"xlabel": "x", "ylabel": "y", "schedule": Schedule([1])}
    figure = plots.curves({"a": [1, 2]}, **axes)
    assert figure.axes[0].get_legend() is None
    figure = plots.curves({"a": [1, 2], "b": [2, 1]}, **axes)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_a_users_style_changes_no_figure(tmp_path):
    """LaTeX that is not installed, a missing font, dark axes: figures are in the default style."""
    plots.save(plots.heat_map(MATRIX, Schedule([0, 2], [3]), "title"), str(tmp_path / "default"))
    theirs = {"text.usetex": True, "font.family": "No Such Font", "axes.facecolor": "black"}
    with matplotlib.rc_context(theirs):
        plots.save(plots.heat_map(MATRIX, Schedule([0, 2], [3]), "title"), str(tmp_path / "theirs"))
        assert matplotlib.rcParams["text.usetex"]  # the user's own figures stay as they were
    default, theirs = (tmp_path / f"{name}.png" for name in ("default", "theirs"))
    assert default.read_bytes() == theirs.read_bytes()


def test_every_class_of_the_stream_can_be_written(tmp_path):
    """A character that no typeface has would be a warning, and that an error here."""
    with plots.default_style():
        figure = Figure()
        figure.text(0, 0.5, "".join(alphabets.STREAM + alphabets.UNSEEN), parse_math=False)
    plots.save(figure, str(tmp_path / "classes"))
    assert (tmp_path / "classes.png").stat().st_size > 0


def test_the_same_plot_gives_the_same_svg(tmp_path):
    for number in range(2):
        figure = plots.curves({"a": [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y")
        plots.save(figure, str(tmp_path / str(number) / "curves"))
    first, again = ((tmp_path / n / "curves.svg").read_bytes() for n in ("0", "1"))
    assert first == again
