"""The CIFAR100R/10 configs: the protocol, and a whole run on small archives of the real format."""

import pathlib

import archives
import numpy as np
import pytest
import smallest_run
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from iamcl2r_jax.config import (
    args,
    check_stream,
    recipes,
    validate,
    validate_pretrain,
    without_unused_options,
)
from iamcl2r_jax.data.stream import split_tasks
from iamcl2r_jax.models import stored
from iamcl2r_jax.system import files
from iamcl2r_jax.training import external, lifelong, runs

# ml_collections loads config files by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

place = archives.place  # a fixture


def _config(name):
    """The config that a program of launch/ gets for --config=configs/NAME."""
    return ConfigFileFlagParser("config").parse(str(CONFIGS / name))


@pytest.mark.parametrize(
    ("name", "sizes", "replaced"),
    [
        ("cifar100r.py", [10] + 6 * [15], (0, 2, 4)),
        ("cifar100r.py:tasks=7", [10] + 6 * [15], (0, 2, 4)),
        ("cifar100r.py:tasks=31", [10] + 30 * [3], (0, 10, 20)),
    ],
)
def test_the_protocol_is_the_papers(name, sizes, replaced):
    c = _config(name)
    validate(c)
    tasks = split_tasks(100, c.stream.initial_classes, c.stream.increment)
    assert [len(task) for task in tasks] == sizes
    check_stream(c, 100, len(tasks))
    assert c.name == f"cifar100r-{len(tasks)}"
    assert (c.replacements.tasks, c.replacements.classes) == (replaced, (100, 300, 600))

    assert (c.method, c.method_options.hoc.ce_weight, c.method_options.hoc.mu) == ("hoc", 0.1, 10)
    assert (c.num_slots, c.memory_per_class) == (1024, 20)
    assert (c.stream.dataset, c.stream.limit_per_class) == ("cifar100", 300)
    assert (c.stream.train_split, c.stream.test_split) == ("train", "test")
    assert c.stream.class_order_seed == -1
    assert c.model.to_dict() == {
        "backbone": "resnet18",
        "options": {"width": 64, "stem": "imagenet"},
    }
    assert without_unused_options(c.train.to_dict()) == {
        "epochs": 70,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-5,
        "optimizer": "sgd",
        "optimizer_options": {"sgd": {"momentum": 0.9, "weight_decay": 5e-4}},
    }
    assert without_unused_options(c.image.to_dict()) == {
        "size": 32,
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "augmentation": "crop_flip",
        "augmentation_options": {"crop_flip": {"padding": 4, "flip": True}},
    }
    assert c.evaluations.to_dict() == {
        "cifar10": {"dataset": "cifar10", "query_split": "train", "gallery_split": "test"}
    }
    assert c.metrics[0] == "identification"
    assert len(tasks) == 7 or len(c.metrics) == 1


# What makes the miniature small, by field: other images, a narrower network, a shorter schedule.
IMAGES = {
    "image": {"mean", "std"},
    "image.augmentation_options.crop_flip": {"flip"},
    "stream": {"dataset"},
    "replacements": {"checkpoints"},
    "replacements.recipe": {"dataset", "test_split"},
    "replacements.recipe.image": {"mean", "std"},
    "replacements.recipe.image.augmentation_options.crop_flip": {"flip"},
}
SMALL = {
    "model.options": {"width"},
    "train": {"epochs", "learning_rate", "final_learning_rate"},
    "replacements.recipe.model.options": {"width"},
    "replacements.recipe.train": {"epochs"},
}


@pytest.mark.parametrize("tasks", recipes.TASKS)
def test_the_miniature_differs_in_images_width_and_schedule_alone(tasks):
    full, small = (_config(f"{name}.py:tasks={tasks}") for name in ("cifar100r", "glyphs"))
    for c in (full.unlock(), small.unlock()):
        c.name = c.replacements.recipe.name = ""
        c.evaluations = ConfigDict()  # of other images
    expected = {
        f"{section}.{field}"
        for part in (IMAGES, SMALL)
        for section in part
        for field in part[section]
    }
    assert set(fields_that_differ(full, small)) == expected


def fields_that_differ(one, other, prefix=""):
    assert one.keys() == other.keys()
    for field in one:
        if isinstance(one[field], ConfigDict):
            yield from fields_that_differ(one[field], other[field], f"{prefix}{field}.")
        elif one[field] != other[field]:
            yield f"{prefix}{field}"


def test_the_run_takes_the_models_that_the_pretraining_config_makes():
    c, recipe = _config("cifar100r.py"), _config("pretrain_imagenet32.py")
    validate_pretrain(recipe)
    for classes in c.replacements.classes:
        recipe.classes = classes
        paths = {
            external.checkpoint_path("external", r, classes)
            for r in (recipe, c.replacements.recipe)
        }
        assert len(paths) == 1
    assert stored.ImageInput.of(recipe.image) == stored.ImageInput.of(c.image)
    # The simplex is one, whatever its size.
    c.num_slots = 2048
    assert c.replacements.recipe.num_slots == 2048
    validate(c)


