"""The programs of launch/ as a person starts them: what they print, and how they end."""

import contextlib
import pathlib
import subprocess
import sys

import pytest

from iamcl2r_jax import config
from iamcl2r_jax.programs import exits
from iamcl2r_jax.system import paths
from iamcl2r_jax.system.errors import InputError

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
        (["--config.train.epoch=3"], "--config.train.epoch: unknown field; did you mean epochs?"),
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


@pytest.mark.parametrize("stdout", ["closed", "full"])
def test_an_output_that_takes_nothing_is_no_traceback(stdout):
    target = "1>&-" if stdout == "closed" else "1>/dev/full"
    ended = subprocess.run(
        f"{sys.executable} launch/export_torch.py --checkpoint=/nowhere --output=a.pt {target}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    message = "error: checkpoint /nowhere: there is no finished checkpoint at this place\n"
    assert (ended.returncode, ended.stderr) == (2, message)


@pytest.mark.parametrize(("stdout", "status"), [(None, 0), ("/dev/full", 1)])
def test_what_is_printed_to_nowhere(stdout, status, monkeypatch, capsys):
    """None is what Python has for a standard output that was closed before it began."""
    with contextlib.ExitStack() as stack:
        target = stdout and stack.enter_context(open(stdout, "w"))
        monkeypatch.setattr(sys, "stdout", target)
        assert exits.status_of(lambda: print("some figures")) == status
    assert capsys.readouterr().err == ("error: No space left on device\n" if status else "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("http://x", r"http://x: there is no storage http://; name a local path"),
        ("file:///x", r"there is no storage file://"),
        ("az://bucket/x", r"az://bucket/x: install the package adlfs to reach az://"),
    ],
)
def test_a_storage_that_cannot_be_reached(path, message):
    with pytest.raises(InputError, match=message):
        paths.expand(path)
    c = config.default()
    c.replacements.directory = path
    with pytest.raises(InputError, match=message):
        config.validate(c)


@pytest.mark.parametrize("path", ["1://b", "a:b", "a/b", "./x://y", ""])
def test_what_is_no_storage_is_a_path(path):
    assert paths.expand(path) == path
