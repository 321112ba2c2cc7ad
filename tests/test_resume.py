"""Where a training stands, on disk: the newest intact state, damage, errors of the writing thread.

And what SIGTERM does. Nothing here is compiled.
"""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import chex
import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from iamcl2r_jax import config, models
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.system import files, preemption
from iamcl2r_jax.system.errors import DivergenceError, InputError, PreemptedError
from iamcl2r_jax.system.preemption import on_sigterm
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.resume import Position, ProgressStore
from iamcl2r_jax.training.step import TrainState


def state_of(value):
    """A state with an empty part, as that of a model without normalisation is."""
    leaf = jax.numpy.full((2, 3), value, jax.numpy.float32)
    return TrainState({"w": leaf}, {}, (jax.numpy.asarray(value, jax.numpy.int32), {"w": -leaf}))


def position_of(epoch, step=0):
    """After so many epochs, with a sum that is no short decimal."""
    history = tuple({"loss": 0.1 + e, "accuracy": 1 / 3} for e in range(epoch))
    return Position(history, step, {"loss": 0.1 * step} if step else {})


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "said").open("w") as file:
        yield Console(file=file, width=400)


@pytest.fixture
def said(tmp_path, console):
    def text():
        console.file.flush()
        return (tmp_path / "said").read_text()

    return text


@pytest.fixture
def make_store(tmp_path, console):
    """Makes stores of one directory, as the starts of one command do."""

    def make(**cadence):
        cadence = {"every_epochs": 1, "every_seconds": 0.0} | cadence
        return ProgressStore(str(tmp_path / "progress"), ConfigDict(cadence), Reporter(console))

    return make


def save(store, *positions):
    for position in positions:
        store.save(state_of(10 * position.epoch + position.step), position)
    store.wait()


def assert_stands(store, epoch, step=0):
    """The newest state is that of this position, bit by bit."""
    state, position = store.latest(state_of(-1))
    assert position == position_of(epoch, step)
    chex.assert_trees_all_equal(state, state_of(10 * epoch + step))


def numbers(tmp_path):
    return sorted(child.name for child in (tmp_path / "progress").iterdir())


def test_without_anything_saved_training_starts_as_it_is(make_store):
    state, position = make_store().latest(state_of(-1))
    assert position == Position()
    chex.assert_trees_all_equal(state, state_of(-1))


def test_the_newest_state_and_position_come_back_bit_by_bit(make_store):
    save(make_store(), position_of(1), position_of(2), position_of(2, 3))
    assert_stands(make_store(), 2, 3)


def test_only_two_are_kept_and_numbers_go_on(make_store, tmp_path):
    save(make_store(), *map(position_of, range(1, 5)))
    assert numbers(tmp_path) == ["000003", "000004"]
    save(make_store(), position_of(5))
    assert numbers(tmp_path) == ["000004", "000005"]


@pytest.mark.parametrize("kind", ["flipped", "cut", "file gone", "manifest gone", "a file"])
def test_a_damaged_newest_gives_way_to_the_one_before(make_store, tmp_path, said, kind):
    save(make_store(), position_of(1), position_of(2))
    newest = tmp_path / "progress" / "000002"
    data = max(
        (f for f in (newest / "variables").rglob("*") if f.is_file()),
        key=lambda f: f.stat().st_size,
    )
    match kind:
        case "flipped":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        case "cut":
            data.write_bytes(data.read_bytes()[:-1])
        case "file gone":
            data.unlink()
        case "manifest gone":
            (newest / "manifest.json").unlink()
        case "a file":
            shutil.rmtree(newest)
            newest.write_text("?")
    store = make_store()
    assert_stands(store, 1)
    assert "000002" in said()
    assert "going back to the one before" in said()
    save(store, position_of(2, 1))
    assert_stands(make_store(), 2, 1)


def test_when_all_are_damaged_training_starts_again(make_store, tmp_path, said):
    save(make_store(), position_of(1), position_of(2))
    for number in ("000001", "000002"):
        (tmp_path / "progress" / number / "metadata.json").write_text("{}")
    _, position = make_store().latest(state_of(-1))
    assert position == Position()
    assert said().count("going back") == 2


@pytest.mark.parametrize("name", ["manifest.json", "metadata.json"])
def test_what_merely_cannot_be_read_is_kept(make_store, tmp_path, name):
    save(make_store(), position_of(1), position_of(2))
    file = tmp_path / "progress" / "000002" / name
    content = file.read_bytes()
    file.unlink()
    file.symlink_to(file.name)  # opening it is an error, for root as well
    with pytest.raises(InputError, match=r"000002 cannot be read .*symbolic links"):
        make_store().latest(state_of(-1))
    assert numbers(tmp_path) == ["000001", "000002"]
    file.unlink()
    file.write_bytes(content)
    assert_stands(make_store(), 2)


def test_what_cannot_be_removed_is_mentioned_once_and_does_no_harm(
    make_store, tmp_path, said, monkeypatch
):
    store = make_store()

    def held(path):
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path(tmp_path)), "rmtree", held)
        save(store, *map(position_of, range(1, 6)))
        assert_stands(make_store(), 5)
        store.clear()
    (line,) = said().splitlines()
    assert "progress/000001 cannot be removed (Device or resource busy)" in line
    save(make_store(), position_of(6))
    assert numbers(tmp_path) == ["000005", "000006"]  # tried again
    make_store().clear()
    assert not (tmp_path / "progress").exists()


