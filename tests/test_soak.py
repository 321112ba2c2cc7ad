"""A long stream in one process: nothing accumulates but what the method keeps.

pytest -m slow tests/test_soak.py     # the 31 tasks; the usual tests have 8
"""

import gc
import os
import pathlib

import psutil
import pytest
import smallest_run

from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, lifelong

SETTLED = 4  # 0-based task after which nothing new is compiled or loaded


class Gauge(Reporter):
    """Reads memory and open files of the process after each task."""

    def __init__(self):
        super().__init__()
        self.bytes, self.files = [], []

    def message(self, text):
        if text.startswith("task "):
            gc.collect()
            self.bytes.append(psutil.Process().memory_info().rss)
            self.files.append(len(list(pathlib.Path(f"/proc/{os.getpid()}/fd").iterdir())))


@pytest.mark.parametrize("tasks", [8, pytest.param(31, marks=pytest.mark.slow)])
def test_tasks_leave_nothing_behind(tasks, tmp_path):
    c = smallest_run.get_config()
    num_classes, _ = inputs.stream_size(c)
    c.stream.initial_classes = num_classes - (tasks - 1)
    c.stream.increment = 1
    c.stream.limit_per_class = 4
    c.memory_per_class = 2
    c.train.epochs = 1
    c.replacements.tasks = ()
    gauge = Gauge()
    results = lifelong.run(c, str(tmp_path / "run"), gauge)
    assert results["num_tasks"] == len(gauge.bytes) == tasks
    assert results["train_traces"] == 1
    growth = gauge.bytes[-1] / gauge.bytes[SETTLED] - 1
    print(f"{tasks} tasks: memory {growth:+.2%} since task {SETTLED + 1}, {gauge.files[-1]} files")
    assert growth < 0.02
    assert gauge.files[-1] <= gauge.files[SETTLED]
