"""Cells of a comparison in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import small_runs

from iamcl2r_jax.comparisons import cells, comparison, jobs
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import pathlib
import test_jobs


def get_config():
    test_jobs.register()
    return test_jobs.two_cells(pathlib.Path(__file__).parent)
"""


def register():
    """What a config file may do, and each process must do again."""
    small_runs.register_for_good()


def two_cells(root, *, epochs=2, replaced=(1,)):
    """Two methods, whose external model is one that the first of them makes."""
    base = small_runs.small_config(root / "images")
    replacements, recipe = base.replacements, base.replacements.recipe
    replacements.tasks, replacements.classes = replaced, tuple(2 for _ in replaced)
    replacements.directory = str(root / "external")
    replacements.checkpoints = ()
    recipe.dataset, recipe.image = base.stream.dataset, base.image
    recipe.model, recipe.train = base.model, base.train
    base.train.epochs = epochs
    c = cells.comparison("two", base, {"hoc": {}, "simplex": {"method": "simplex"}})
    c.seeds = (0,)
    return c


@pytest.fixture
def place(tmp_path):
    small_runs.write_images(tmp_path / "images")
    return tmp_path


def test_two_cells_at_a_time_give_what_one_after_the_other_does(place, capsys, monkeypatch):
    small_runs.register(monkeypatch)
    c = two_cells(place)
    together = comparison.run(c, str(place / "two"), num_jobs=2, initialize=register)
    printed = capsys.readouterr().out
    for name in ("hoc-seed0", "simplex-seed0"):
        assert f": {name}\n" in printed
        assert f"{name}: task 3/3, 2 new classes" in printed
    alone = comparison.run(c, str(place / "one"))
    for cell in ("hoc-seed0", "simplex-seed0"):
        both = [
            files.read_json(str(place / way / "cells" / cell / "results.json"))
            for way in ("two", "one")
        ]
        assert both[0]["evaluations"] == both[1]["evaluations"]
        assert both[0]["task_accuracy"] == both[1]["task_accuracy"]
    assert together["evaluations"] == alone["evaluations"]


def test_what_a_cell_raises_is_raised(place, monkeypatch):
    small_runs.register(monkeypatch)
    c = two_cells(place)
    (damaged,) = (place / "images" / "stream" / "train" / "class0").glob("0.png")
    damaged.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0\.png"):
        comparison.run(c, str(place / "two"), num_jobs=2, initialize=register)


def test_a_process_that_dies_is_a_failed_cell(place, monkeypatch):
    small_runs.register(monkeypatch)
    found = comparison.run(
        two_cells(place), str(place / "two"), ["hoc"], num_jobs=2, initialize=die
    )
    assert found["cells"]["hoc-seed0"]["state"] == "failed"
    assert "its process ended with status -9" in found["cells"]["hoc-seed0"]["error"]
    assert found["cells"]["simplex-seed0"] == {"state": "missing"}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_sigterm_saves_all_and_the_same_command_continues(place):
    config = CONFIG.replace("parent)\n", "parent, epochs=1500, replaced=())\n")
    (place / "compare.py").write_text(config)
    command = [sys.executable, ROOT / "launch" / "compare.py", f"--config={place / 'compare.py'}"]
    command += ["--workdir=two", "--jobs=2", f"--compilation_cache={ROOT}/.cache/jax"]
    started = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = {"hoc-seed0: task 1/3", "simplex-seed0: task 1/3"}
    while begun:
        begun.discard(started.stdout.readline().decode().partition(",")[0])
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate()
    assert set(errors.decode().splitlines()) == {"error: asked to stop; the same command continues"}
    assert started.returncode == 75
    for cell in ("hoc-seed0", "simplex-seed0"):
        assert len(list((place / "two" / "cells" / cell / "progress").iterdir())) == 1


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,2", ["0", "2"]), ("", []), ("GPU-1f,GPU-2e", ["GPU-1f", "GPU-2e"])],
)
def test_gpus_are_those_that_this_process_may_use(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert jobs._gpus() == expected


def test_every_process_has_its_share(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    shares = [jobs._share(slot, 3) for slot in range(3)]
    assert [share["cores"] for share in shares] == [[0], [1, 2], [5, 7]]
    assert [share["gpu"] for share in shares] == ["4", "6", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert jobs._share(1, 2) == {"cores": [3]}
    assert jobs._share(0, 2) == {"cores": [3]}
