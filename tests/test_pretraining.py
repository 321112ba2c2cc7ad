"""What pre-training leaves beside the model; the model itself is tested with runs that use it."""

import json
import pathlib
import shutil

import jax
import pytest
import small_runs
from ml_collections import ConfigDict
from small_runs import K

from iamcl2r_jax import config
from iamcl2r_jax.config import without_unused_options
from iamcl2r_jax.data import alphabets, sources
from iamcl2r_jax.models import stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError, PreemptedError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import external, pretraining

CLASSES = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    small_runs.write_images(root, stream=small_runs.STREAM, open=4, external=CLASSES)
    with pytest.MonkeyPatch.context() as patched:
        small_runs.register(patched)
        yield root


@pytest.fixture
def recipe(images):
    run = small_runs.small_config(images)
    c = config.default_pretrain()
    c.name, c.dataset, c.num_slots, c.classes = "small", f"folder:{images}/external", K, CLASSES
    c.image, c.train = run.image, run.train
    c.model.backbone = "small"
    with c.unlocked():
        c.model.options = ConfigDict()
    c.train.epochs = 3
    c.saving.every_epochs = 1
    return c


def made(recipe, path, preemption=None):
    """The lines that pre-training leaves in the model's directory, and its record."""
    pretraining.pretrain(recipe, {CLASSES: str(path)}, Reporter(), preemption)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], stored.load_metadata(str(path)).about


def test_its_epochs_are_in_the_directory_of_the_model(recipe, tmp_path, caplog):
    lines, record = made(recipe, tmp_path / "model")
    *epochs, end = lines
    assert epochs == [
        {"task": 0, "epoch": n, "global_epoch": n}
        | {f"train/{name}": value for name, value in metrics.items()}
        for n, metrics in enumerate(record["history"], start=1)
    ]
    assert len(epochs) == 3
    assert end.pop("task/seconds") > 0
    assert end == {"task": 0, "task/accuracy": record["accuracy"]}
    (events,) = (tmp_path / "model").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    # They are part of what its checksums vouch for.
    manifest = files.read_json(tmp_path / "model" / "manifest.json")["files"]
    assert {"metrics.jsonl", events.name} < set(manifest)
    stored.load_model(str(tmp_path / "model"))
    assert not caplog.records  # Orbax warns of what it does not know


class AfterSomeCalls(Preemption):
    """Asked to stop at the given one of the times that the training asks."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def agreed(self):
        self.left -= 1
        return self.left <= 0


def test_lines_of_one_that_was_stopped_are_there_once(recipe, tmp_path):
    whole, _ = made(recipe, tmp_path / "whole")
    path = tmp_path / "stopped"
    with pytest.raises(PreemptedError):
        made(recipe, path, AfterSomeCalls(2))
    assert not path.exists()
    under_way = pathlib.Path(tmp_path / ".stopped.progress" / "metrics.jsonl").read_text()
    assert len(under_way.splitlines()) == 2  # while it goes on, they can be followed there
    again, _ = made(recipe, path)
    assert again[:-1] == whole[:-1]


def test_pretraining_of_a_run_is_tracked_as_the_run_says(recipe, images, tmp_path):
    """And by who has no held-out images, so that there is no accuracy to tell."""
    c = small_runs.small_config(images)
    c.replacements.tasks, c.replacements.classes = (0,), (CLASSES,)
    c.replacements.directory = str(tmp_path)
    c.replacements.recipe = recipe
    recipe.test_split = ""
    c.tracking.tensorboard = False
    (model,) = pretraining.external_models(c, Reporter(), Preemption()).values()
    names = {p.name for p in pathlib.Path(model.path).iterdir()}
    assert names >= {"metrics.jsonl", "metadata.json"}
    assert not list(pathlib.Path(model.path).rglob("*tfevents*"))
    *epochs, end = (pathlib.Path(model.path) / "metrics.jsonl").read_text().splitlines()
    assert len(epochs) == 3
    assert set(json.loads(end)) == {"task", "task/seconds"}


def test_a_model_is_found_whoever_is_told_of_its_epochs(recipe):
    told = external.checkpoint_path("", recipe, CLASSES)
    recipe.tracking.tensorboard = False
    assert external.checkpoint_path("", recipe, CLASSES) == told


def test_models_made_before_are_still_found():
    """A change of this name would train everybody's external models again."""
    path = external.checkpoint_path("", config.default().replacements.recipe, 300)
    assert path == "glyphs-300-97a64804"


# --- Shipped models ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", config.default().replacements.classes)
def test_a_shipped_model_is_what_the_default_recipe_makes(classes):
    recipe = config.default().replacements.recipe.copy_and_resolve_references()
    recipe.classes = classes
    metadata = stored.load_metadata(external.shipped_path(recipe, classes))
    about = metadata.about
    recorded = without_unused_options(about["config"])
    made = without_unused_options(files.as_json(recipe.to_dict()))
    for field in config.WITHOUT_EFFECT:
        del recorded[field], made[field]
    assert recorded == made
    assert metadata.slots == (0, classes)
    assert about["class_names"] == list(alphabets.EXTERNAL[:classes])
    assert f"--config.classes={classes}" in about["command"]
    assert about["accuracy"] > 0.5
    assert about["seconds"] > 0
    assert about["environment"]


def test_the_default_run_takes_the_shipped_models(tmp_path):
    c = config.default()
    c.replacements.directory = str(tmp_path / "made")
    models = pretraining.external_models(c, Reporter(), Preemption())
    assert [models[task].metadata.slots[1] for task in c.replacements.tasks] == [100, 300, 600]
    assert not (tmp_path / "made").exists()
    size = sum(
        file.stat().st_size for m in models.values() for file in pathlib.Path(m.path).rglob("*")
    )
    assert size < 15e6


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("head", "linear"), ("zero_projection", False)]
)
def test_other_recipes_make_their_own(field, value):
    recipe = config.default_pretrain()
    assert external.shipped_path(recipe, 100)
    recipe[field] = value
    assert external.shipped_path(recipe, 100) is None


def test_a_model_that_another_process_made_meanwhile_is_taken(recipe, tmp_path, monkeypatch):
    """It is there when the lock is had; nothing is trained."""
    made(recipe, tmp_path / "theirs")
    load = sources.load

    def while_images_load(*args, **options):
        if not (tmp_path / "ours").exists():
            shutil.copytree(tmp_path / "theirs", tmp_path / "ours")
        return load(*args, **options)

    monkeypatch.setattr(sources, "load", while_images_load)
    monkeypatch.setattr(pretraining._Trainer, "train", None)
    found = pretraining.pretrain(recipe, {CLASSES: str(tmp_path / "ours")}, Reporter())[CLASSES]
    assert found.metadata == stored.load_metadata(str(tmp_path / "theirs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_a_training_is_not_continued_with_other_random_numbers(recipe, tmp_path):
    with pytest.raises(PreemptedError):
        made(recipe, tmp_path / "model", AfterSomeCalls(2))
    with (
        jax.threefry_partitionable(False),
        pytest.raises(InputError, match=r"jax_threefry_partitionable: True there, False here"),
    ):
        made(recipe, tmp_path / "model")
    made(recipe, tmp_path / "model")
