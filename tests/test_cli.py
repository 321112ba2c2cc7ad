"""The programs of launch/ as a person starts them: what they print, and how they end."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def launch(program, *args):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / f"{program}.py", *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "config"),
        (["--config=configs/nope.py"], "configs/nope.py"),
        (["--config.train.epoch=3"], "error: 'epoch' Did you mean \"epochs\" instead of"),
        (["--config=configs/tiny.py:a=2"], "get_config() takes 0 positional arguments"),
        (["--config.train.epochs=many"], "--config.train.epochs=many"),
        (["--config.stream.dataset=nope"], "data set 'nope' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(args, message, tmp_path):
    if args and not args[0].startswith("--config="):
        args = ["--config=configs/tiny.py", *args]
    workdir = tmp_path / "run"
    ended = launch("main", *args, f"--workdir={workdir}", "--compilation_cache=")
    assert ended.returncode == 2
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not workdir.exists()
