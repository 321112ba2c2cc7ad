"""Streamed training is resident training: the same samples in the same order, the same bits."""

import pathlib
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from fitting import fitted
from ml_collections import ConfigDict
from rich.console import Console
from test_training import BATCH, make_arguments, make_program, task_data

from iamcl2r_jax import config
from iamcl2r_jax.data import streaming
from iamcl2r_jax.data.sampling import make_pool, sample_batch, shuffled, steps_per_epoch
from iamcl2r_jax.data.streaming import Dataset, HostDataset
from iamcl2r_jax.models import stored
from iamcl2r_jax.system.errors import InputError, PreemptedError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import external, lifelong, pretraining, runs
from iamcl2r_jax.training.step import CompiledEpoch

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# New samples and memory: none, half a batch each, a pool smaller than a batch.
POOLS = {"no memory": (20, 0), "memory": (20, 10), "small": (5, 0)}


def pools(kind):
    new, memory = POOLS[kind]
    return make_pool(np.arange(new), 24), make_pool(np.arange(20, 20 + memory), 16)


@pytest.fixture(scope="module")
def given():
    return make_arguments(make_program())


@pytest.fixture(scope="module")
def on_host(given):
    return HostDataset(*map(np.asarray, (given["dataset"].images, given["dataset"].labels)))


@pytest.fixture(scope="module")
def epochs():
    """The compiled programs, resident and streamed: of the same program, as of one run."""
    return CompiledEpoch(make_program()), CompiledEpoch(make_program())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if "grain" in thread.name]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("steps_per_call", [2, 100])
def test_blocks_hold_what_the_sampler_draws(tmp_path, kind, steps_per_call):
    """Against a loop over the steps, with the keys by hand; images mapped from a file."""
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(40, 4, 4, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape)
    labels = np.arange(100, 140, dtype=np.int32)
    new, memory = pools(kind)
    num_steps = steps_per_epoch(int(new.size), int(memory.size), BATCH)
    calls = [(epoch, first) for epoch in (0, 3) for first in range(0, num_steps, steps_per_call)]
    streamed = streaming.blocks(
        HostDataset(images, labels),
        new,
        memory,
        calls,
        jax.random.key(7),
        batch_size=BATCH,
        steps_per_call=steps_per_call,
        batch_sharding=None,
    )
    shapes = set()
    for (epoch, first), block in zip(calls, streamed, strict=True):
        shapes.add(block.images.shape)
        key_shuffle, key_steps = jax.random.split(jax.random.fold_in(jax.random.key(7), epoch))
        in_order = shuffled(key_shuffle, new)
        for step in range(first, min(first + steps_per_call, num_steps)):
            key, _ = jax.random.split(jax.random.fold_in(key_steps, step))
            indices, from_memory = sample_batch(key, step, in_order, memory, BATCH)
            np.testing.assert_array_equal(block.images[step - first], images[np.array(indices)])
            np.testing.assert_array_equal(block.labels[step - first], labels[np.array(indices)])
            np.testing.assert_array_equal(block.from_memory[step - first], from_memory)
    # As many steps as there can be: of 24 new samples and 16 of the memory.
    assert shapes == {(min(steps_per_call, 5), BATCH, 4, 4, 3)}


def trained(epoch, given, start=None, **options):
    """A copy of the state after each call, and its position."""
    arguments = given["variables"], task_data(given), [0.1, 0.05], jax.random.key(3)
    return fitted(epoch, *arguments, start=start, **options)


def assert_same(ours, expected):
    for (state, position), (expected_state, expected_position) in zip(ours, expected, strict=True):
        chex.assert_trees_all_equal(state, expected_state)
        assert position == expected_position


@pytest.mark.parametrize("kind", POOLS)
def test_streamed_is_resident_from_every_position(given, on_host, epochs, kind):
    """Every call's state and sums, also of a training that goes on from any of them, or is done."""
    resident, streamed = epochs
    given = given | dict(zip(("new", "memory"), pools(kind), strict=True))
    expected = trained(resident, given, steps_per_call=2)
    assert len(expected) >= 2
    given["dataset"] = on_host
    ours = trained(streamed, given, steps_per_call=2)
    assert_same(ours, expected)
    for done, (state, position) in enumerate(expected, 1):
        rest = trained(
            streamed, given, jax.tree.map(jnp.array, state), position=position, steps_per_call=2
        )
        assert_same(rest, expected[done:])


def test_one_trace_for_all_sizes(given, on_host):
    epoch = CompiledEpoch(make_program())
    for kind in POOLS:
        new, memory = pools(kind)
        trained(
            epoch,
            given | {"dataset": on_host, "new": new, "memory": memory},
            steps_per_call=2,
        )
    assert epoch.traces == 1


def test_an_error_of_the_reading_is_raised(given, on_host, epochs):
    positions_too_many = HostDataset(on_host.images[:5], on_host.labels)
    with pytest.raises(IndexError, match="out of bounds"):
        trained(epochs[1], given | {"dataset": positions_too_many}, steps_per_call=2)


def test_a_training_that_is_given_up_reads_no_further(given, on_host, epochs):
    class AfterOneCall(Preemption):
        def agreed(self):
            return [thread for thread in threading.enumerate() if "grain" in thread.name]

    data = task_data(given | {"dataset": on_host})
    options = {"steps_per_call": 2, "preemption": AfterOneCall()}
    with pytest.raises(PreemptedError):  # and no thread is left
        fitted(epochs[1], given["variables"], data, [0.1] * 50, jax.random.key(0), **options)


