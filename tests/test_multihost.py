"""Real processes that make one job: two of two devices each obtain what one of four does.

They meet on loopback, over Gloo. Its sums over devices are taken in another order than those inside
one process, so that losses differ by rounding, which training enlarges.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import smallest_run

from iamcl2r_jax.system import distributed
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.training import runs

PATIENCE = 900  # seconds until something counts as hanging; this machine may be busy


@pytest.fixture(autouse=True)
def smallest_network(monkeypatch):
    """What the runs left is read here."""
    smallest_run.register(monkeypatch)


def start(workdir, *flags, devices, external=None):
    """Starts the smallest run in `workdir`, in a process of its own that has so many devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiled fast rather than well: next to nothing is computed.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }
    directory = f"--config.replacements.directory={external or f'{workdir}-external'}"
    return subprocess.Popen(
        [sys.executable, smallest_run.__file__, f"--workdir={workdir}", directory, *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(workdir, *flags):
    """The same in two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(
            workdir,
            f"--coordinator={coordinator}",
            "--num_processes=2",
            f"--process_id={n}",
            *flags,
            devices=2,
        )
        for n in range(2)
    ]


def output_of(process, status=0):
    """What a process has printed, once it has ended with this status."""
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == status, output
    return output


def histories(workdir):
    return [record["history"] for record in runs.task_records(str(workdir))]


def losses(workdir):
    return np.array([[epoch["loss"] for epoch in history] for history in histories(workdir)])


def evaluations(workdir):
    return json.loads((workdir / "results.json").read_text())["evaluations"]


def matrix(workdir):
    return np.array(evaluations(workdir)["digits"]["matrix"], float)


def assert_same_but_for_rounding(workdir, other):
    np.testing.assert_allclose(losses(workdir), losses(other), rtol=1e-4)
    # One query of 200 may change sides.
    np.testing.assert_allclose(matrix(workdir), matrix(other), atol=1.001 / 200)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Workdirs of the run in one process of four devices, and in two of two; and what each said."""
    directory = tmp_path_factory.mktemp("runs")
    one, two = directory / "one", directory / "two"
    processes = [start(one, devices=4), *start_two(two)]
    return one, two, [output_of(process) for process in processes]


def test_two_processes_obtain_what_one_does(jobs):
    one, two, _ = jobs
    assert losses(one).shape == (3, 2)
    assert_same_but_for_rounding(two, one)
    results = json.loads((two / "results.json").read_text())
    device = results["environment"]["device"]
    assert (device["count"], device["processes"]) == (4, 2)
    assert results["train_traces"] == 1


def test_only_the_first_process_speaks(jobs):
    *_, (alone, first, second) = jobs
    for output in (alone, first):
        assert "task 3/3" in output
        assert "results:" in output
    assert not [line for line in second.splitlines() if not line.startswith("[Gloo]")]


def test_death_of_a_process_ends_the_other_and_the_job_continues(jobs, tmp_path):
    """Streamed images or not; and what the four devices have left, one and eight can continue."""
    _, two, _ = jobs
    workdir = tmp_path / "killed"
    shutil.copytree(f"{two}-external", f"{workdir}-external")
    first, second = start_two(workdir, "--config.saving.every_seconds=0.01")
    wait_for(workdir / "progress" / "1" / "000001", first)
    second.kill()
    killed = time.monotonic()
    output = first.communicate(timeout=PATIENCE)[0]
    assert time.monotonic() - killed < 60
    assert first.returncode != 0
    assert "another task died" in output
    second.communicate()
    assert not (workdir / "results.json").exists()

    elsewhere = {devices: tmp_path / f"on-{devices}" for devices in (1, 8)}
    for copy in elsewhere.values():
        shutil.copytree(workdir, copy)
    processes = start_two(workdir, "--config.resident_gib=0") + [
        start(copy, devices=devices, external=f"{workdir}-external")
        for devices, copy in elsewhere.items()
    ]
    outputs = [output_of(process) for process in processes]
    for n in (0, 2, 3):
        assert "continuing" in outputs[n]
    assert histories(workdir) == histories(two)
    assert evaluations(workdir) == evaluations(two)
    for copy in elsewhere.values():
        assert_same_but_for_rounding(copy, two)


def wait_for(path, process):
    ends = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "a:1", "process_id": 0}, "--num_processes: needed too"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, r"must be in 0\.\.1"),
    ],
)
def test_flags_that_make_no_job_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        distributed.join(**flags)


STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_STEP_NUM_TASKS": "4",
}


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        # A batch script, and a shell of `salloc`: SLURM_STEP_* are those of srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        (STEP, True),
    ],
)
def test_only_steps_of_several_tasks_are_joined(monkeypatch, environment, joins):
    calls = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *a, **k: calls.append(a))
    monkeypatch.setattr(distributed, "_connect_devices", lambda: None)
    set_slurm(monkeypatch, environment)
    distributed.join()
    assert calls == ([(None, None, None)] if joins else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": None, "SLURM_STEP_NODELIST": None}, "SLURM_PROCID=, SLURM_STEP_NODEL"),
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID=x: must be as srun sets it"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many: must be"),
    ],
)
def test_variables_of_slurm_that_are_not_all_there_are_one_line(monkeypatch, change, message):
    set_slurm(monkeypatch, {n: v for n, v in (STEP | change).items() if v is not None})
    with pytest.raises(InputError, match=f"^{message}"):
        distributed.join()


def set_slurm(monkeypatch, environment):
    for name in STEP:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_process_whose_job_does_not_come_says_so_and_ends():
    with socket.socket() as held:  # a port that nobody else takes meanwhile
        held.bind(("localhost", 0))
        place = f"localhost:{held.getsockname()[1]}"
    program = (
        "from iamcl2r_jax.system import distributed\n"
        f"distributed.join({place!r}, 3, 0, start_seconds=1)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE
    )
    waiting = f"waiting for the other 2 of 3 processes at {place}"
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"{waiting}, 1 s at most",
        f"error: gave up {waiting} after 1 s",
    ]


def test_processes_alone_agree_with_themselves():
    assert distributed.is_first()
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
    distributed.check_same("anything", {"a": 1})
    distributed.wait_for_all("somewhere")
