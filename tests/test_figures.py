"""The paper's figures from runs, on small runs that are written and not trained."""

import gzip
import pathlib
import struct
import subprocess
import sys

import archives
import jax
import numpy as np
import pytest
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from rich.console import Console

from iamcl2r_jax import simplex
from iamcl2r_jax.config import check_stream, validate
from iamcl2r_jax.config.args import ConfigArgError
from iamcl2r_jax.data.stream import split_tasks
from iamcl2r_jax.evaluation import theorem
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.evaluation.pairs import PairValues, summarize
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import expected_variables, stored
from iamcl2r_jax.reports import figures, plots, updates
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, runs
from iamcl2r_jax.training.context import image_options
from iamcl2r_jax.training.schedule import Schedule

ROOT = pathlib.Path(__file__).parents[1]
place = archives.place  # a fixture

K = 16


def load_config(name):
    """The config that a program of launch/ gets for --config=configs/NAME."""
    return ConfigFileFlagParser("config").parse(str(ROOT / "configs" / name))


def quiet():
    return Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def variables():
    """Two models of one small architecture; drawn here, as compiling their own draw is slow."""
    spec = stored.Architecture.of("resnet18", K - 1, {"width": 4, "stem": "imagenet"})
    shapes = expected_variables(spec.module(), 16)

    def drawn(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda s: rng.uniform(0.1, 0.9, s.shape).astype(s.dtype) - 0.4, shapes)

    models = [drawn(seed) for seed in (0, 1)]
    for model in models:  # variances are positive
        model["batch_stats"] = jax.tree.map(np.abs, model["batch_stats"])
    return spec, models


@pytest.fixture
def write_run(tmp_path, variables):
    """Writes a finished run of two tasks on handwriting and returns its directory."""

    def write(
        name,
        *,
        method="hoc",
        seed=0,
        models=(0, 1),
        replaced=(0, 1),
        retrained=(),
        ce=(2.0, 1.0),
        c22=0.9,
    ):
        spec, choices = variables
        c = load_config("update_handwriting.py")
        c.method, c.seed, c.num_slots, c.image.size = method, seed, K, 16
        c.replacements.tasks = c.replacements.classes = ()
        c.model.options.width = 4
        workdir = str(tmp_path / name)
        files.write_json(f"{workdir}/config.json", c.to_dict())
        head = heads.LINEAR if method == "er" else heads.SIMPLEX
        for task, chosen in enumerate(models):
            arrays = choices[chosen]
            if method == "er":
                rows = heads.random_rows(jax.random.key(task), K, K - 1)
                arrays = heads.attach(arrays, jax.device_get(rows))
            about = {
                "task": task,
                "replaced_by": "external" if task in replaced else None,
                "external": None,
                "retrained": task in retrained,
                "memory": [],
                "task_accuracy": 0.5,
                "history": [{"ce": v + 3 * (1 - task), "loss": 0.1 * v - task} for v in ce],
            }
            metadata = stored.Metadata(
                stored.TASK,
                spec,
                head,
                K,
                (K - 5 * (task + 1), K),
                stored.ImageInput.of(c.image),
                about,
            )
            stored.save_model(runs.task_path(workdir, task), stored.Model(metadata, arrays))
        matrix = np.array([[0.5, np.nan], [0.4, c22]])
        files.write_json(
            f"{workdir}/results.json",
            {"evaluations": {"digits": figures_of(matrix)}},
        )
        return workdir

    return write


def figures_of(matrix):
    """What results.json holds of a matrix of two models."""
    return summarize(PairValues(matrix, *2 * [np.zeros((2, 2, 2))]))


def draw(figure, workdirs, output, **options):
    """Draws a figure, and returns the numbers beside the pictures by the name of the file."""
    figures.main(figure, workdirs, str(output), reporter=quiet(), **options)
    stems = sorted(path.with_suffix("") for path in output.glob("*.png"))
    for stem in stems:
        assert stem.with_suffix(".png").stat().st_size > 5000
        assert "<svg" in stem.with_suffix(".svg").read_text()
    return {stem.name: files.read_json(f"{stem}.json") for stem in stems}


# --- Fig. 3, 4, 5 -----------------------------------------------------------------------------


