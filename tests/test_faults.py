"""A run that is killed at any moment and started again ends as if nothing had happened.

The programs are those of launch/ in processes of their own, on the small world of `smallworld`.
Figures for RELIABILITY.md: `python -m pytest tests/test_faults.py -n 0 -s`.
"""

import itertools
import json
import pathlib
import re
import shlex
import shutil
import signal
import statistics

import jax
import numpy as np
import pytest
import smallworld
from starter import Starter

from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.system import files
from iamcl2r_jax.system.preemption import EXIT_STATUS
from iamcl2r_jax.training import runs

CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax-small"
STAGES = {"pre-training", "task 1", "task 2", "task 3", "evaluation"}
OF_THIS_START = {"seconds", "environment", "train_traces"}  # what a results file says of itself


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "images[2024]"  # which glob takes for a pattern
    smallworld.write_images(root)
    smallworld.register()  # what checkpoints say of their network is checked when they are read
    return root


def arguments(images, directory):
    """What the run that lives in a directory is started with."""
    return (
        f"--config=tests/smallworld.py:{images}",
        f"--config.replacements.directory={directory}/models",
        f"--workdir={directory}/run",
        f"--compilation_cache={CACHE}",
        "--config.tracking.report=True",
    )


@pytest.fixture(scope="module")
def start(images):
    """Starts the run that lives in a directory: start(directory, ...), see `Starter`."""
    with Starter() as starter:

        def run(directory, *more, **request):
            return starter("main", *arguments(images, directory), *more, **request)

        yield run


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The uninterrupted run: its outcome, and how its process ended."""
    directory = tmp_path_factory.mktemp("whole")
    start(tmp_path_factory.mktemp("before"))  # compiles
    ended = start(directory, below=str(directory))
    assert ended["status"] == 0, ended["errors"]
    return outcome(directory), ended


def outcome(directory):
    """All that a run is to be remembered for: figures, memories, losses and parameters."""
    results = files.read_json(directory / "run" / "results.json")
    results["command"] = " ".join(shlex.split(results["command"]))  # odd paths are in quotes there
    records = runs.task_records(str(directory / "run"))
    told = json.dumps(
        [
            {name: value for name, value in part.items() if name not in OF_THIS_START}
            for part in (results, *records)
        ]
    )
    places = [directory / "run" / "tasks" / str(t) for t in range(smallworld.NUM_TASKS)]
    places += sorted(p for p in (directory / "models").iterdir() if p.name[0] != ".")
    return json.loads(told.replace(str(directory), "")), list(map(arrays, places))


def arrays(place):
    """The variables of a checkpoint as bytes, by name."""
    with checkpoints._checkpointer() as checkpointer, files.plain_path(place) as plain:
        stored = checkpointer.restore(
            plain, checkpoints.ocp.args.Composite(variables=checkpoints.ocp.args.StandardRestore())
        )
    leaves, _ = jax.tree_util.tree_flatten_with_path(stored["variables"])
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def leftovers(directory):
    """What is in a finished run's directories that does not belong there."""
    run = {p.name for p in (directory / "run").iterdir()}
    run -= {
        "config.json",
        "data.json",
        "numerics.json",
        "results.json",
        "tasks",
        ".lock",
        ".lock-holder",
    }
    run -= {"metrics.jsonl", "report.html", "figures"}
    models = {p.name for p in (directory / "models").iterdir() if p.name[0] == "."}
    tasks = {p.name for p in (directory / "run" / "tasks").iterdir()} - {"0", "1", "2"}
    return run | models | tasks


def stage(directory):
    """How far a run has come, by what is on disk."""
    tasks = list((directory / "run" / "tasks").glob("[0-9]"))
    if not (directory / "run" / "config.json").exists():
        return "pre-training"
    if len(tasks) == smallworld.NUM_TASKS:
        return "evaluation"
    return f"task {len(tasks) + 1}"


