"""configs/folder.py: what it derives from a folder, what it refuses, and a whole run."""

import json
import pathlib

import numpy as np
import pytest
import smallest_run
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from PIL import Image

from iamcl2r_jax.config import args, check_stream, validate
from iamcl2r_jax.config.args import ConfigArgError, Free
from iamcl2r_jax.evaluation import gate
from iamcl2r_jax.programs import evaluate_verbs
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.training import inputs, lifelong

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "folder.py"


def load_config(arg):
    """The config that a program of launch/ gets for --config=configs/folder.py:ARG."""
    return ConfigFileFlagParser("config").parse(f"{CONFIG}:{arg}")


def write_images(directory, count, colour=(0, 0, 0)):
    directory.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((16, 16, 3), colour, np.uint8)
        pixels[i % 16] = 10 * i
        Image.fromarray(pixels).save(directory / f"{i}.png")


def make_folder(root, splits):
    """Writes images: {split: {class: how many}}, no two splits with the same ones."""
    for number, (split, classes) in enumerate(splits.items()):
        for label, (name, count) in enumerate(classes.items()):
            colour = [60 * (label & 1), 40 * label, 90 + 5 * number]
            write_images(root / split / name, count, colour)
    return root


def many(num_classes, count=2):
    return {f"class {i:03}": count for i in range(num_classes)}


@pytest.mark.parametrize(
    ("num_classes", "num_slots", "sizes"),
    [
        (2, 16, [2]),
        (3, 16, [3]),
        (4, 16, [2, 2]),
        (7, 16, [3, 2, 2]),
        (10, 32, [2] * 5),
        (52, 128, [12, 10, 10, 10, 10]),
    ],
)
def test_tasks_and_simplex_follow_the_classes(num_classes, num_slots, sizes, tmp_path):
    for split in ("train", "test"):
        for name in many(num_classes):
            (tmp_path / split / name).mkdir(parents=True)
    c = load_config(f"root={tmp_path}")
    validate(c)
    assert c.num_slots == num_slots
    assert 2 * num_classes <= c.num_slots
    classes, tasks = inputs.stream_size(c)
    check_stream(c, classes, tasks)
    rest = [c.stream.increment] * (tasks - 1)
    assert (classes, [c.stream.initial_classes, *rest]) == (num_classes, sizes)


def test_what_else_is_derived(tmp_path):
    root = make_folder(tmp_path / "shop", {"train": many(4, 20), "val": many(4)})
    c = load_config(f"root={root}")
    assert c.name == "folder-shop"
    assert (c.stream.dataset, c.stream.test_split) == (f"folder:{root}", "val")
    assert (c.image.size, c.image.augmentation_options.crop_flip.padding) == (32, 4)
    assert c.train.batch_size == 8  # two tasks of 40 images; a quarter is 10
    assert c.train.learning_rate == pytest.approx(0.1 / 16)
    assert c.replacements.tasks == ()
    assert c.evaluations.to_dict() == {
        "held_out": {"dataset": f"folder:{root}", "query_split": "val", "gallery_split": "train"}
    }
    assert load_config(f"root={root},size=48").image.augmentation_options.crop_flip.padding == 6


