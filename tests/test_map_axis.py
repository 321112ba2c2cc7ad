"""Maps after the fact on the models of finished runs."""

import os

import numpy as np
import pytest
from small_runs import register, save_external, small_config, write_images

from iamcl2r_jax import compatibility
from iamcl2r_jax.comparisons import cells, comparison, map_axis, map_report
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.reports import cost_plot
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two methods, one of which is run: three tasks, replaced at two of them."""
    place = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        write_images(place)
        c = small_config(place)
        c.replacements.tasks = (0, 2)
        c.replacements.checkpoints = tuple(
            save_external(place / name, c, 3, seed=seed) for seed, name in enumerate("ab")
        )
        of = cells.comparison("two", c, {name: {"method": name} for name in ("hoc", "simplex")})
        of.seeds = (0,)
        workdir = str(place / "run")
        status = comparison.main(of, workdir, ["hoc"], "command", ["procrustes", "slerp_both"])
        assert status == comparison.DONE
        yield workdir, of


def test_figures_of_a_run(compared):
    workdir, _ = compared
    cell = os.path.join(workdir, "cells", "hoc-seed0")
    found = files.read_json(os.path.join(cell, "maps.json"))
    results = files.read_json(os.path.join(cell, "results.json"))
    assert found["pairs"] == 30  # the images of the stream
    assert list(found["chains"]) == [map_axis.TRAINED, map_axis.EXTERNAL]
    as_is, *mapped, embedded = found["chains"][map_axis.TRAINED]["evaluations"]["open"]
    # The models after tasks 1 and 2, 0-based: a replacement ends the first, the second is the last.
    matrix = np.array(results["evaluations"]["open"]["matrix"], float)[1:, 1:]
    np.testing.assert_allclose(np.array(as_is["matrix"], float), matrix, atol=1e-6)
    assert as_is["figures"]["ac"] == compatibility.average_compatibility(matrix)
    assert as_is["figures"]["aa"] == pytest.approx(compatibility.average_accuracy(matrix))
    assert as_is["figures"]["old_galleries"] == pytest.approx(100 * matrix[1, 0])
    assert as_is["figures"]["own"] == pytest.approx(100 * matrix[1, 1])
    assert [(way["map"], way["direction"]) for way in mapped] == [
        ("procrustes", "queries"),
        ("procrustes", "gallery"),
        ("slerp_both", "queries"),
    ]
    for way in mapped:
        np.testing.assert_allclose(np.diag(np.array(way["matrix"], float)), np.diag(matrix))
        assert way["figures"]["map_bytes"] == 4 * 11 * 11
    # Re-embedded, a pair is what the new model is on its own gallery.
    np.testing.assert_allclose(np.array(embedded["matrix"], float)[1, 0], matrix[1, 1], atol=1e-6)
    assert embedded["figures"]["gallery_bytes"] == 4 * 12 * 11
    external = found["chains"][map_axis.EXTERNAL]["evaluations"]["open"]
    assert np.array(external[0]["matrix"], float).shape == (2, 2)
    assert external[0]["figures"]["seconds"] == 0
    assert as_is["figures"]["seconds"] > 0


def test_external_models_alone_are_a_row(compared):
    workdir, _ = compared
    rows = files.read_json(os.path.join(workdir, "comparison.json"))["evaluations"]["open"]
    row = rows["references"]["external models alone"]["figures"]
    kept = files.read_json(os.path.join(workdir, "cells", "hoc-seed0", "maps.json"))
    as_is = kept["chains"][map_axis.EXTERNAL]["evaluations"]["open"][0]["figures"]
    for figure in ("ac", "aa", "old_galleries", "own"):
        assert row[figure]["mean"] == pytest.approx(as_is[figure])
    assert row["across"] == row["old_galleries"]  # every model replaces the one before


def test_what_was_found_is_kept(compared, monkeypatch):
    workdir, of = compared
    (cell,) = (cell for cell in cells.expand(of, workdir) if cell.variant == "hoc")
    monkeypatch.setattr(maps, "fit", None)
    known = files.read_json(os.path.join(cell.workdir, "maps.json"))
    external = {}
    names = ["procrustes", "slerp_both"]
    found = map_axis.evaluate_run(cell.workdir, names, Reporter(), external)
    assert found["chains"] == known["chains"]
    assert list(external.values()) == [known["chains"][map_axis.EXTERNAL]]


def test_tables_and_picture(compared):
    workdir, _ = compared
    place = os.path.join(workdir, "open")
    assert {"maps.md", "maps.csv", "maps.json", "maps.png", "maps.svg"} <= set(os.listdir(place))
    rows = files.read_json(os.path.join(place, "maps.json"))["rows"]
    assert [(row["chain"], row["way"], row["direction"]) for row in rows][:6] == [
        ("hoc", "as is", None),
        ("hoc", "procrustes", "queries"),
        ("hoc", "procrustes", "gallery"),
        ("hoc", "slerp_both", "queries"),
        ("hoc", "re-embed", None),
        ("external models, simplex", "as is", None),
    ]
    with open(os.path.join(place, "maps.md")) as file:
        text = file.read()
    value = rows[1]["figures"]["aa"]["mean"]
    assert f"{value:.2f}" in next(line for line in text.splitlines() if "procrustes, quer" in line)


def test_rows_are_means_over_the_seeds_and_external_models_of_a_seed_count_once():
    def of_run(aa):
        figures = dict.fromkeys(map_report._COLUMNS, 1.0) | {"aa": aa, "own": None}
        way = {"kind": "as is", "map": None, "direction": None, "figures": figures}
        chain = {"head": "simplex", "evaluations": {"open": [way]}}
        return {"chains": {map_axis.TRAINED: chain, map_axis.EXTERNAL: chain}}

    by_cell = {("a", 0): of_run(1.0), ("a", 1): of_run(2.0), ("b", 0): of_run(5.0)}
    rows = map_report.rows_of(by_cell, "open")
    assert [(row["chain"], row["n"], row["figures"]["aa"]["mean"]) for row in rows] == [
        ("a", 2, 1.5),
        ("external models, simplex", 2, 1.5),
        ("b", 1, 5.0),
    ]
    lines = map_report.text_cells(rows)
    assert lines[1][:5] == ["a", "as is", "2", "1.000 ± 0.000", "1.50 ± 0.71"]
    assert lines[1][6] == "-"
    assert map_report.csv_cells(rows)[1][6:8] == [1.5, pytest.approx(0.5**0.5)]


def test_picture_has_a_mark_for_every_way():
    points = {name: {f"way {n}": (10.0**n, 50.0 + n) for n in range(-1, 9)} for name in "ab"}
    figure = cost_plot.costs(points, title="digits")
    (axes,) = figure.axes
    drawn = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata())]
    assert len(drawn) == 20
    assert {tuple(point) for point in drawn} == {
        p for ways in points.values() for p in ways.values()
    }


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"holds no finished run"):
        map_axis.evaluate_run(str(tmp_path), ["ridge"], Reporter())
    with pytest.raises(InputError, match=r"^maps=pca: unknown map"):
        comparison.main(None, str(tmp_path), [], "command", ["pca"])
