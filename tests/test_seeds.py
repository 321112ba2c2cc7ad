"""Seeds trained at once are the runs of each alone, up to rounding."""

import json
from functools import partial

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from iamcl2r_jax import config, models
from iamcl2r_jax.data import sources
from iamcl2r_jax.models import stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DivergenceError, InputError, PreemptedError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.training import lifelong, runs

# Float32 rounding, amplified over 26 steps: variables were found to differ by up to 3.3e-6, metrics
# by 2.3e-7; the two seeds by more than 0.01.
TOLERANCE = 1e-4


class Tiny(nn.Module):
    """One linear layer and a normalisation: next to no compile time."""

    num_features: int

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(self.num_features)(images.reshape(len(images), -1))
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight classes of random images, 12 to train on and 4 held out of each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 4)):
        for label in range(8):
            place = root / split / str(label)
            place.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{index:02d}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The tiny network as a backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BACKBONES, "tiny", partial(Tiny))
        yield


def make_config(folder, method="hoc", **fields):
    c = config.default()
    c.name, c.num_slots, c.image.size, c.method = "seeds", 24, 8, method
    c.model.backbone, c.model.options = "tiny", {}
    c.train.epochs, c.train.batch_size, c.train.learning_rate = 2, 8, 0.05
    c.stream.dataset, c.stream.initial_classes, c.stream.increment = folder, 4, 4
    c.memory_per_class, c.replacements.tasks = 3, ()
    c.evaluations = {"images": config.evaluation(folder).to_dict()}
    c.metrics = ("identification",)
    c.tracking.report = False
    c.update(fields)
    return c


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """Workdir and summary of seeds 3 and 4, for which each image set was loaded once."""
    workdir, loaded = tmp_path_factory.mktemp("together"), []

    def load(dataset, split, **options):
        loaded.append((dataset, split))
        return load_images(dataset, split, **options)

    load_images = sources.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", load)
        summary = lifelong.run(make_config(folder, seed=3, num_seeds=2), str(workdir))
    # The stream's two splits, and the same two as queries and gallery.
    assert sorted(loaded) == sorted(2 * [(folder, "train"), (folder, "test")])
    return workdir, summary


def assert_same_run(c, workdir, alone):
    """Every task's model, memory and metrics."""
    for task, record in enumerate(runs.task_records(str(workdir))):
        other = runs.task_records(str(alone))[task]
        assert record["memory"] == other["memory"]
        slots = [
            stored.load_metadata(runs.task_path(str(place), task)).slots
            for place in (workdir, alone)
        ]
        assert slots[0] == slots[1]
        pair = (runs.load_task(c, str(place), task).variables for place in (workdir, alone))
        chex.assert_trees_all_close(*pair, rtol=TOLERANCE, atol=TOLERANCE)
        for metrics, expected in zip(record["history"], other["history"], strict=True):
            assert metrics.keys() == expected.keys()
            for name, value in metrics.items():
                assert value == pytest.approx(expected[name], rel=TOLERANCE, abs=TOLERANCE)


@pytest.fixture(scope="module")
def separate(folder, tmp_path_factory):
    """Workdirs and results of each seed alone."""
    found = {}
    for seed in (3, 4):
        workdir = tmp_path_factory.mktemp(f"alone{seed}")
        found[seed] = workdir, lifelong.run(make_config(folder, seed=seed), str(workdir))
    return found


@pytest.mark.parametrize("seed", [3, 4])
def test_each_seed_is_the_run_of_it_alone(folder, together, separate, seed):
    workdir, alone = together[0] / f"seed{seed}", separate[seed][0]
    assert_same_run(make_config(folder, seed=seed), workdir, alone)
    written = files.read_json(str(workdir / "results.json"))
    np.testing.assert_allclose(
        written["evaluations"]["images"]["aa"], separate[seed][1]["evaluations"]["images"]["aa"]
    )
    assert written.keys() == separate[seed][1].keys()


def test_seeds_differ(folder, together):
    first, second = (
        runs.load_task(make_config(folder), str(together[0] / f"seed{seed}"), 0).variables
        for seed in (3, 4)
    )
    kernels = (v["params"]["Dense_0"]["kernel"] for v in (first, second))
    assert np.abs(np.subtract(*kernels)).max() > 0.01


