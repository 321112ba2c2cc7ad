"""The decision whether a new model may replace an old one, on models whose answer is known."""

import copy
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from iamcl2r_jax import compatibility, retrieval, simplex
from iamcl2r_jax.config import validate
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.evaluation import feature_files, from_features, gate
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.evaluation.gate import Split
from iamcl2r_jax.evaluation.intervals import paired_intervals
from iamcl2r_jax.models import checkpoints, stored
from iamcl2r_jax.programs import evaluate_verbs
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
NUM_SLOTS = 33  # as many features as the trunk has
ARCHITECTURE = stored.Architecture.of("resnet18", NUM_SLOTS - 1, {"width": 4, "stem": "imagenet"})
IMAGE = stored.ImageInput(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
METADATA = stored.Metadata("external", ARCHITECTURE, "simplex", NUM_SLOTS, (0, 0), IMAGE)


def save(path, variables, **changes):
    metadata = dataclasses.replace(METADATA, **changes)
    stored.save_model(str(path), stored.Model(metadata, variables))


def write_images(root, rng, classes, per_class):
    """Coloured noise, one colour a class; the same brightness noise for all pixels of an image."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        colour = 60 + 120 * np.array([label & 1, label >> 1 & 1, label >> 2 & 1])
        for i in range(per_class):
            noise = rng.normal(0, 20, (16, 16, 3)) + rng.normal(0, 20)
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with images in shop/ and two models in models/.

    The new model maps each class near its vertex. The old one adds a direction in which the images
    of a class differ and their mean is zero: it spoils the old model's queries, while the class
    means of its gallery stay where the new model expects them.
    """
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for split, per_class in (("gallery", 12), ("query", 10)):
        write_images(place / "shop" / split, rng, ["bag", "hat", "ring", "shoe"], per_class)
    (place / "shop" / "query" / "bag" / "a.heic").touch()  # which is passed over, and mentioned

    module = ARCHITECTURE.module()
    expected = stored.expected_variables(METADATA)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random_leaf(rng, path[-1].key, leaf.shape), expected
    )
    kernel = variables["params"]["projection"]["kernel"]
    kernel[:] = np.eye(NUM_SLOTS - 1)  # so that these are the trunk's features
    loaded = gate.load_evaluation(*splits(place / "shop"), 16, None).gallery
    options = ImageOptions(IMAGE.mean, IMAGE.std)
    trunk = FeatureExtractor(module, options)(variables, loaded.images)
    targets = simplex.dsimplex(NUM_SLOTS)[loaded.labels]
    kernel[:] = np.linalg.lstsq(trunk, targets, rcond=1e-3)[0]
    save(place / "models" / "new", copy.deepcopy(variables))

    means = np.stack([trunk[loaded.labels == label].mean(axis=0) for label in range(4)])
    within = trunk - means[loaded.labels]
    within -= within @ np.linalg.pinv(means) @ means
    spread = np.linalg.svd(within)[2][0]
    kernel += np.outer(spread, targets[0] - targets[-1]) * (3 / np.std(within @ spread))
    save(place / "models" / "old", variables)
    return place


def random_leaf(rng, name, shape):
    if name == "kernel":
        return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    return (np.ones if name in ("scale", "var") else np.zeros)(shape, np.float32)


def splits(shop):
    return Split(f"folder:{shop}", "gallery"), Split(f"folder:{shop}", "query")


@pytest.fixture
def models(place):
    return {name: str(place / "models" / name) for name in ("old", "new")}


def compare(place, *paths, **options):
    return gate.compare(paths, *splits(place / "shop"), **options)


def identification_hits(evaluation, query_path, gallery_path):
    """Whether each query is identified, by features computed here."""

    def features(path, images):
        model = stored.load_model(path)
        image, module, variables = model.metadata.image, ARCHITECTURE.module(), model.variables
        mean, std = (np.reshape(values, (1, 1, 1, 3)) for values in (image.mean, image.std))
        pixels = (images / 255 - mean) / std
        return np.asarray(jax.jit(module.apply)(variables, pixels.astype(np.float32)))

    return retrieval.METRICS["identification"].values(
        features(gallery_path, evaluation.gallery.images),
        evaluation.gallery.labels,
        features(query_path, evaluation.query.images),
        evaluation.query.labels,
    )


