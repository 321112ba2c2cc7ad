"""What a run can be besides the paper's: other architectures, retraining, asynchronous arrival.

Every scenario is run whole, with one method of each kind of head: simplex, linear and cosine. The
networks are the two-layer ones of `small_runs`, but for the run that changes architecture twice.
`test_products.py` has methods by backbones.
"""

import ast
import io
import pathlib
import shlex
import shutil
import types
from functools import partial

import chex
import jax
import numpy as np
import pytest
import small_runs
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from rich.console import Console
from small_runs import STREAM, K, save_external, small_config

from iamcl2r_jax import config, models, retrieval
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints, stored
from iamcl2r_jax.reports import report
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import arrivals, context, lifelong, runs
from iamcl2r_jax.training import task as task_module
from iamcl2r_jax.training.schedule import fixed_schedule

HEADS = {heads.SIMPLEX: "hoc", heads.LINEAR: "bct_er", heads.COSINE: "cvs"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    small_runs.write_images(root)
    return root


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    small_runs.register(monkeypatch)


def same_outcome(first, second, workdirs, c):
    """Two runs have the same figures and the same models, to the bit."""
    for part in ("task_accuracy", "evaluations", "references", "replacements", "retrained"):
        assert first[part] == second[part]
    for task in range(first["num_tasks"]):
        chex.assert_trees_all_equal(
            *(runs.load_task(c, str(workdir), task).variables for workdir in workdirs)
        )


# Architectures that change.


def test_architecture_changes_twice(images, tmp_path, monkeypatch):
    """A ResNet, then a SENet, then a ViT: one trace each, and every pair of models evaluated.

    They are cut to one block each; what a program is compiled of is the whole cost of this test.
    """
    for name in ("resnet20", "senet18"):
        short = partial(models.BACKBONES[name], stage_sizes=(1,))
        monkeypatch.setitem(models.BACKBONES, name, short)
    c = small_config(images, backbone="resnet20", width=4)
    c.train.epochs = 1
    c.replacements.tasks = (1, 2)
    c.replacements.checkpoints = (
        save_external(tmp_path / "senet", c, 2, backbone="senet18", width=4),
        save_external(tmp_path / "vit", c, 3, backbone="vit_tiny", width=8, depth=1),
    )
    workdir = str(tmp_path / "run")
    results = lifelong.run(c, workdir)
    assert results["train_traces"] == 3
    assert results["feature_passes"] == 3
    assert backbones(workdir, 3) == ["resnet20", "senet18", "vit_tiny"]
    matrix = results["evaluations"]["open"]["matrix"]
    assert [sum(value is not None for value in row) for row in matrix] == [1, 2, 3]

    evaluation = lifelong.inputs.load_evaluations(c)["open"]
    programs = context.ProgramsByArchitecture(c)

    def features(task, images):
        model = runs.load_task(c, workdir, task)
        return programs.features(model.architecture)(model.variables, images)

    across = retrieval.identification_accuracy(
        features(0, evaluation.gallery.images),
        evaluation.gallery.labels,
        features(2, evaluation.query.images),
        evaluation.query.labels,
    )
    assert matrix[2][0] == pytest.approx(across)


def backbones(workdir, num_tasks):
    paths = [runs.task_path(workdir, task) for task in range(num_tasks)]
    return [stored.load_metadata(path).architecture.backbone for path in paths]


def test_teacher_and_student_may_differ(images, tmp_path, monkeypatch):
    """Retrained in the configured architecture, taught by an external network of another width."""
    c = small_config(images)
    c.replacements.tasks, c.replacements.retrain = (0,), (1,)
    c.replacements.checkpoints = (save_external(tmp_path / "wide", c, 2, backbone="wide"),)
    seen = spy_on_training(monkeypatch)
    results = lifelong.run(c, str(tmp_path / "run"))
    assert results["train_traces"] == 3  # wide by wide, small by wide, small by small
    assert backbones(str(tmp_path / "run"), 3) == ["wide", "small", "small"]
    teacher = runs.load_task(c, str(tmp_path / "run"), 0)
    chex.assert_trees_all_equal(seen[1][1].old.variables, teacher.variables)


def test_a_method_without_old_model_needs_no_program_for_each_teacher(images):
    small, wide = (stored.Architecture(name, K - 1) for name in ("small", "wide"))
    models = {a: stored.Model(types.SimpleNamespace(architecture=a), {}) for a in (small, wide)}
    for method, shared in (("er", True), ("hoc", False)):
        c = small_config(images, method)
        programs = context.ProgramsByArchitecture(c)

        def epoch(architecture, origin, c=c, programs=programs):
            old = task_module.teachers(c, models[origin], None)
            return programs.epoch(architecture, tuple(model.architecture for model in old))

        assert (epoch(small, wide) is epoch(small, small)) == shared
        assert epoch(small, small) is epoch(small, small)
        assert epoch(wide, wide) is not epoch(small, small)


def spy_on_training(monkeypatch):
    """The variables that each task starts from and the data that it trains with, as they come."""
    seen, train = [], lifelong.fit

    def spy(title, epoch, variables, data, *args, **options):
        seen.append((variables, data))
        return train(title, epoch, variables, data, *args, **options)

    monkeypatch.setattr(lifelong, "fit", spy)
    return seen


# Without replacement: CL²R.


@pytest.mark.parametrize("method", HEADS.values())
def test_from_an_external_model_without_replacement(images, tmp_path, method):
    c = small_config(images, method)
    c.replacements.tasks = (0,)
    c.replacements.checkpoints = (save_external(tmp_path / "model", c, 3),)
    results = lifelong.run(c, str(tmp_path / "run"))
    assert results["replacements"] == [0]
    assert results["retrained"] == []
    assert results["fixed_schedule"] is None
    assert results["train_traces"] == 1


@pytest.mark.parametrize("method", HEADS.values())
def test_from_scratch_without_replacement(images, tmp_path, method):
    results = lifelong.run(small_config(images, method), str(tmp_path / "run"))
    assert results["replacements"] == results["retrained"] == []
    assert results["train_traces"] == 1


# Retraining on all images so far.


@pytest.mark.parametrize("method", HEADS.values())
def test_retraining(images, tmp_path, monkeypatch, method):
    """A new network on the images of all tasks, taught by the last model; and one trace still."""
    c = small_config(images, method)
    c.replacements.retrain = (1,)
    workdir = tmp_path / "run"
    seen = spy_on_training(monkeypatch)
    results = lifelong.run(c, str(workdir))
    assert results["retrained"] == [1]
    assert results["replacements"] == []
    assert results["train_traces"] == 1

    assert [int(data.new.size) for _, data in seen] == [10, 20, 10]
    assert [int(data.memory.size) for _, data in seen] == [0, 0, 8]
    variables, data = seen[1]
    before = runs.load_task(c, str(workdir), 0).variables
    chex.assert_trees_all_equal(data.old.variables, before)
    assert bool(data.old.exists)
    first, _ = seen[0]
    for other in (before, first):
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(other), strict=True):
            if np.ndim(a) > 1:  # biases and statistics begin alike
                assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.4
    # The task after it goes on from it.
    chex.assert_trees_all_equal(
        jax.device_get(seen[2][0]), runs.load_task(c, str(workdir), 1).variables
    )
    records = runs.task_records(str(workdir))
    assert [record["retrained"] for record in records] == [False, True, False]
    assert [len(record["memory"]) for record in records] == [4, 8, 12]

    console = Console(width=100, file=io.StringIO())
    report.print_results(results, str(workdir), console)
    printed = console.file.getvalue()
    assert "2+" in printed
    assert "+ retrained at this task" in printed
    assert "model replaced" not in printed