def test_an_unfinished_save_counts_for_nothing(make_store, tmp_path):
    """What a process leaves that is killed while it writes: a draft."""
    save(make_store(), position_of(1))
    shutil.copytree(tmp_path / "progress" / "000001", tmp_path / "progress" / ".000002.draft")
    assert_stands(make_store(), 1)
    save(make_store(), position_of(2))
    assert_stands(make_store(), 2)


def test_an_error_of_the_writing_thread_surfaces_at_the_next_save(make_store, monkeypatch):
    store = make_store()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", full_disk)
        store.save(state_of(10), position_of(1))
        with pytest.raises(OSError, match="No space left"):
            store.save(state_of(20), position_of(2))
        store.save(state_of(20), position_of(2))
        with pytest.raises(OSError, match="No space left"):
            store.wait()
    save(store, position_of(3))  # with room again, it goes on
    assert_stands(make_store(), 3)


def test_saving_runs_beside_the_training(make_store, monkeypatch):
    """`save` returns before the state is written, and takes a copy: the buffers are donated."""
    go, save_now = threading.Event(), checkpoints.save

    def slow(*args):
        assert go.wait(60)
        save_now(*args)

    monkeypatch.setattr(checkpoints, "save", slow)
    store, state = make_store(), state_of(10)
    store.save(state, position_of(1))
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    go.set()
    store.wait()
    assert_stands(make_store(), 1)


def test_a_cleared_store_leaves_nothing(make_store, tmp_path):
    store = make_store()
    store.save(state_of(10), position_of(1))  # still being written
    store.clear()
    assert not (tmp_path / "progress").exists()


def test_cadence_in_epochs_and_in_seconds(make_store, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("iamcl2r_jax.training.resume.time.monotonic", lambda: now[0])
    by_epochs, by_seconds, never = (
        make_store(every_epochs=2),
        make_store(every_epochs=0, every_seconds=5.0),
        make_store(every_epochs=0),
    )
    assert [by_epochs.due(position_of(*p)) for p in ((1, 9), (2,), (3,))] == [False, True, True]
    save(by_epochs, position_of(2))
    assert [by_epochs.due(position_of(e)) for e in (2, 3, 4)] == [False, False, True]
    continued = make_store(every_epochs=2)
    continued.latest(state_of(-1))
    assert [continued.due(position_of(e)) for e in (3, 4)] == [False, True]
    now[0] = 104.9
    assert not by_seconds.due(position_of(50))
    now[0] = 105.0
    assert by_seconds.due(position_of(0, 1))
    assert not never.due(position_of(1000))


def test_saving_the_default_costs_less_than_3_percent(make_store, tmp_path):
    """Processor time of all threads for one save of the embedded default, once a minute."""
    c = config.default()
    model = models.create(c.model.backbone, c.num_slots - 1, **c.model.options)
    shapes, rng = models.expected_variables(model, c.image.size), np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
        (shapes["params"], shapes["batch_stats"]),
    )
    state = TrainState(params, batch_stats, {"momentum": params})
    store = make_store()
    save(store, position_of(1))  # what only the first one costs
    started, shown = time.process_time(), time.monotonic()
    store.save(state, position_of(2))
    blocked = time.monotonic() - shown
    store.wait()
    share = (time.process_time() - started) / c.saving.every_seconds
    size = sum(f.stat().st_size for f in (tmp_path / "progress/000002").rglob("*") if f.is_file())
    print(
        f"\none save, {size / 1e6:.1f} MB: {share:.2%} of a minute; training waits {blocked:.3f} s"
    )
    assert share < 0.03


def test_divergence_is_noted_beside_the_last_good_state(make_store, tmp_path):
    store = make_store()
    save(store, position_of(1))
    store.note_divergence(DivergenceError(1, 4, "task 1/3"), [0.5, 0.25])
    noted = files.read_json(str(tmp_path / "progress" / "divergence.json"))
    assert noted["training"] == "task 1/3"
    assert (noted["epoch"], noted["step"], noted["learning_rate"]) == (1, 4, 0.25)
    assert noted["last_good_states"] == [1]
    assert_stands(make_store(), 1)


# --- SIGTERM ------------------------------------------------------------------------------------


def test_sigterm_is_a_request():
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm() as asked:
        asked.check()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not asked.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(PreemptedError, match="the same command continues"):
            asked.check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_signal_is_none():
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with on_sigterm() as asked:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)
            assert not asked.requested
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_request_without_effect_ends_the_process_all_the_same():
    """Here the main thread never comes back to Python, as when XLA compiles for long."""
    program = textwrap.dedent("""
        import ctypes
        from iamcl2r_jax.system import preemption
        preemption._GRACE_SECONDS = 0.3
        with preemption.on_sigterm():
            print("ready", flush=True)
            while True:
                ctypes.CDLL(None).usleep(60_000_000)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == preemption.EXIT_STATUS == 75
    assert time.monotonic() - started < 5
    assert "the same command continues" in errors
    assert len(errors.strip().splitlines()) == 1
