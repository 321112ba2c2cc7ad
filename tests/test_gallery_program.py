"""The gallery's program from init to retire, with models of this package on image files."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from gallery_models import save_model
from PIL import Image

from iamcl2r_jax.evaluation import gate
from iamcl2r_jax.gallery import Gallery, figures
from iamcl2r_jax.gallery.embedder import CheckpointEmbedder, describe
from iamcl2r_jax.gallery.exact import ExactStore
from iamcl2r_jax.gallery.images import read
from iamcl2r_jax.programs import gallery as program
from iamcl2r_jax.programs import start

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = ("bag", "hat", "ring")
GALLERY, QUERY = 8, 6  # images of a class


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for split, count in (("gallery", GALLERY), ("query", QUERY)):
        for label, name in enumerate(CLASSES):
            (place / "shop" / split / name).mkdir(parents=True)
            colour = 60 + 60 * np.eye(3)[label]
            for n in range(count):
                pixels = np.clip(colour + rng.normal(0, 45, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / "shop" / split / name / f"{n}.png")
    save_model(place / "old", 1)
    save_model(place / "new", 2)
    save_model(place / "wider", 3, num_slots=65)
    return place


@pytest.fixture
def run(capsys):
    """Runs a verb in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        status = program.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def filled(tmp_path, place, run):
    directory = tmp_path / "g"
    assert run("init", directory, "--model", place / "old", "--name", "old")[0] == 0
    status, out, _ = run("add", directory, place / "shop" / "gallery")
    assert (status, out) == (0, f"added: {len(CLASSES) * GALLERY}\n")
    return directory


def gate_options(place):
    return ["--model", place / "new", "--gallery", f"folder:{place / 'shop'}", "--json"]


def test_the_whole_life_of_an_upgrade(place, filled, run):
    status, out, _ = run(
        "gate", filled, *gate_options(place), "--name", "new", "--accept-incompatible"
    )
    found = json.loads(out)
    assert status == 0
    assert found["compatible"] != found["accepted"]
    assert run("canary", filled, "--share", "0.5")[0] == 0
    assert run("promote", filled)[1] == "upgrade old -> new: promoted\n"
    status, out, _ = run("backfill", filled)
    assert (status, out) == (0, "upgrade old -> new: complete, 24 of 24 items embedded\n")
    assert run("rollback", filled)[0] == 0
    assert json.loads(run("status", filled, "--json")[1])["serving"] == "old"
    for verb in (("canary", "--share", "1"), ("promote",), ("backfill",), ("retire",)):
        assert run(verb[0], filled, *verb[1:])[0] == 0
    assert run("verify", filled, "--files", "--engine")[1] == "all is as it was written\n"
    image = place / "shop" / "gallery" / "hat" / "3.png"
    status, out, _ = run("search", filled, image, "-k", "1", "--json")
    ((hit,),) = [result["hits"] for result in json.loads(out)]
    assert (hit["key"], hit["label"], hit["stored_by"]) == ("hat/3.png", "hat", "new")
    assert hit["score"] == pytest.approx(1, abs=1e-6)
    assert run("remove", filled, "hat/3.png")[1] == "removed: 1\n"
    copy = filled.parent / "copy"
    assert run("backup", filled, copy)[0] == 0
    assert "23 items, served by new" in run("status", copy)[1]


def test_the_gate_is_that_of_the_evaluation(place, filled, run):
    """Every figure, to the last digit; and the gallery answers with the same metrics."""
    for metric in ("identification", "mean_average_precision"):
        status, out, _ = run("gate", filled, *gate_options(place), "--metric", metric)
        found = json.loads(out)
        shop = f"folder:{place / 'shop'}"
        result = gate.compare(
            [str(place / "old"), str(place / "new")],
            gate.Split(shop, "gallery"),
            gate.Split(shop, "query"),
            metric=metric,
        )
        (upgrade,) = result["upgrades"]
        old_old, new_old, new_new = (result["matrix"][t][k] for t, k in ((0, 0), (1, 0), (1, 1)))
        assert found["values"] == {"old/old": old_old, "new/old": new_old, "new/new": new_new}
        for name in ("compatible", "gain", "gain_interval", "reindexing_gain"):
            assert found[name] == upgrade[name]
        assert found["reindexing_interval"] == upgrade["reindexing_interval"]
        assert status == (0 if upgrade["compatible"] else 3)
        if metric != "identification":  # which looks at means of classes, not at images
            assert served(place, filled, metric) == old_old


def served(place, directory, metric):
    """A metric of the gallery's own answers to the labelled queries, by the serving model."""
    embedder = CheckpointEmbedder(str(place / "old"))
    paths = [place / "shop" / "query" / c / f"{n}.png" for c in CLASSES for n in range(QUERY)]
    vectors = embedder(np.stack([read(str(path)).at(16) for path in paths]))
    with Gallery(str(directory)) as gallery:
        values = figures.per_query(gallery, vectors, [p.parent.name for p in paths], model="old")
    return float(values[metric].mean())