def test_the_summary_is_over_the_seeds(together, separate):
    workdir, summary = together
    assert files.read_json(str(workdir / "results.json")) == summary
    assert summary["seeds"] == [3, 4]
    aa = summary["evaluations"]["images"]["aa"]
    values = [separate[seed][1]["evaluations"]["images"]["aa"] for seed in (3, 4)]
    np.testing.assert_allclose(aa["values"], values)
    expected = np.mean(values), np.std(values, ddof=1)
    np.testing.assert_allclose([aa["mean"], aa["std"]], expected)


def test_a_seed_of_them_is_an_ordinary_finished_run(folder, together):
    """Nothing is trained, and another configuration is refused."""
    place = str(together[0] / "seed4")
    assert lifelong.run(make_config(folder, seed=4), place)["seed"] == 4
    with pytest.raises(InputError, match="seed: 4 there, 5 here"):
        lifelong.run(make_config(folder, seed=5), place)


class StopsSoon(Preemption):
    """Is asked to stop when it is looked at for the so many-th time."""

    def __init__(self, looks):
        self._looks = looks

    @property
    def requested(self):
        self._looks -= 1
        return self._looks < 0


@pytest.mark.parametrize(("looks", "task"), [(0, 0), (2, 1)])
def test_stopped_seeds_go_on_as_if_they_had_not_been(folder, together, tmp_path, looks, task):
    """After the first of two epochs of the first task, and of the second; one look an epoch."""
    c = make_config(folder, seed=3, num_seeds=2)
    with pytest.raises(PreemptedError):
        lifelong.run(c, str(tmp_path), preemption=StopsSoon(looks))
    left = [path.name for path in (tmp_path / "progress").iterdir()]
    assert left == [f"{task}-3-4"]
    lifelong.run(c, str(tmp_path))
    for seed in (3, 4):
        places = [place / f"seed{seed}" for place in (together[0], tmp_path)]
        for number in range(2):
            pair = (runs.load_task(c, str(place), number).variables for place in places)
            chex.assert_trees_all_equal(*pair)


def test_the_seed_that_diverges_is_named(folder, tmp_path, monkeypatch):
    start_variables = lifelong.start_variables

    def broken(c, *args, **options):
        variables = start_variables(c, *args, **options)
        return jax.tree.map(lambda leaf: leaf * np.nan, variables) if c.seed == 4 else variables

    monkeypatch.setattr(lifelong, "start_variables", broken)
    which = "task 1/2 of 2 seeds, seed 4"
    with pytest.raises(DivergenceError, match=f"^{which}, epoch 1, step 1: loss or gradient"):
        lifelong.run(make_config(folder, seed=3, num_seeds=2), str(tmp_path))
    noted = files.read_json(tmp_path / "progress" / "0-3-4" / "divergence.json")
    assert noted["training"] == which


def test_one_program_serves_all_tasks(folder, tmp_path):
    lifelong.run(make_config(folder, "lce_er", num_seeds=2), str(tmp_path / "together"))
    written = files.read_json(str(tmp_path / "together" / "seed1" / "results.json"))
    assert written["train_traces"] == 1
    lifelong.run(make_config(folder, "lce_er", seed=1), str(tmp_path / "alone"))
    assert_same_run(make_config(folder), tmp_path / "together" / "seed1", tmp_path / "alone")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_seeds": 0}, "num_seeds=0: must be an integer in"),
        ({"seed": 2**32 - 1, "num_seeds": 2}, "num_seeds=2: the last seed, seed"),
        ({"replacements": {"watch": "there"}, "num_seeds": 2}, "num_seeds=2: must be 1 with"),
    ],
)
def test_seeds_that_cannot_be_are_refused(folder, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        lifelong.run(make_config(folder, **fields), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_seed_is_tracked_while_it_trains(folder, tmp_path):
    """Its epochs are in its own metrics.jsonl when the training of all stops."""
    c = make_config(folder, seed=3, num_seeds=2)
    with pytest.raises(PreemptedError):
        lifelong.run(c, str(tmp_path), preemption=StopsSoon(1))
    told = [
        [json.loads(line)["train/loss"] for line in path.read_text().splitlines()]
        for path in (tmp_path / f"seed{seed}" / "metrics.jsonl" for seed in (3, 4))
    ]
    assert [len(losses) for losses in told] == [2, 2]
    assert told[0] != told[1]


def test_a_run_of_one_seed_is_not_overwritten(folder, tmp_path):
    files.write_json(str(tmp_path / "config.json"), make_config(folder).to_dict())
    with pytest.raises(InputError, match="holds a run of one seed; choose another workdir"):
        lifelong.run(make_config(folder, num_seeds=2), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
