"""Charts of the page, read back from their coordinates."""

import numpy as np
import pytest

from iamcl2r_jax.reports import charts, colours, projections
from iamcl2r_jax.training.schedule import Schedule


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 31, 12, [5, 10, 15, 20, 25, 30]),
        (-0.3, 0.3, 3, [-0.2, 0, 0.2]),
        (37.5, 48.1, 6, [38, 40, 42, 44, 46, 48]),
        (1, 1, 12, [1]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low, high, most, wanted):
    assert charts.ticks(low, high, most) == wanted


def test_lines_lie_on_their_ticks():
    """A value that is a tick's has the tick's place, in both directions."""
    chart = charts.line_chart({"a": [0, 10, 20], "b": [20, 0, 10]}, xlabel="task", ylabel="%")
    across, down = dict(map(reversed, chart.xticks)), dict(map(reversed, chart.yticks))
    a, b = ([tuple(map(float, p.split(","))) for p in line.points.split()] for line in chart.lines)
    assert a == [(across["1"], down["0"]), (across["2"], down["10"]), (across["3"], down["20"])]
    assert b == [(across["1"], down["20"]), (across["2"], down["0"]), (across["3"], down["10"])]
    assert down["0"] > down["10"] > down["20"]  # SVG counts downwards
    assert [text for *_, text in chart.lines[1].dots] == [
        *("b, task 1: 20", "b, task 2: 0", "b, task 3: 10")
    ]
    box = chart.box
    assert all(box.left <= x <= box.right and box.top <= y <= box.bottom for x, y in a + b)


def test_verticals_say_what_happened_there():
    chart = charts.line_chart(
        {"a": [1, 2, 3, 4]}, xlabel="x", ylabel="y", schedule=Schedule([2], [1]), boundaries=[3]
    )
    across = dict(chart.xticks)
    assert {across[place]: kind for place, kind in chart.verticals} == {
        **{"2": "retrained", "3": "replaced", "4": "task"}
    }


def test_a_long_line_has_no_dots_and_a_constant_one_a_range():
    chart = charts.line_chart({"a": [5.0] * 248}, xlabel="epoch", ylabel="loss")
    assert chart.lines[0].dots == []
    assert len(chart.lines[0].points.split()) == 248
    assert "5" in [label for _, label in chart.yticks]
    assert 3 < len(chart.xticks) < 14


def test_a_plane_keeps_its_shape_and_holds_every_point():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 4)
    features = {"old": rng.normal(size=(12, 6)), "new": rng.normal(size=(12, 6))}
    view = projections.view(np.eye(6)[:3], labels, features)
    chart = charts.plane_chart(view, ["a", "b", "c"])
    sides = [np.hypot(*np.subtract(chart.stars[i], chart.stars[i - 1])) for i in range(3)]
    assert sides == pytest.approx([sides[0]] * 3, abs=0.3)  # places have one decimal
    assert [group.filled for group in chart.groups] == [False, True]
    for group in chart.groups:
        assert [colour for *_, colour in group.places] == [colours.COLOURS[cls] for cls in labels]
        assert all(
            0 <= x <= chart.box.width and 0 <= y <= chart.box.height for x, y, _ in group.places
        )


def test_heat_colours_run_from_dark_to_bright():
    cells, ink = colours.heat_colours(np.asarray([[0.0, np.nan], [0.5, 1.0]]))
    assert cells.tolist() == [["#440154", "#ffffff"], ["#21918c", "#fde725"]]
    assert ink.tolist() == [["#ffffff", "#000000"], ["#ffffff", "#000000"]]
    cells, _ = colours.heat_colours(np.full((2, 2), 0.3))  # all equal
    assert set(cells.ravel()) == {"#440154"}


def test_picture_of_a_matrix_frames_what_is_incompatible():
    matrix = [[0.5, None, None], [0.6, 0.8, None], [0.4, 0.8, 1.0]]  # one better, one worse, a tie
    picture = colours.matrix_picture(matrix)
    assert (picture.shape, picture.dtype) == ((72, 72, 3), np.uint8)
    corners, middles = picture[::24, ::24], picture[12::24, 12::24]
    framed = (corners == [0xD5, 0x5E, 0x00]).all(axis=-1)
    assert framed.tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    cells, _ = colours.heat_colours(matrix)
    assert [[f"#{bytes(c).hex()}" for c in row] for row in middles] == cells.tolist()