def test_figures_of_an_upgrade(place, models):
    """Every figure against retrieval metrics of features computed here."""
    results = compare(place, models["old"], models["new"])
    evaluation = gate.load_evaluation(*splits(place / "shop"), 16, None)

    def hits(query, gallery):
        return identification_hits(evaluation, models[query], models[gallery])

    old, cross, new = hits("old", "old"), hits("new", "old"), hits("new", "new")
    matrix = [[old.mean(), None], [cross.mean(), new.mean()]]
    assert results["matrix"] == matrix
    assert results["ac"] == compatibility.average_compatibility(matrix) == 1
    assert results["aa"] == pytest.approx(compatibility.average_accuracy(matrix))
    assert results["compatible"] is True
    assert results["feature_passes"] == 2
    (only,) = results["upgrades"]
    assert (only["old"], only["new"], only["compatible"]) == (0, 1, True)
    assert only["gain"] == pytest.approx(cross.mean() - old.mean())
    assert only["gain"] > 0.2  # as the old model was made
    differences = np.stack([1.0 * cross - old, 1.0 * new - cross])
    gain_interval, reindexing_interval = paired_intervals(differences)
    assert only["gain_interval"] == gain_interval.tolist()
    assert 0 < only["gain_interval"][0] < only["gain"] < only["gain_interval"][1] < 1
    assert only["reindexing_gain"] == pytest.approx(new.mean() - cross.mean())
    assert only["reindexing_interval"] == reindexing_interval.tolist()
    described = {"dataset": f"folder:{place / 'shop'}", "split": "query"}
    assert results["query"] == described | {"images": 40, "classes": 4}


@pytest.mark.parametrize("metric", retrieval.METRICS)
def test_every_metric_is_taken(place, models, metric):
    results = compare(place, models["old"], models["new"], metric=metric)
    assert results["metric"] == metric
    assert 0 < results["matrix"][0][0] <= 1
    assert results["upgrades"][0]["gain_interval"] == results["gain_intervals"][1][0]


def test_exit_status_and_what_is_printed_and_saved(place, models, tmp_path, capsys):
    """The gate both ways; and a tie, a model with itself, is no gain."""

    def main(*paths):
        output = tmp_path / "out" / "evaluation.json"
        status = evaluate_verbs.models(paths, *splits(place / "shop"), output=str(output))
        return status, json.loads(output.read_text()), capsys.readouterr().out

    status, saved, printed = main(models["old"], models["new"])
    assert (status, saved["compatible"]) == (0, True)
    assert "every upgrade is compatible" in printed
    assert "split 'query': 1 other file (.heic 1) passed over" in printed
    gain = 100 * saved["upgrades"][0]["gain"]
    low, high = (100 * end for end in saved["upgrades"][0]["gain_interval"])
    assert f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]" in printed

    status, saved, printed = main(models["new"], models["old"])
    assert (status, saved["compatible"]) == (3, False)
    assert saved["upgrades"][0]["gain_interval"][1] < 0
    assert "1 of 1 upgrades not compatible" in printed

    status, saved, _ = main(models["new"], models["new"])
    assert status == 3
    assert saved["upgrades"][0]["gain_interval"] == [0, 0]

    status, saved, printed = main(models["old"], models["new"], models["old"])
    assert status == 3
    assert [(u["old"], u["new"]) for u in saved["upgrades"]] == [(0, 1), (0, 2), (1, 2)]
    assert [u["compatible"] for u in saved["upgrades"]] == [True, False, False]
    assert "2 of 3 upgrades not compatible" in printed


def test_maps_and_files_of_features(place, models, tmp_path, capsys):
    """The files that are written lead to the same ways and the same advice as the models did."""
    paths = [models["new"], models["old"]]
    status = evaluate_verbs.models(
        paths,
        *splits(place / "shop"),
        maps=["procrustes", "ridge"],
        write_features=str(tmp_path / "features"),
        output=str(tmp_path / "evaluation.json"),
    )
    results = json.loads((tmp_path / "evaluation.json").read_text())
    (upgrade,) = results["upgrades"]
    assert upgrade["compatible"] is False
    assert status == (0 if upgrade["advice"]["compatible"] else 3)
    assert upgrade["advice"]["text"][0] in capsys.readouterr().out
    assert results["pairs"] == 24
    files = [str(tmp_path / "features" / name) for name in ("1-new.npz", "2-old.npz")]
    tables = [feature_files.open_table(path) for path in files]
    assert set(tables[0].labels) == {"bag", "hat", "ring", "shoe"}
    assert f"folder:{place / 'shop'}/query/0" in tables[0].ids  # no other set's
    (again,) = from_features.compare(tables, ["procrustes", "ridge"])["upgrades"]
    for way, other in zip(upgrade["ways"], again["ways"], strict=True):
        for figure in ("map", "direction", "pairs", "value", "gain_interval", "gallery_bytes"):
            assert way[figure] == other[figure]
    assert again["advice"]["verdict"] == upgrade["advice"]["verdict"]