def test_resumed_retraining_equals_the_uninterrupted_one(images, tmp_path):
    c = small_config(images)
    c.replacements.retrain = (1,)
    results = lifelong.run(c, str(tmp_path / "whole"))
    resumed = tmp_path / "resumed"
    for part in ("config.json", "data.json", "numerics.json"):
        resumed.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "whole" / part, resumed)
    shutil.copytree(tmp_path / "whole" / "tasks" / "0", resumed / "tasks" / "0")
    again = lifelong.run(c, str(resumed))
    same_outcome(results, again, (tmp_path / "whole", resumed), c)


@pytest.mark.parametrize(
    ("tasks", "retrain", "message"),
    [
        ((), (0,), r"retrain=\(0,\): must be a tuple, each item an integer in \[1,"),
        ((), (2, 1), r"retrain=\(2, 1\): must be different tasks in increasing order"),
        ((), (1, 1), r"retrain=\(1, 1\): must be different tasks in increasing order"),
        ((), (1.0,), r"retrain=\(1\.0,\): must be a tuple, each item an integer"),
        ((1, 2), (2,), r"retrain=\(2,\): task 2 is in replacements\.tasks=\(1, 2\) too"),
        (
            (-1,),
            (),
            r"replacements\.tasks=\(-1,\): must be a tuple, each item an integer in \[0,",
        ),
    ],
)
def test_schedules_that_cannot_be(images, tasks, retrain, message):
    c = small_config(images)
    c.replacements.tasks, c.replacements.retrain = tasks, retrain
    c.replacements.checkpoints = ("a", "b")[: len(tasks)]
    with pytest.raises(InputError, match=message):
        config.validate(c)