@pytest.mark.parametrize(("gib", "kind"), [(1.0, Dataset), (0.99, HostDataset), (0, HostDataset)])
def test_the_size_decides(monkeypatch, gib, kind):
    monkeypatch.setattr(streaming.parallel, "replicate", lambda tree, _: tree)
    images = np.broadcast_to(np.uint8(0), (2**18, 32, 32, 4))  # takes no memory
    assert isinstance(streaming.place(images, np.zeros(2**18), gib, None), kind)


def test_on_the_device_an_image_is_one_line_of_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    placed = streaming.place(images, np.zeros(5), 1.0, None)
    assert placed.pixels.shape == (5, 36)
    np.testing.assert_array_equal(placed.images, images)
    assert np.shares_memory(Dataset.of(images, np.zeros(5)).pixels, images)


# --- Whole runs -----------------------------------------------------------------------------


class StopAt(Preemption):
    """Asks to stop when it is looked for the n-th time."""

    def __init__(self, number):
        super().__init__()
        self.left = number

    def agreed(self):
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    small_runs.write_images(root, stream=4, open=2, external=4)
    return root


@pytest.fixture
def small(monkeypatch):
    small_runs.register(monkeypatch)


@pytest.fixture
def said(tmp_path):
    """A reporter, and what it has said."""
    with (tmp_path / "said").open("w+") as file:
        yield Reporter(Console(file=file, width=400)), file


def finish_stopped(run, stops, said):
    """Calls `run` until it is through; asked to stop once in each of the first few calls."""
    reporter, file = said
    for number in stops:
        with pytest.raises(PreemptedError):
            run(reporter, StopAt(number))
    outcome = run(reporter, Preemption())
    file.seek(0)
    return outcome, file.read()


def test_a_streamed_run_stopped_within_an_epoch_is_the_resident_run(small, images, tmp_path, said):
    """Two tasks, the second with memory, on which the loss looks: models, metrics and figures."""
    c = small_runs.small_config(images, "simplex_fd")
    c.stream.increment = 2
    c.saving.steps_per_call = 1
    resident, streamed = tmp_path / "resident", tmp_path / "streamed"
    expected = lifelong.run(c, str(resident))
    assert expected["num_tasks"] == 2

    c.resident_gib = 0.0
    results, text = finish_stopped(lambda *with_: lifelong.run(c, str(streamed), *with_), [1], said)
    assert "task 1/2: continuing after epoch 0, step 1" in text
    assert results["train_traces"] == 1
    assert results["evaluations"] == expected["evaluations"]
    for task in range(2):
        ours, theirs = (runs.load_task(c, str(place), task) for place in (streamed, resident))
        chex.assert_trees_all_equal(ours.variables, theirs.variables)
    ours, theirs = (runs.task_records(str(place)) for place in (streamed, resident))
    for field in ("history", "memory", "task_accuracy"):
        assert [record[field] for record in ours] == [record[field] for record in theirs]
    # Where the images are is no part of what a run is.
    c.resident_gib = 8.0
    assert lifelong.run(c, str(streamed)) == results


def test_imagenet32_is_pre_trained_both_ways(small, images, tmp_path, said):
    c = config.load(str(CONFIGS / "pretrain_imagenet32.py"))
    whole = np.broadcast_to(np.uint8(0), (1_281_167, 32, 32, 3))  # its size, without the memory
    for gib, fits in ((c.resident_gib, True), (3.0, False)):
        c.resident_gib = gib
        config.validate_pretrain(c)
        assert streaming.fits(whole, gib) == fits

    c = c.copy_and_resolve_references().unlock()
    c.dataset, c.test_split, c.classes = f"folder:{images / 'external'}", "test", 4
    c.image.size, c.image.augmentation_options.crop_flip.padding = small_runs.SIZE, 1
    c.model.backbone, c.model.options = "small", ConfigDict()
    c.train.epochs, c.train.batch_size, c.train.learning_rate = 2, 4, 0.01
    c.saving.steps_per_call = 2
    found = []
    for name, gib in (("resident", 1.0), ("streamed", 0.0)):
        c.resident_gib = gib
        path = external.checkpoint_path(str(tmp_path / name), c, 4)

        def run(*with_, path=path):
            return pretraining.pretrain(c, {4: path}, *with_)[4]

        made, text = finish_stopped(run, [2] if name == "streamed" else [], said)
        assert ("continuing after epoch 0, step 4" in text) == (name == "streamed")
        model = stored.load_model(path)
        found.append((pathlib.Path(path).name, made.metadata.about["history"], model.variables))
    (name, history, variables), (expected_name, expected_history, expected) = reversed(found)
    assert name == expected_name
    assert history == expected_history
    chex.assert_trees_all_equal(variables, expected)


def test_several_seeds_at_once_are_not_streamed(small, images, tmp_path):
    c = small_runs.small_config(images)
    c.num_seeds, c.resident_gib = 2, 0.0
    with pytest.raises(
        InputError, match=r"^resident_gib=0\.0: must be at least 3\.5762786865234375e-06, .*num_s"
    ):
        lifelong.run(c, str(tmp_path / "run"))
