"""What the programs say of their flags, and that they say it before anything heavy is imported."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ("main", "pretrain", "compare", "evaluate", "figures", "import_torch", "export_torch")
HEAVY = {"jax", "numpy", "flax", "orbax", "tensorflow_datasets", "matplotlib", "torch"}


def run(program, *arguments, environment=()):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / f"{program}.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(environment),
        timeout=300,
    )


def heavy_imports(program, *arguments):
    ended = run(program, *arguments, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50
    return ended, HEAVY & {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("program", [*PROGRAMS, "gallery", "serve"])
def test_help_imports_nothing_heavy(program):
    ended, heavy = heavy_imports(program, "--help")
    assert "launch/" in ended.stdout or "usage:" in ended.stdout
    assert not heavy


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("main", ["--config=configs/tiny.py", "--workdr=x"], "Unknown command line flag 'workdr'"),
        ("main", [], "--config is required"),
        ("main", ["--config=configs/tiny.py", "--num_processes=0"], "flag --num_processes=0: 0 is"),
        ("figures", ["--workdir=a"], "--figure is required"),
        ("export_torch", ["--checkpoint=~no-one/a", "--output=b"], "flag --checkpoint=~no-one/a"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_heavy_is_imported(program, arguments, message):
    ended, heavy = heavy_imports(program, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not heavy


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (
            "main",
            ["--config=configs/tiny.py", "--config.dtype=x"],
            "--config.dtype: unknown field",
        ),
        (
            "main",
            ["--config", "configs/tiny.py", "--config.train.epoch=3"],
            "--config.train.epoch: unknown field; did you mean epochs?",
        ),
        (
            "pretrain",
            ["--config=configs/pretrain_glyphs.py", "--config.image.mean[0]=0.4"],
            "--config.image.mean[0]: set all items, as --config.image.mean='(0.5, 0.5, 0.5)'",
        ),
        (
            "main",
            ["--config=configs/tiny.py", "--config.train.epochs.x=3"],
            "--config.train.epochs: is one value, without a field x",
        ),
        (
            "main",
            ["--config=configs/tiny.py", "--config.data_dir=~/a"],
            "data_dir='~/a': must be",
        ),
        ("evaluate", ["--metric=?"], "flag --metric=?: '?' is not one of identification, "),
        ("evaluate", ["--maps=procrustes,x"], "flag --maps=procrustes,x: 'x' is not one of all, "),
    ],
)
def test_what_names_nothing_is_one_line(program, arguments, message):
    ended = run(program, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}")
    assert len(ended.stderr.splitlines()) == 1


def test_a_platform_without_a_device_is_one_line(tmp_path):
    ended = run(
        "main",
        "--config=configs/tiny.py",
        f"--workdir={tmp_path / 'run'}",
        environment={"JAX_PLATFORMS": "rocm"},  # which the tests' machines are not
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: JAX_PLATFORMS=rocm: JAX finds no such device here\n"