def test_retraining_after_the_last_task_is_refused(images, tmp_path):
    c = small_config(images)
    c.replacements.retrain = (3,)
    with pytest.raises(InputError, match=r"replacements\.retrain=\(3,\): the stream has 3 tasks"):
        lifelong.run(c, str(tmp_path / "run"))


# Asynchronous arrival.


class Deliverer(Reporter):
    """Brings what is given for a task into a directory once the task before is reported."""

    def __init__(self, deliveries):
        super().__init__(Console(quiet=True))
        self.deliveries, self.lines = deliveries, []

    def message(self, text):
        self.lines.append(text)
        for task, deliver in self.deliveries.items():
            if text.startswith(f"task {task}/") and "new classes" in text:
                deliver()


def take(c, workdir, task, records=(), reporter=None):
    """What a task takes up, as a run asks for it."""
    context = types.SimpleNamespace(
        config=c, workdir=str(workdir), reporter=reporter or Deliverer({})
    )
    return arrivals.take(context, task, records)


def record_of(model):
    """The part of a task's record that says what it took up."""
    return {"external": None if model is None else arrivals.merits(model.metadata)}


def watching(images, tmp_path, method="hoc"):
    c = small_config(images, method)
    watched = tmp_path / "watched"
    watched.mkdir()
    c.replacements.watch = str(watched)
    return c, watched