def test_gallery_and_query_may_have_classes_of_their_own(tmp_path):
    """The stream is the classes of train, wherever they stand among all names."""
    root = make_folder(
        tmp_path / "a, b",  # and a path may hold what separates options
        {
            "train": {"b": 2, "d": 3},
            "test": {"b": 2, "d": 2, "e": 2},
            "gallery": {"a": 2, "c": 2},
            "query": {"c": 2},
        },
    )
    c = load_config(f"root={root}")
    assert c.evaluations.to_dict() == {
        "gallery": {
            "dataset": f"folder:{root}",
            "query_split": "query",
            "gallery_split": "gallery",
        }
    }
    stream = inputs.load_stream(c)
    assert stream.train.class_names == stream.test.class_names == ("b", "d")
    assert stream.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert stream.test.labels.tolist() == [0, 0, 1, 1]
    evaluation = inputs.load_evaluations(c)["gallery"]
    assert set(evaluation.query.labels) < set(evaluation.gallery.labels)
    c.evaluations.gallery.query_split = "gallery"
    with pytest.raises(
        InputError, match=r"^evaluations\.gallery\.query_split=gallery: all 4 images"
    ):
        inputs.load_evaluations(c)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "has no splits; it must hold one directory per split"),
        ({"train": many(2)}, "and one of test, validation, val, as DIR/.*; it has train"),
        ({"test": many(2)}, "must have a split 'train' and one of test.*; it has test"),
        ({"photos": many(2)}, "it has none of these"),
        ({"train": many(2), "test": {}}, "has no classes in split 'test'"),
        ({"train": {}, "test": many(2)}, "has no classes in split 'train'"),
        ({"train": many(1), "test": many(1)}, "split 'train' has only one class, at least 2"),
        (
            {"train": many(5), "test": many(1)},
            "'test' lacks 4 of the classes of 'train', class 001, class 002, class 003 ...;",
        ),
        ({"train": many(2), "test": many(3)}, "'train' lacks 1 of the classes of 'test', class 00"),
        (
            {"train": many(2), "test": many(2), "query": many(2)},
            "must have both splits 'gallery' and 'query', or neither",
        ),
        (
            {"train": many(2), "test": many(2), "query": many(2), "gallery": many(1)},
            "'gallery' lacks 1 of the classes of 'query', class 001;",
        ),
    ],
)
def test_a_folder_that_cannot_work_is_refused_in_one_line(splits, message, tmp_path):
    for split, classes in splits.items():
        (tmp_path / split).mkdir()
        for name in classes:
            (tmp_path / split / name).mkdir()
    with pytest.raises(ConfigArgError, match=message) as error:
        load_config(f"root={tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("", "config option root is missing; the options are root=DIR, size=a number of pixels"),
        ("root=/nowhere", "'/nowhere' is not a directory"),
        ("root=", "'' is not a directory"),
        ("root=/tmp,size=big", "config option size=big: must be a number of pixels"),
        ("root=/tmp,sise=8", "config option 'sise=8' is unknown; the options are root=DIR, size="),
        ("root=a,root=b", "config option root is given twice"),
    ],
)
def test_wrong_options(arg, message):
    with pytest.raises(ConfigArgError) as error:
        load_config(arg)
    assert message in str(error.value)


def test_free_values_may_hold_commas():
    choices = {"root": Free("DIR"), "tasks": {"7": 7, "31": 31}}
    assert args.parse("root=a,b,tasks=31", choices) == {"root": "a,b", "tasks": 31}
    assert args.parse("tasks=31,root=a=b,c", choices) == {"root": "a=b,c", "tasks": 31}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda train: (train / "class 000" / "1.png").unlink(), "'class 000' has 1 image"),
        (lambda train: (train / "class 001" / "0.png").write_text("no"), "0.png is unreadable"),
    ],
)
def test_bad_images_are_refused_before_anything_is_written(spoil, message, tmp_path):
    root = make_folder(tmp_path / "images", {"train": many(2), "test": many(2)})
    spoil(root / "train")
    with pytest.raises(InputError, match=message):
        lifelong.run(load_config(f"root={root}"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and results of a run that needs nothing but the folder, at its smallest."""
    place = tmp_path_factory.mktemp("place")
    splits = {"train": many(4, 6), "test": many(4, 3), "gallery": many(3), "query": many(3)}
    c = load_config(f"root={make_folder(place / 'images', splits)},size=16")
    c.model.backbone, c.model.options.width = "smallest", 4
    c.train.epochs = 1
    workdir = place / "run"
    with pytest.MonkeyPatch.context() as patch:
        smallest_run.register(patch)
        yield workdir, lifelong.run(c, str(workdir))


def test_a_whole_run(finished):
    _, results = finished
    assert results["num_tasks"] == 2
    assert results["classes_per_task"] == [2, 2]
    assert results["train_traces"] == 1
    assert results["evaluations"].keys() == {"gallery"}


def test_evaluating_a_run_again_gives_its_figures(finished, capsys):
    workdir, results = finished
    before = (workdir / "results.json").read_bytes()
    evaluate_verbs.run(str(workdir))
    saved = json.loads((workdir / "evaluation.json").read_text())
    for key in ("num_tasks", "replacements", "evaluations", "feature_passes"):
        assert saved[key] == results[key]
    assert (workdir / "results.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert f"gallery: AC {results['evaluations']['gallery']['ac']:.3f}" in printed
    assert f"results: {workdir / 'evaluation.json'}" in printed


def test_evaluating_a_run_on_other_images(finished, tmp_path):
    workdir, _ = finished
    name = f"folder:{make_folder(tmp_path / 'other', {'a': many(5), 'b': many(5)})}"
    output = tmp_path / "other.json"
    gallery, query = gate.Split(name, "a"), gate.Split(name, "b")
    evaluate_verbs.run(str(workdir), gallery, query, output=str(output))
    saved = json.loads(output.read_text())
    assert saved["evaluations"].keys() == {name}

    # Tasks of a run are models like any other.
    tasks = [str(workdir / "tasks" / str(task)) for task in range(2)]
    compared = gate.compare(tasks, gallery, query)
    assert compared["matrix"] == saved["evaluations"][name]["matrix"]