def test_gallery_and_queries_from_two_data_sets_are_matched_by_class_name(place, models, tmp_path):
    """A class more in one of them, which moves the labels, changes nothing but what it adds."""
    together = compare(place, models["old"], models["new"])
    for split in ("gallery", "query"):
        (tmp_path / split).mkdir()
        (tmp_path / split / split).symlink_to(place / "shop" / split)
    apart = [Split(f"folder:{tmp_path / split}", split) for split in ("gallery", "query")]
    paths = list(models.values())
    assert gate.compare(paths, *apart)["matrix"] == together["matrix"]

    (tmp_path / "gallery" / "gallery").unlink()
    for name in ("hat", "ring", "shoe"):
        target = tmp_path / "gallery" / "gallery" / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(place / "shop" / "gallery" / name)
    lacking = gate.compare(paths, *apart)
    assert lacking["queries_without_class"] == 10
    assert 0.6 < lacking["matrix"][1][1] <= 0.75  # a quarter cannot be found


def test_models_may_take_images_of_different_size_and_normalisation(place, models, tmp_path):
    """Each model's pixels are normalised by its own mean and deviation."""
    variables = stored.load_model(models["new"]).variables
    other = str(tmp_path / "other")
    save(other, variables, image=stored.ImageInput(16, (1.0, 0.0, 0.5), (0.1, 0.3, 0.6)))
    matrix = compare(place, models["new"], other)["matrix"]
    evaluation = gate.load_evaluation(*splits(place / "shop"), 16, None)
    assert matrix[1][1] == identification_hits(evaluation, other, other).mean()
    assert matrix[1][0] == identification_hits(evaluation, other, models["new"]).mean()
    assert len({matrix[0][0], matrix[1][0], matrix[1][1]}) == 3  # the mean matters here

    larger = str(tmp_path / "larger")
    save(larger, variables, image=dataclasses.replace(IMAGE, size=24))
    results = compare(place, models["new"], larger)
    assert results["models"][1]["image"]["size"] == 24
    assert results["matrix"][0][0] == matrix[0][0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"num_slots": 8, "architecture": ARCHITECTURE.to_json() | {"num_features": 7}},
            "has K=8, but .* has K=33; models that are compared must have the same simplex",
        ),
        ({"num_slots": 40}, "must be of 39 features, K - 1"),
        ({"image": None}, "its metadata lacks image"),
    ],
)
def test_models_that_cannot_be_compared_are_refused_before_any_image(
    record, message, models, tmp_path
):
    other = str(tmp_path / "other")
    record = METADATA.to_json() | record
    record = {name: value for name, value in record.items() if value is not None}
    checkpoints.save(other, {"params": {"none": np.zeros(1)}}, record)
    nowhere = Split("folder:nowhere", "gallery")
    with pytest.raises(InputError, match=message) as error:
        gate.compare([models["old"], other], nowhere, nowhere)
    assert "\n" not in str(error.value)


def test_bad_input_is_refused(place, models, tmp_path):
    gallery, query = splits(place / "shop")
    both = list(models.values())
    with pytest.raises(InputError, match="every query would find itself"):
        gate.compare(both, gallery, gallery)
    with pytest.raises(InputError, match="has no split 'quary'; its splits are gallery, query"):
        gate.compare(both, gallery, Split(gallery.dataset, "quary"))
    write_images(tmp_path / "query", np.random.default_rng(5), ["car"], 1)
    with pytest.raises(InputError, match=r"no class of split 'query' .* is in the gallery"):
        gate.compare(both, gallery, Split(f"folder:{tmp_path}", "query"))
    (tmp_path / "query" / "car").rename(tmp_path / "query" / "bag")
    with pytest.raises(InputError, match="needs two or more images"):
        gate.compare(both, gallery, Split(f"folder:{tmp_path}", "query"))
    with pytest.raises(InputError, match="name two or more"):
        gate.compare(both[:1], gallery, query)
    with pytest.raises(InputError, match="no finished checkpoint"):
        gate.compare([*both, str(tmp_path / "absent")], gallery, query)

    with pytest.raises(InputError, match="gallery: name a data set"):
        evaluate_verbs.models(both, None, None)
    with pytest.raises(InputError, match=r"results\.json is what a run writes"):
        evaluate_verbs.run("run", output="elsewhere/results.json")
    with pytest.raises(InputError, match="holds no run"):
        evaluate_verbs.run(str(tmp_path))
    files.write_json(str(tmp_path / "config.json"), {"method": "hoc", "image": {"size": 16}})
    with pytest.raises(InputError, match=rf"^{tmp_path}/config\.json: adapter: missing field"):
        evaluate_verbs.run(str(tmp_path))
    nowhere = Split("folder:nowhere", "gallery")
    with pytest.raises(files.WriteError, match="cannot be written"):  # before any image is read
        evaluate_verbs.models(
            both, nowhere, query, output=str(place / "models/old/metadata.json/x")
        )