@pytest.mark.parametrize("method", HEADS.values())
def test_arrivals_are_taken_up_and_reproduced_as_a_fixed_schedule(images, tmp_path, method):
    c, watched = watching(images, tmp_path, method)
    save_external(watched / "first", c, 2, accuracy=0.5)
    save_external(watched / "foreign", c, 3, num_slots=K + 1)  # of another simplex
    (watched / "half").mkdir()
    save_external(watched / ".draft", c, 4)

    def worse():
        save_external(watched / "worse", c, 2, accuracy=0.4, seed=1)
        save_external(watched / "equal", c, 2, accuracy=0.5, seed=2)

    def better():
        save_external(watched / "a", c, 3, accuracy=None, seed=3)
        save_external(watched / "b", c, 3, accuracy=0.2, seed=4)
        save_external(watched / "c", c, 3, accuracy=0.1, seed=5)
        save_external(watched / "d", c, 2, accuracy=0.9, seed=6)

    reporter = Deliverer({1: worse, 2: better})
    workdir = tmp_path / "run"
    results = lifelong.run(c, str(workdir), reporter)
    assert results["replacements"] == [0, 2]
    assert results["train_traces"] == 1
    origins = {
        task: stored.load_metadata(path).about["taken_from"]
        for task, path in results["external_models"].items()
    }
    assert origins == {"0": str(watched / "first"), "2": str(watched / "b")}
    records = runs.task_records(str(workdir))
    taken = results["external_models"]
    assert [record["replaced_by"] for record in records] == [taken["0"], None, taken["2"]]
    refused = [line for line in reporter.lines if "left alone" in line]
    assert len(refused) == 3  # at each boundary
    assert all("foreign" in line and "K=13" in line and "\n" not in line for line in refused)
    assert (watched / "foreign").exists()

    # Whatever becomes of the directory: the flags that the results carry give the same run.
    shutil.rmtree(watched)
    fixed = small_config(images, method)
    flags = dict(flag.split("=", 1) for flag in shlex.split(results["fixed_schedule"]))
    assert flags.pop("--config.replacements.watch") == ""
    for name, value in flags.items():
        fixed.replacements[name.removeprefix("--config.replacements.")] = ast.literal_eval(value)
    again = lifelong.run(fixed, str(tmp_path / "fixed"))
    assert again["external_models"] == results["external_models"]
    same_outcome(results, again, (workdir, tmp_path / "fixed"), c)


def test_a_resumed_run_keeps_to_what_it_took(images, tmp_path, monkeypatch):
    """Stopped while it trains on what has arrived, it finds better models when it continues."""
    c, watched = watching(images, tmp_path)
    save_external(watched / "first", c, 2)

    save_external(tmp_path / "second", c, 3, seed=1)
    deliveries = {2: lambda: shutil.copytree(tmp_path / "second", watched / "second")}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = lifelong.run(c, str(whole), Deliverer(deliveries))
    assert results["replacements"] == [0, 2]

    shutil.rmtree(watched / "second")
    train = lifelong.train_task

    def until_the_last(group, task, *args):
        if task == 2:
            raise KeyboardInterrupt
        return train(group, task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(lifelong, "train_task", until_the_last)
        with pytest.raises(KeyboardInterrupt):
            lifelong.run(c, str(stopped), Deliverer(deliveries))
    for name in ("first", "second"):
        shutil.rmtree(watched / name)
    for name in ("better", "best"):
        save_external(watched / name, c, 5, seed=7)
    again = lifelong.run(c, str(stopped), Deliverer({}))
    assert again["replacements"] == [0, 2]
    same_outcome(results, again, (whole, stopped), c)


def test_finished_tasks_are_replaced_by_what_their_records_say(images, tmp_path):
    """Whatever became of the decisions, and of what lies in the watched directory, since then."""
    c, watched = watching(images, tmp_path)
    save_external(watched / "first", c, 2)
    results = lifelong.run(c, str(tmp_path / "run"), Deliverer({}))
    assert results["replacements"] == [0]
    for name in ("results.json", "arrivals/0.json", "arrivals/1.json"):
        (tmp_path / "run" / name).unlink()
    save_external(watched / "better", c, 4, seed=1)
    again = lifelong.run(c, str(tmp_path / "run"), Deliverer({}))
    for part in ("replacements", "external_models", "references", "evaluations"):
        assert again[part] == results[part]


def test_a_decision_cut_short_keeps_the_copy(images, tmp_path):
    """A copy is taken even if the line that says so was not written any more."""
    c, watched = watching(images, tmp_path)
    save_external(watched / "first", c, 2)
    workdir = str(tmp_path / "run")
    taken = take(c, workdir, 0)
    (tmp_path / "run" / "arrivals" / "0.json").unlink()
    save_external(watched / "better", c, 3, seed=1)
    again = take(c, workdir, 0)
    chex.assert_trees_all_equal(again.variables, taken.variables)
    records = [record_of(again)]
    # And a decision that nothing is taken holds as well.
    (nothing := tmp_path / "empty").mkdir()
    c.replacements.watch = str(nothing)
    assert take(c, workdir, 1, records) is None
    c.replacements.watch = str(watched)
    assert take(c, workdir, 1, records) is None
    assert take(c, workdir, 2, [*records, record_of(None)]).metadata.slots == (0, 3)


def test_fixed_tasks_and_retraining_are_not_looked_for(images, tmp_path):
    c, watched = watching(images, tmp_path)
    save_external(watched / "first", c, 2)
    c.replacements.tasks, c.replacements.retrain = (0,), (1,)
    for task in (0, 1):
        assert take(c, tmp_path, task) is None
    assert not (tmp_path / "arrivals").exists()


def test_what_a_watched_directory_may_hold(images, tmp_path):
    """No record, however strange, ends the run; none is taken for a model."""
    c, watched = watching(images, tmp_path)
    good = save_external(watched / "good", c, 2)
    model = stored.load_model(good)
    strange = {
        "task": {"kind": "task"},
        "slots": {"slots": None},
        "architecture": {"architecture": {}},
        "accuracy": {"slots": [0, 3], "about": {"accuracy": "high"}},
        "percent": {"slots": [0, 3], "about": {"accuracy": 50.0}},
        "large": {"slots": [0, K - STREAM + 1]},
        "damaged": {"slots": [0, 4]},
    }
    for name, changes in strange.items():
        written = model.metadata.to_json() | changes
        checkpoints.save(str(watched / name), model.variables, written)
    file = next(path for path in (watched / "damaged" / "variables").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes() + b"x")
    (watched / "notes.txt").write_text("about these models")
    reporter = Deliverer({})
    taken = take(c, tmp_path / "run", 0, reporter=reporter)
    assert taken.metadata.about["taken_from"] == good
    left = [line for line in reporter.lines if "left alone" in line]
    assert len(left) == len(strange)
    for name in strange:
        assert sum(str(watched / name) in line for line in left) == 1


def test_a_directory_that_is_not_there_is_refused(images, tmp_path):
    c = small_config(images)
    c.replacements.watch = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"replacements\.watch='.*nowhere': there is no such dir"):
        lifelong.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_decision_is_refused(images, tmp_path):
    c, _ = watching(images, tmp_path)
    workdir = str(tmp_path / "run")
    assert take(c, workdir, 0) is None
    decision = tmp_path / "run" / "arrivals" / "0.json"
    decision.write_text(decision.read_text().replace("false", "true"))
    with pytest.raises(InputError, match=r"0\.json is damaged"):
        take(c, workdir, 0)


