"""What is shown of a stage, at a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console

from iamcl2r_jax.system import progress
from iamcl2r_jax.system.progress import Reporter

METRICS = {"loss": 1.25, "accuracy": 0.5}


class Clock:
    """Stands still until it is told to go on."""

    now = 1000.0

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def console(clock, terminal):
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=120,
        highlight=False,
        get_time=lambda: clock.now,
    )


def shown(out):
    """The last state of the live line, without its colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


@pytest.mark.parametrize(
    ("seconds", "rate", "left"), [(0.25, "4.0/s", "0:00:01"), (90.0, "90.0 s each", "0:03:00")]
)
def test_terminal_shows_rate_and_time_left(clock, seconds, rate, left):
    out = console(clock, terminal=True)
    with Reporter(out).stage("task 1/2", 5) as stage:
        clock.wait(500.0)  # of compiling, which the rate leaves out
        for _ in range(3):
            clock.wait(seconds)
            stage.epoch(METRICS)
    line = shown(out)  # drawn once more at the end, then erased
    assert "task 1/2" in line
    assert "3/5" in line
    assert rate in line
    assert f"left {left}" in line
    assert "loss 1.250  accuracy 50.0%" in line


def test_elsewhere_a_line_now_and_then_and_no_control_characters(clock):
    out = console(clock, terminal=False)
    with Reporter(out).stage("task 1/2", 40) as stage:
        for _ in range(40):
            clock.wait(1.0)
            stage.epoch(METRICS)
    printed = out.file.getvalue().splitlines()
    assert printed == [
        f"task 1/2: epoch {n}/40, loss 1.250  accuracy 50.0%, {40 - n} s left" for n in (10, 20, 30)
    ]