def test_losses_are_those_of_the_last_task(write_run, tmp_path):
    runs = [
        write_run("a", method="simplex", ce=(2.0, 1.0)),
        write_run("b", ce=(4.0, 3.0)),
        write_run("c", seed=1, ce=(4.0, 5.0)),
    ]
    losses = draw("losses", runs, tmp_path / "out")["losses"]["losses"]
    alone = losses["ce"]["simplex"]
    assert (alone["mean"], alone["std"], alone["runs"]) == ([2.0, 1.0], None, runs[:1])
    assert losses["ce"]["hoc"]["mean"] == [4.0, 4.0]
    np.testing.assert_allclose(losses["ce"]["hoc"]["std"], [0, 2**0.5])
    np.testing.assert_allclose(losses["loss"]["hoc"]["mean"], [-0.6, -0.6])


def test_accuracy_says_which_runs_were_never_replaced(write_run, tmp_path):
    runs = [write_run("a"), write_run("b", replaced=(0,), c22=0.6)]
    drawn = draw("accuracy", runs, tmp_path / "out")["accuracy-digits"]
    assert drawn["replacements"] == [1]
    lines = {label: line["mean"] for label, line in drawn["aa_per_task"].items()}
    np.testing.assert_allclose(lines["hoc"], [50, 60])
    np.testing.assert_allclose(lines["hoc, not replaced"], [50, 50])


def test_retrained_tasks_are_not_taken_for_replaced_ones(write_run, tmp_path):
    run = write_run("a", replaced=(0,), retrained=(1,))
    drawn = draw("accuracy", [run], tmp_path / "out")["accuracy-digits"]
    assert (drawn["replacements"], drawn["retrained"]) == ([], [1])
    assert "retrained from scratch" in (tmp_path / "out" / "accuracy-digits.svg").read_text()
    draw("compatibility", [run], tmp_path / "out")
    svg = (tmp_path / "out" / "compatibility-digits.svg").read_text()
    assert "bold: model replaced, +: retrained from scratch" in svg
    assert svg.count("<!-- 2+ -->") == 2  # on both axes
    records = figures.load_runs([run])[0].records
    assert updates._kind(records) == updates.RETRAINED
    assert updates._kind(records[:1]) == updates.REPLACED


def test_matrices_are_named_apart_by_method_seed_and_place(write_run, tmp_path):
    runs = [write_run("a"), write_run("b", seed=1), write_run("c", method="er"), write_run("d")]
    drawn = draw("compatibility", runs, tmp_path / "out")["compatibility-digits"]
    names = ["hoc, seed 0, " + runs[0], "hoc, seed 1", "er", "hoc, seed 0, " + runs[3]]
    assert list(drawn["runs"]) == names
    assert drawn["runs"]["er"]["matrix"] == [[0.5, None], [0.4, 0.9]]
    assert drawn["runs"]["er"]["ac"] == 0.0


def test_given_labels_are_taken(write_run, tmp_path):
    runs = [write_run("a"), write_run("b")]
    drawn = draw("accuracy", runs, tmp_path / "out", labels=["one", "two"])["accuracy-digits"]
    assert list(drawn["aa_per_task"]) == ["one", "two"]


def test_what_cannot_be_drawn_is_refused_in_one_line(write_run, tmp_path):
    run = write_run("a")
    for figure, workdirs, options, message in (
        ("losses", [], {}, "workdir: name one or more runs"),
        ("losses", [str(tmp_path)], {}, "holds no run"),
        ("losses", [run], {"labels": ["a", "b"]}, "there are 2 for 1 runs"),
        ("losses", [write_run("b", models=(0,))], {}, "one task is no update"),
        ("losses", [run, write_run("c", ce=(1.0,))], {}, "differ in the number of epochs"),
        ("theorem", [write_run("d", models=(0,))], {}, "no two models"),
        ("matrix", [run], {}, "must be one of losses, accuracy"),
    ):
        with pytest.raises(InputError, match=message):
            draw(figure, workdirs, tmp_path / "out", **options)
    pathlib.Path(run, "results.json").unlink()
    with pytest.raises(InputError, match="is not finished"):
        draw("accuracy", [run], tmp_path / "out")


def test_the_program_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch/figures.py", "--figure=accuracy", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: workdir={tmp_path}: holds no run")