def run_with_interruptions(start, directory, rng, whole, signal_number, *, timed=0.2, late=False):
    """Interrupts each start at a random event or moment until one gets through.

    With `late`, the first one almost does, and is interrupted in evaluation or by its results.

    Returns:
      How each interrupted process ended, with the stage it was in and whether it was writing.
    """
    interrupted = []
    while True:
        if late and not interrupted:
            moment = {"at": whole["events"] - int(rng.integers(2, 20))}
        elif rng.random() < timed:
            moment = {"after": float(rng.uniform(0, whole["seconds"] / 4))}
        else:
            # So that most starts come further than the one before, and ten or so get through.
            moment = {"at": int(rng.integers(20, whole["events"] // 5))}
        ended = start(directory, below=str(directory), signal=signal_number, **moment)
        if ended["status"] == 0:
            return interrupted
        writing = any(".draft" in p.name for p in directory.rglob(".*"))
        interrupted.append(ended | moment | {"stage": stage(directory), "writing": writing})


def kill_again_and_again(start, whole, directory, *, seed, least):
    """Kills runs at `least` or more moments in all, in all stages; each must end as `whole`."""
    rng, kills, places = np.random.default_rng(seed), [], itertools.count()
    while len(kills) < least or not {kill["stage"] for kill in kills} >= STAGES:
        number = next(places)
        # Once a path that glob takes for a pattern; what is written through a link is no event.
        place = directory / (str(number) if number else "[0]*?")
        place.mkdir()
        late = len(kills) >= least
        kills += run_with_interruptions(start, place, rng, whole[1], signal.SIGKILL, late=late)
        assert outcome(place) == whole[0]
        assert not leftovers(place)
    assert {kill["status"] for kill in kills} == {-signal.SIGKILL}
    assert any(kill["writing"] for kill in kills)
    by_stage = [f"{sum(k['stage'] == s for k in kills)} in {s}" for s in sorted(STAGES)]
    print(f"\n{next(places)} runs killed {len(kills)} times ({', '.join(by_stage)};", end=" ")
    print(f"{sum('after' in kill for kill in kills)} by the clock;", end=" ")
    print(f"{sum(kill['writing'] for kill in kills)} while a checkpoint was being written)")
    again = statistics.median(kill["until_step"] for kill in kills if kill["until_step"])
    print(f"recovery: {again:.1f} s from a start to its first step of training (median)")


def test_killed_anywhere_a_run_ends_with_the_same_bits(start, whole, tmp_path):
    kill_again_and_again(start, whole, tmp_path, seed=0, least=20)


@pytest.mark.slow
def test_killed_at_many_more_moments(start, whole, tmp_path):
    kill_again_and_again(start, whole, tmp_path, seed=1, least=200)


def test_sigterm_saves_and_the_next_start_continues(start, whole, tmp_path):
    rng = np.random.default_rng(2)
    stops = run_with_interruptions(start, tmp_path, rng, whole[1], signal.SIGTERM, timed=0)
    assert len(stops) >= 3
    assert {stop["status"] for stop in stops} == {EXIT_STATUS}
    assert max(stop["after_signal"] for stop in stops) < 10
    assert all(
        stop["errors"] == "error: asked to stop; the same command continues\n" for stop in stops
    )
    assert outcome(tmp_path) == whole[0]
    assert not leftovers(tmp_path)
    slowest = max(stop["after_signal"] for stop in stops)
    print(f"\nasked to stop {len(stops)} times, ended within {slowest:.1f} s")


def test_a_second_process_is_refused_and_names_the_first(start, images, whole, tmp_path):
    """While the first one, held by SIGSTOP, makes an external model, and while it runs a task."""
    for share in (0.1, 0.6):
        second = {"program": "main", "args": arguments(images, tmp_path)}
        first = start(
            tmp_path,
            below=str(tmp_path),
            signal=signal.SIGSTOP,
            at=int(share * whole[1]["events"]),
            meanwhile=second,
        )
        assert first["meanwhile"]["status"] == 2
        assert re.fullmatch(
            rf"error: {tmp_path}/\S+ is being written by process {first['pid']} on \S+; wait "
            "for it, end it, or choose another directory\n",
            first["meanwhile"]["errors"],
        )
        assert first["status"] == 0
        assert outcome(tmp_path) == whole[0]
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "models")


def test_damage_while_a_run_is_down_costs_time_and_no_result(start, whole, tmp_path):
    """Killed in the last task; then its newest state and the second task's model are damaged."""
    at = int(0.85 * whole[1]["events"])
    start(tmp_path, below=str(tmp_path), signal=signal.SIGKILL, at=at)
    assert stage(tmp_path) in ("task 3", "evaluation")
    for place in [*(tmp_path / "run" / "progress").glob("*/[0-9]*"), tmp_path / "run/tasks/1"]:
        largest = max((place / "variables").rglob("*"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-7])
    assert start(tmp_path)["status"] == 0
    assert outcome(tmp_path) == whole[0]
    assert len(list((tmp_path / "run" / "set_aside").iterdir())) >= 1


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(start, whole, tmp_path):
    """Files cannot grow beyond some bytes, which fails within Orbax's writing threads."""
    ended = start(tmp_path, largest_file=2500)
    assert ended["status"] == 1
    lines = [line for line in ended["errors"].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended["errors"]
    assert re.fullmatch(
        rf"error: {tmp_path}/\S+ cannot be written \(File too large\); what was saved before is "
        "whole, and once there is room or permission the same command continues",
        lines[0],
    )
    assert start(tmp_path)["status"] == 0
    assert outcome(tmp_path) == whole[0]
    assert not leftovers(tmp_path)


def test_a_workdir_that_cannot_be_written_is_told_before_anything_is_done(start, tmp_path):
    ended = start(tmp_path, "--workdir=/proc/run")
    assert ended["status"] == 1
    assert ended["errors"].startswith("error: /proc/run cannot be written (")
    assert ended["errors"].count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_divergence_names_its_place_and_can_be_gone_through_again(start, tmp_path):
    """A rate and a decay that no step forgives; pre-training is as ever."""
    extreme = (
        "--config.train.learning_rate=1e2",
        "--config.train.optimizer_options.sgd.weight_decay=1e3",
    )
    first = start(tmp_path, *extreme)
    again = start(tmp_path, *extreme)
    assert first["status"] == again["status"] == 1
    said = re.fullmatch(
        r"error: task 1/3, epoch (\d), step (\d): loss or gradient is not finite; try a lower "
        r"train\.learning_rate\n",
        first["errors"],
    )
    assert again["errors"] == first["errors"]
    place = tmp_path / "run" / "progress" / "0"
    noted = files.read_json(place / "divergence.json")
    assert (noted["epoch"] + 1, noted["step"] + 1) == tuple(map(int, said.groups()))
    assert noted["training"] == "task 1/3"
    assert noted["last_good_states"]
    for number in noted["last_good_states"]:
        checkpoints.verify(str(place / f"{number:06d}"))
        record = checkpoints.load_metadata(str(place / f"{number:06d}"))
        assert len(record["position"]["history"]) <= noted["epoch"]
        assert all(np.isfinite(e["loss"]) for e in record["position"]["history"])


@pytest.mark.parametrize(
    "text",
    [
        "train.epochs=-1",
        "train.epochs=many",
        "train.learning_rate=nan",
        "train.learning_rate=1e999",
        "num_slots=5",
        "num_slots=999999999999",
        "stream.dataset=folder:/nowhere",
        "stream.train_split=../..",
        "replacements.tasks=(0,9)",
        "replacements.tasks=(",
        "replacements.checkpoints=('a','b')",
        "model.options.width=wide",
        "model.options=3",
        "image.mean=(None,0,0)",
        "metrics=('x',)",
        "evaluations=3",
        "name=a/b",
        "saving.steps_per_call=0",
        "nothing=1",
    ],
)
def test_a_wrong_flag_is_one_line_on_standard_error(start, tmp_path, text):
    ended = start(tmp_path, f"--config.{text}")
    assert ended["status"] == 2, ended
    assert ended["errors"].startswith("error: ")
    assert ended["errors"].count("\n") == 1, ended["errors"]
    assert not list(tmp_path.iterdir())