def test_queries_that_are_also_in_the_gallery(place, models, tmp_path, capsys):
    """However the directory is spelled: refused if all are, else counted and told."""
    shop, both = place / "shop", list(models.values())
    (tmp_path / "link").symlink_to(shop / "gallery")
    with pytest.raises(InputError, match="every query would find itself"):
        gate.compare(both, splits(shop)[0], Split(f"folder:{tmp_path}", "link"))
    shutil.copytree(shop / "query", tmp_path / "some")
    for n in range(3):
        shutil.copy(shop / "gallery" / "hat" / f"{n}.png", tmp_path / "some" / "hat" / f"x{n}.png")
    output = str(tmp_path / "evaluation.json")
    evaluate_verbs.models(both, splits(shop)[0], Split(f"folder:{tmp_path}", "some"), output=output)
    assert files.read_json(output)["queries_in_gallery"] == 3
    assert "3 queries are images of the gallery too" in capsys.readouterr().out


def test_an_output_in_another_encoding_changes_no_status(place, models, tmp_path):
    """What is decided is written, whatever the terminal can show."""
    command = [sys.executable, ROOT / "launch" / "evaluate.py"]
    command += [f"--models={models['new']},{models['old']}", f"--gallery=folder:{place / 'shop'}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    assert "1 of 1 upgrades not compatible" in ended.stdout
    assert files.read_json(str(tmp_path / "evaluation.json"))["compatible"] is False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workdir=run", "--models=a,b"], "give one of --workdir=DIR, a run, --models=OLD,NEW"),
        (["--workdir=run", "--maps=all"], "--maps: goes with --models and --features"),
        (["--models=a,b", "--query=folder:x"], "--query: name the gallery too"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(args, message):
    command = [sys.executable, ROOT / "launch" / "evaluate.py", *args]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1


def test_features_that_are_not_finite_are_refused(place, models, tmp_path):
    variables = stored.load_model(models["new"]).variables
    variables["params"]["projection"]["kernel"][0] = np.nan
    diverged = str(tmp_path / "diverged")
    save(diverged, variables)
    with pytest.raises(InputError, match="diverged: it holds values that are not finite"):
        compare(place, models["old"], diverged)


def commands_of_the_page():
    page = (ROOT / "docs" / "upgrade.md").read_text()
    return [shlex.split(line) for line in page.splitlines() if line.startswith("    python launch")]


def test_the_page_names_programs_and_flags_that_exist():
    commands = commands_of_the_page()
    assert len(commands) == 6
    for _, program, *args in commands:
        body = ROOT / "iamcl2r_jax" / "programs" / pathlib.Path(program).name
        source = (body if body.exists() else ROOT / program).read_text()
        for flag in (arg.removeprefix("--").partition("=")[0] for arg in args):
            assert f'"{flag.partition(".")[0]}"' in source


def test_the_training_command_of_the_page_is_a_valid_configuration(place, tmp_path, monkeypatch):
    (command,) = (c for c in commands_of_the_page() if c[1] == "launch/main.py")
    monkeypatch.chdir(tmp_path)
    for split, source in (("train", "gallery"), ("test", "query")):
        (tmp_path / "shop").mkdir(exist_ok=True)
        (tmp_path / "shop" / split).symlink_to(place / "shop" / source)
    args = [arg.replace("configs/", f"{ROOT}/configs/") for arg in command[1:]]
    monkeypatch.setattr(sys, "argv", args)  # where ml_collections looks for --config.FIELD
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(args)
    validate(values.config)
    assert values.config.name == "folder-shop"
    assert values.config.replacements.checkpoints == ("models/old",)


def test_the_gate_command_of_the_page(place):
    """As a deployment script starts it, but with the models the other way round."""
    command = next(c for c in commands_of_the_page() if any("--models" in arg for arg in c))
    args = [*command[2:], "--models=models/new,models/old"]  # a flag's last value holds
    ended = subprocess.run(
        [sys.executable, ROOT / command[1], *args],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    assert "1 of 1 upgrades not compatible" in ended.stdout
    saved = json.loads((place / "evaluation.json").read_text())
    assert [model["path"] for model in saved["models"]] == ["models/new", "models/old"]