def test_networks_compute_in_the_dtype_asked_for():
    """The external models too; by default nothing is said, so that their names stay."""
    c = _config("cifar100r.py:tasks=31,dtype=bfloat16")
    validate(c)
    for model in (c.model, c.replacements.recipe.model):
        assert model.options.to_dict() == {"width": 64, "stem": "imagenet", "dtype": "bfloat16"}
    assert "dtype" not in _config("cifar100r.py:dtype=float32").model.options


OPTIONS = "tasks=7|31, dtype=float32|bfloat16"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tasks=8", "config option tasks=8: must be one of 7, 31"),
        ("tasks=", "config option tasks=: must be one of 7, 31"),
        ("tasks", "config option 'tasks' is unknown; the options are " + OPTIONS),
        ("task=7", "config option 'task=7' is unknown; the options are " + OPTIONS),
        ("tasks=7,", "config option '' is unknown; the options are " + OPTIONS),
        ("tasks=7,tasks=31", "config option tasks is given twice"),
    ],
)
def test_a_wrong_option_is_one_line(arg, message):
    with pytest.raises(args.ConfigArgError) as error:
        _config(f"cifar100r.py:{arg}")
    assert str(error.value) == message


def test_options_of_a_config_file():
    choices = {"tasks": {"7": "seven", "31": "many"}, "size": {"small": 1, "large": 2}}
    assert args.parse(None, choices) == {"tasks": "seven", "size": 1}
    assert args.parse("", choices) == {"tasks": "seven", "size": 1}
    assert args.parse("size=large", choices) == {"tasks": "seven", "size": 2}
    assert args.parse("size=large,tasks=31", choices) == {"tasks": "many", "size": 2}


def test_a_whole_run_from_archives(place, tmp_path, monkeypatch):
    smallest_run.register(monkeypatch)
    rng = np.random.default_rng(0)
    place("cifar100", archives.CIFAR100, archives.cifar100(rng, train=400)[0])
    place("cifar10", archives.CIFAR10, archives.cifar10(rng, train=70)[0])
    for split, name in (("train", "train_data_batch_1.npz"), ("validation", "val_data.npz")):
        images = rng.integers(0, 256, (1000, 32, 32, 3), np.uint8)
        archive = archives.imagenet32(name, images, np.arange(1000))
        data_dir = place("imagenet_resized", archives.IMAGENET32[split], archive)

    c = _config("cifar100r.py")
    c.data_dir = data_dir
    c.replacements.directory = str(tmp_path / "external")
    c.stream.limit_per_class = 3  # of 4
    c.memory_per_class = 2
    for trained in (c, c.replacements.recipe):
        trained.model.backbone = "smallest"
        trained.train.epochs = 1
        trained.train.batch_size = 32
    c.tracking.report = False
    workdir = tmp_path / "run"
    results = lifelong.run(c, str(workdir))

    assert files.read_json(str(workdir / "results.json")) == results
    assert results["num_tasks"] == 7
    assert results["classes_per_task"] == [10] + 6 * [15]
    assert results["replacements"] == [0, 2, 4]
    assert results["train_traces"] == 1
    assert results["feature_passes"] == 7
    assert len(results["task_accuracy"]) == 7
    assert results["evaluations"].keys() == {"cifar10"}
    figures = results["evaluations"]["cifar10"]
    assert figures["metric"] == "identification"
    assert 0 <= figures["ac"] <= 1
    assert 0 <= figures["aa"] <= 100
    assert len(figures["ac_per_task"]) == len(figures["aa_per_task"]) == 7
    assert [[entry is None for entry in row] for row in figures["matrix"]] == [
        [k > t for k in range(7)] for t in range(7)
    ]
    # Shares of the 70 training images of CIFAR-10, which are the queries.
    right = 70 * np.array(figures["matrix"], float)[np.tril_indices(7)]
    np.testing.assert_allclose(right, np.rint(right), atol=1e-3)

    external = results["external_models"]
    assert external.keys() == {"0", "2", "4"}
    for task, classes in (("0", 100), ("2", 300), ("4", 600)):
        metadata = stored.load_metadata(external[task])
        assert metadata.slots == (0, classes)
        assert len(metadata.about["class_names"]) == classes
    records = runs.task_records(str(workdir))
    replaced_by = [external.get(str(task)) for task in range(7)]
    assert [record["replaced_by"] for record in records] == replaced_by
    sizes = [2 * (10 + 15 * task) for task in range(7)]
    assert [len(record["memory"]) for record in records] == sizes
    assert max(records[-1]["memory"]) < 300

    # The catalogue's own builders read what was prepared.
    for name, split, count in (("cifar100", "train", 400), ("cifar10", "test", 30)):
        builder = tfds.builder(name, data_dir=data_dir)
        assert type(builder) is tfds.builder_cls(name)
        assert len(builder.as_data_source(split)) == count