def test_matrices_of_one_figure_share_their_colours():
    first, second = [[0.5, None], [0.4, 0.6]], [[0.1, None], [0.2, 0.9]]
    figure = plots.heat_maps({"a": (first, Schedule([0])), "b": (second, Schedule([1]))})
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images[:2]] == [(10, 90), (10, 90)]
    hatched = [len(axes.collections[0].get_paths()) for axes in figure.axes[:2]]
    assert hatched == [1, 0]  # 0.4 is below 0.5, 0.2 is not below 0.1


# --- Theorem 1 --------------------------------------------------------------------------------


def test_theorem_of_a_run_equals_the_check_of_its_features(write_run, variables, tmp_path):
    """Classes, images, features and classifier vectors are the right ones, for a learnable head."""
    run = write_run("a", method="er", replaced=(0,))
    written = draw("theorem", [run], tmp_path / "out", resamples=30, seed=3)["theorem-er"]
    assert (written["method"], written["resamples"], written["confidence"]) == ("er", 30, 0.95)
    (update,) = written["updates"]
    assert (update["old"], update["new"], update["kind"]) == (0, 1, updates.FINE_TUNED)
    assert update["classes"] == ["0", "1", "2", "3", "4"]

    spec, choices = variables
    config = figures.load_runs([run])[0].config
    test = inputs.load_stream(config).test
    known = test.labels < 5
    extractor = FeatureExtractor(spec.module(), image_options(config.image))
    old, new = (extractor(chosen, test.images[known]) for chosen in choices)
    rows = [np.asarray(heads.random_rows(jax.random.key(t), K, K - 1)) for t in (0, 1)]
    vectors = [of[::-1][:5] for of in rows]  # class y owns row K - 1 - y
    expected = theorem.check(
        new, old, test.labels[known], vectors[1], vectors[0], resamples=30, seed=3
    )
    np.testing.assert_allclose(update["kappa_old"], expected.kappa_old, atol=1e-6)
    np.testing.assert_allclose(update["kappa_new"], expected.kappa_new, atol=1e-6)
    for part in ("same", "other", "mean_same", "mean_other"):
        for name in ("before", "after", "margin", "interval", "caps_before", "caps_after"):
            measured = getattr(getattr(expected, part), name)
            np.testing.assert_allclose(update[part][name], measured, atol=1e-5)


def test_theorem_of_the_same_model_twice_is_a_tie(write_run, tmp_path):
    run = write_run("a", models=(0, 0))
    written = draw("theorem", [run], tmp_path / "out", resamples=20)["theorem-hoc"]
    assert written["updates"][0]["kind"] == updates.REPLACED
    for part, cases in (("same", 5), ("other", 5), ("pairs", 20)):
        found = written["summary"]["all"][part]
        assert found["cases"] == cases
        assert (found["holds"], found["holds_beyond"], found["violated_beyond"]) == (1, 0, 0)
        assert found["before"] == pytest.approx(found["after"])
    assert [model["classes"] for model in written["models"]] == [5, 10]
    text = (tmp_path / "out" / "theorem-hoc.md").read_text()
    assert "| all (1) " in text
    assert "| 1 → 2* " in text


def caps_run(kappas):
    """Updates of a made-up run: caps of one concentration each on K vertices."""
    rng = np.random.default_rng(0)
    vectors = simplex.dsimplex(4).astype(np.float64)[:3]
    labels = np.repeat([0, 1, 2], 400)
    features = []
    for kappa in kappas:
        noise = rng.normal(size=(len(labels), 3))
        noise[1::2] = -noise[::2]
        noise -= np.sum(noise * vectors[labels], 1, keepdims=True) * vectors[labels]
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        features.append(kappa * vectors[labels] + np.sqrt(1 - kappa**2) * noise)
    return [
        updates.Update(k, t, kind, "abc", check)
        for k, t, kind in ((0, 1, updates.FINE_TUNED), (1, 2, updates.REPLACED))
        for check in [
            theorem.check(features[t], features[k], labels, vectors, vectors, resamples=100)
        ]
    ]


