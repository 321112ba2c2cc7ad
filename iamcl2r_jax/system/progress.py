"""What a person sees while a run is under way.

At a terminal one live line with a bar, the rate, the time left and the last figures; elsewhere
plain lines, one now and then.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from iamcl2r_jax.system import distributed

_SECONDS_BETWEEN_LINES = 10.0


class _Rate(ProgressColumn):
    """Seconds for each epoch, or epochs in each second; the first one, which compiles, aside."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def plain_console(**options: Any) -> Console:
    """A console that takes no text for markup, emoji or something to highlight."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def print_text(console: Console, text: str) -> None:
    """Prints lines as they are, which may hold a user's text; only the terminal breaks them."""
    console.out(text, highlight=False)


class Reporter:
    """Prints messages and the progress of stages made of epochs."""

    def __init__(self, console: Console | None = None):
        self.console = console or plain_console(quiet=not distributed.is_first())

    def message(self, text: str) -> None:
        """Prints one line."""
        print_text(self.console, text)

    @contextmanager
    def stage(self, title: str, epochs: int, *, done: int = 0) -> Iterator["Stage"]:
        """Shows the progress of `epochs` epochs, `done` of them before, under a title."""
        with self.bar() as bar:
            yield Stage(self, bar, title, epochs, done)

    def bar(self) -> Progress:
        """What stages are shown on, several at a time; a context."""
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
            transient=True,
            speed_estimate_period=math.inf,  # rich's 30 seconds may hold no whole epoch
            disable=not self.console.is_terminal,
        )


class Stage:
    """The epochs of one stage."""

    def __init__(self, reporter: Reporter, bar: Progress, title: str, epochs: int, done: int):
        self._reporter, self._bar = reporter, bar
        self._title, self._epochs = title, epochs
        self._task = bar.add_task(title, total=epochs, completed=done, figures="")
        self._done = self._done_before = done
        self._started = self._printed = time.monotonic()

    def advance(self, epochs: int = 1) -> None:
        """Tells that more of them are done, without figures."""
        self._done += epochs
        self._bar.update(self._task, advance=epochs)

    def close(self) -> None:
        """Takes it off the screen."""
        self._bar.remove_task(self._task)

    def epoch(self, metrics: Mapping[str, float], epochs: int = 1) -> None:
        """Tells that more epochs have ended, with the metrics of the last."""
        self.advance(epochs)
        figures = f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}"
        self._bar.update(self._task, figures=figures)
        now = time.monotonic()
        quiet = self._reporter.console.is_terminal or self._done == self._epochs
        if not quiet and now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            left = (now - self._started) / (self._done - self._done_before)
            left *= self._epochs - self._done
            self._reporter.message(
                f"{self._title}: epoch {self._done}/{self._epochs}, {figures}, {left:.0f} s left"
            )


@contextmanager
def or_message(reporter: Reporter, failed: str, consequence: str) -> Iterator[None]:
    """Turns whatever goes wrong with a picture into one line: no picture ends a run."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reporter.message(f"{failed} ({reason}); {consequence}")
