"""Marks of plots, read back from the figures."""

import numpy as np
import pytest

from iamcl2r_jax.reports import plots

MATRIX = np.where(np.tri(4, dtype=bool), np.arange(16).reshape(4, 4) / 20, np.nan)


def ticks(axis):
    return [(t.get_text(), t.get_fontweight(), t.get_fontstyle()) for t in axis.get_ticklabels()]


def test_matrix_marks_what_was_retrained_apart_from_what_was_replaced():
    figure = plots.heat_map(MATRIX, [0, 2], "title", retrained=[3])
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert ticks(axis) == [
            ("1", "bold", "normal"),
            ("2", "normal", "normal"),
            ("3", "bold", "normal"),
            ("4+", "normal", "italic"),
        ]
    assert figure.get_supxlabel() == "bold: model replaced\n+: retrained from scratch"
    assert plots.heat_map(MATRIX, retrained=[3]).get_supxlabel() == "+: retrained from scratch"
    assert plots.heat_map(MATRIX, [0, 2]).get_supxlabel() == ""


def test_a_long_matrix_has_a_tick_at_every_mark():
    figure = plots.heat_map(np.tri(31) / 2, [0], retrained=[7])
    assert ("8+", "normal", "italic") in ticks(figure.axes[0].xaxis)


def test_each_of_several_matrices_has_its_own_marks():
    figure = plots.heat_maps(
        {"a": MATRIX, "b": MATRIX}, {"a": [1], "b": []}, retrained={"a": [], "b": [2]}
    )
    assert [text for text, *_ in ticks(figure.axes[0].xaxis)] == ["1", "2", "3", "4"]
    assert [text for text, *_ in ticks(figure.axes[1].xaxis)] == ["1", "2", "3+", "4"]


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_curves_name_both_marks_where_there_are_two(lines):
    values = {str(n): [n, n + 1, n + 2, n + 3] for n in range(lines)}
    figure = plots.curves(values, xlabel="x", ylabel="y", replacements=[0, 2], retrained=[1, 3])
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
    figure = plots.curves({"a": [1, 2]}, xlabel="x", ylabel="y", replacements=[1])
    assert figure.axes[0].get_legend() is None
    figure = plots.curves({"a": [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y", replacements=[1])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