def test_summary_keeps_kinds_of_updates_apart():
    """Concentrated by the first update, which then holds, and spread by the second."""
    summary = updates.summarize(caps_run([0.5, 0.9, 0.4]))
    assert list(summary) == ["all", updates.FINE_TUNED, updates.REPLACED]
    shares = {group: found["kappa_grew"] for group, found in summary.items()}
    assert shares == {"all": 0.5, updates.FINE_TUNED: 1.0, updates.REPLACED: 0.0}
    for part in ("same", "other", "pairs"):
        for group, share in shares.items():
            assert summary[group][part]["holds"] == share
            assert summary[group][part]["caps_hold"] == share
            assert summary[group][part]["holds_beyond"] == share
    assert summary["all"]["same"]["cases"] == 6
    assert summary["all"]["same"]["before"] == pytest.approx(1 - (0.25 + 0.81) / 2, abs=0.01)


def test_shared_direction_tells_caps_from_features_that_share_one():
    vectors = simplex.dsimplex(64)[:4]
    shared = theorem.shared_direction(vectors)
    np.testing.assert_allclose(vectors @ shared, np.full(4, (vectors @ shared)[0]), atol=1e-6)
    others = simplex.dsimplex(64)[4:] @ shared
    assert others.max() < 0 < (vectors @ shared).min()
    labels = np.repeat(np.arange(4), 3)
    caps = updates._state(0, vectors[labels], labels, vectors)
    assert caps["kappa"] == pytest.approx(1)
    assert caps["shared"] == pytest.approx(caps["caps_shared"])
    leaning = updates._state(0, vectors[labels] + 2 * shared, labels, vectors)
    assert leaning["shared"] > 0.9 > 0.8 > leaning["kappa"]
    assert leaning["caps_shared"] < 0.5


# --- Configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arg", "name", "tasks", "classes"),
    [
        ("tasks=31", "glyphs31", (0, 10, 20), (100, 300, 600)),
        ("tasks=31,replacements=no", "glyphs31-not-replaced", (0,), (100,)),
    ],
)
def test_glyphs_have_the_papers_31_tasks(arg, name, tasks, classes):
    c = load_config(f"glyphs.py:{arg}")
    validate(c)
    split = split_tasks(100, c.stream.initial_classes, c.stream.increment)
    assert [len(task) for task in split] == [10] + 30 * [3]
    check_stream(c, 100, len(split))
    assert (c.name, c.replacements.tasks, c.replacements.classes) == (name, tasks, classes)


@pytest.mark.parametrize(
    ("arg", "tasks"), [("", (0,)), (":start=scratch", ()), (":dataset=mnist", (0,))]
)
def test_update_is_of_two_tasks(arg, tasks):
    c = load_config(f"update_handwriting.py{arg}")
    validate(c)
    assert [len(task) for task in split_tasks(10, 5, c.stream.increment)] == [5, 5]
    check_stream(c, 10, 2)
    assert c.replacements.tasks == tasks


def test_unknown_options_are_refused():
    with pytest.raises(ConfigArgError, match="replacements=maybe: must be one of yes, no"):
        load_config("glyphs.py:replacements=maybe")
    with pytest.raises(ConfigArgError, match="dataset=cifar10: must be one of"):
        load_config("update_handwriting.py:dataset=cifar10")


def test_update_on_mnist_reads_the_real_format(place):
    """Small archives of MNIST's format: the stream and the evaluation of :dataset=mnist."""
    rng = np.random.default_rng(0)
    for count, prefix in ((1200, "train"), (40, "t10k")):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, content in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()),
            ("labels-idx1", struct.pack(">2i", 2049, count) + labels.tobytes()),
        ):
            url = f"{archives.MNIST}{prefix}-{kind}-ubyte.gz"
            data_dir = place("mnist", url, gzip.compress(content))
    c = load_config("update_handwriting.py:dataset=mnist")
    c.data_dir = data_dir
    assert inputs.stream_size(c) == (10, 2)
    stream = inputs.load_stream(c)
    assert stream.train.images.shape == (1200, 32, 32, 3)
    assert set(stream.train.labels[stream.train_indices(1)]) == {5, 6, 7, 8, 9}
    evaluation = inputs.load_evaluations(c)["held_out"]
    assert (len(evaluation.query), len(evaluation.gallery)) == (40, 1000)
    assert set(evaluation.gallery.labels) == set(range(10))
