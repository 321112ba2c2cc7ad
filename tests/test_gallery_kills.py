"""SIGKILL at random moments: nothing acknowledged is lost or doubled, and answers stay the same."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("gallery_kills.py")


def run(tmp_path, first, count):
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path, str(first), str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_once_or_more_in_each_kind_of_work(tmp_path):
    lines = run(tmp_path, 0, 5)
    assert {line["work"] for line in lines} == {"add", "backfill", "promote", "rollback", "retire"}
    assert sum(line["cut"] for line in lines) >= 4  # the work was not at its end


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    lines = run(tmp_path, 5, 100)
    assert sum(line["kills"] for line in lines) >= 100
    assert sum(line["cut"] for line in lines) >= 75