@pytest.mark.parametrize(("start", "tasks"), [("", ()), (":start=external", (0,))])
def test_cl2r_is_the_default_without_replacements(start, tasks):
    path = pathlib.Path(__file__).parents[1] / "configs" / "cl2r_glyphs.py"
    c = ConfigFileFlagParser("config").parse(f"{path}{start}")
    config.validate(c)
    default = config.default()
    assert c.replacements.tasks == tasks
    assert c.replacements.classes == default.replacements.classes[: len(tasks)]
    assert c.name != default.name
    for changed in (c, default):  # and nothing else differs
        changed.name = ""
        changed.replacements.tasks = changed.replacements.classes = ()
    assert config.differences(c.to_dict(), default.to_dict()) == []


@pytest.mark.parametrize("paths", [{}, {0: "runs/it's here/0", 3: "b"}])
def test_the_fixed_schedule_is_flags_that_can_follow_those_of_the_run(monkeypatch, paths):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    path = pathlib.Path(__file__).parents[1] / "configs" / "glyphs.py"
    schedule = shlex.split(fixed_schedule(paths))
    argv = ["main.py", f"--config={path}", "--config.replacements.watch=DIR", *schedule]
    monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for fields
    values(argv)
    c = values.config
    config.validate(c)
    assert c.replacements.tasks == tuple(paths)
    assert c.replacements.checkpoints == tuple(paths.values())
    assert c.replacements.watch == ""