def test_a_model_that_was_not_compared_is_refused(place, filled, run):
    with Gallery(str(filled)) as gallery:
        gallery.register(describe(str(place / "new")), "new")
    image = place / "shop" / "query" / "hat" / "0.png"
    status, out, err = run("search", filled, image, "--model", "new")
    assert (status, out) == (3, "")
    assert err.startswith("error: model new may not search the vectors of model old")
    assert run("promote", filled)[0] == 3
    status, _, err = run("gate", filled, "--model", place / "wider", "--gallery", "folder:x")
    assert status == 3
    assert "num_slots=65, the models of this gallery 33" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "{missing}"], "there is no gallery at this place"),
        (["init", "{g}", "--model", "{place}/old"], "there is a gallery already"),
        (["init", "{new}", "--model", "{place}/nothing"], "nothing"),
        (["init", "{new}", "--model", "{place}/old", "--engine", "x"], "engine=x"),
        (["init", "{new}", "--model", "{place}/old", "--index", "x"], "index='x'"),
        (["add", "{g}", "{missing}"], "must be a directory of image files"),
        (["remove", "{g}", "nothing.png"], "there is no such item; nothing was removed"),
        (["search", "{g}", "{missing}"], "cannot be read"),
        (["search", "{g}", "{g}/gallery.db"], "is not an image"),
        (["search", "{g}", "{image}", "-k", "0"], "k=0: must be at least 1"),
        (["search", "{g}", "{image}", "--model", "x"], "model='x': this gallery has no such model"),
        (["gate", "{g}", "--model", "old", "--gallery", "folder:x"], "it serves already"),
        (["gate", "{g}", "--model", "{place}/new", "--gallery", "folder:x"], "not a directory"),
        (["canary", "{g}", "--share", "2"], "share=2.0: must be in"),
        (["refill", "{g}"], "engine=memory: it keeps nothing"),
    ],
)
def test_bad_input_is_one_line(tmp_path, place, filled, run, arguments, says):
    places = {
        "g": filled,
        "new": tmp_path / "new",
        "missing": tmp_path / "missing",
        "place": place,
        "image": place / "shop" / "query" / "hat" / "0.png",
    }
    status, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert says in err
    assert not (tmp_path / "new").exists()


def test_an_engine_that_has_lost_its_vectors_is_refilled(tmp_path, place, run, monkeypatch):
    class Server(ExactStore):
        """Outlives the processes that use it."""

        persistent = True

        def close(self):
            pass

    server, directory = Server(), tmp_path / "g"
    monkeypatch.setattr("iamcl2r_jax.gallery.gallery.open_store", lambda engine, index: server)
    engine = "milvus:http://127.0.0.1:1/g"
    assert run("init", directory, "--model", place / "old", "--engine", engine)[0] == 0
    assert run("add", directory, place / "shop" / "gallery")[0] == 0
    query = ("search", directory, place / "shop" / "query" / "hat" / "0.png")
    before = run(*query)
    server._generations.clear()
    status, _, err = run(*query)
    assert (status, err.count("\n")) == (1, 1)
    assert "run `gallery.py refill`" in err
    assert run("refill", directory) == (0, "refilled: 24 vectors\n", "")
    assert run("verify", directory, "--engine")[0] == 0
    assert run(*query) == before


def test_unreadable_images_are_listed_and_the_others_added(tmp_path, place, run):
    directory, images = tmp_path / "g", tmp_path / "images"
    (images / "hat").mkdir(parents=True)
    (images / "hat" / "bad.png").write_bytes(b"none")
    Image.new("RGB", (16, 16), "red").save(images / "hat" / "good.png")
    run("init", directory, "--model", place / "old")
    status, out, err = run("add", directory, images)
    assert (status, out) == (1, "added: 1\n")
    assert "bad.png is not an image of a known format" in err


def test_help_says_what_each_verb_does_and_imports_no_model():
    code = (
        "import sys; from iamcl2r_jax.programs import gallery\n"
        "try: gallery.main(['retire', '--help'])\n"
        "finally: print({'jax', 'numpy', 'faiss'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "removes the old model's vectors" in " ".join(done.stdout.split())
    assert done.stdout.endswith("set()\n")
    listed = subprocess.run(
        [sys.executable, ROOT / "launch" / "gallery.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for verb, (short, long) in program._VERBS.items():
        assert f" {verb} " in listed
        assert short
        assert long.endswith(".")


def test_home_is_expanded_in_paths(tmp_path, monkeypatch, capsys):
    """A shell leaves the ~ of --model=~/m alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert start.path("~/shop") == str(tmp_path / "home" / "shop")
    with pytest.raises(SystemExit, match="2"):
        program.main(["status", "~nobody-of-this-name/shop"])
    assert "there is no such home directory" in capsys.readouterr().err
