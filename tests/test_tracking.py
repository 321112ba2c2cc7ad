"""What a run leaves while it goes on, read back from disk."""

import json
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from iamcl2r_jax import config
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.training import tracking

HISTORY = [{"loss": 2.0, "accuracy": 0.25}, {"loss": 1.0, "accuracy": 0.5}]
RECORDS = [
    {"task": 0, "history": HISTORY, "task_accuracy": 0.75, "seconds": 3.0},
    {"task": 1, "history": HISTORY[::-1], "task_accuracy": 0.5, "seconds": 4.0},
]
FIGURES = {
    "digits": {
        "matrix": [[0.5, None], [0.4, 0.7]],
        "ac_per_task": [1.0, 0.0],
        "aa_per_task": [50.0, 53.3],
        "metrics": {"recall_at_1": {"ac_per_task": [1.0, 1.0], "aa_per_task": [40.0, 45.0]}},
    }
}


@pytest.fixture
def run_config():
    c = config.default()
    c.train.epochs = 2
    return c


def tell_everything(tracker):
    for record in RECORDS:
        tracker.task(record)
    tracker.evaluations(FIGURES)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """(tag, step, value) of all event files; the value of a picture is its PNG."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, that many bytes, their checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [
                (v.tag, event.step, v.image.encoded_image_string or pytest.approx(v.simple_value))
                for v in event.summary.value
            ]
    return found


def test_lines_of_a_run(run_config, tmp_path):
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    assert lines(tmp_path) == [
        {"task": 0, "epoch": 1, "global_epoch": 1, "train/loss": 2.0, "train/accuracy": 0.25},
        {"task": 0, "epoch": 2, "global_epoch": 2, "train/loss": 1.0, "train/accuracy": 0.5},
        {"task": 0, "task/accuracy": 0.75, "task/seconds": 3.0},
        {"task": 1, "epoch": 1, "global_epoch": 3, "train/loss": 1.0, "train/accuracy": 0.5},
        {"task": 1, "epoch": 2, "global_epoch": 4, "train/loss": 2.0, "train/accuracy": 0.25},
        {"task": 1, "task/accuracy": 0.5, "task/seconds": 4.0},
        {
            "task": 0,
            "task/digits/ac": 1.0,
            "task/digits/aa": 50.0,
            "task/digits/recall_at_1/ac": 1.0,
            "task/digits/recall_at_1/aa": 40.0,
        },
        {
            "task": 1,
            "task/digits/ac": 0.0,
            "task/digits/aa": 53.3,
            "task/digits/recall_at_1/ac": 1.0,
            "task/digits/recall_at_1/aa": 45.0,
        },
    ]


def test_tensorboard_has_the_same_and_the_matrix(run_config, tmp_path):
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    found = events(tmp_path)
    scalars = [entry for entry in found if not isinstance(entry[2], bytes)]
    expected = [
        (name, line.get("global_epoch", line["task"]), value)
        for line in lines(tmp_path)
        for name, value in line.items()
        if "/" in name
    ]
    assert scalars == expected
    pictures = [entry for entry in found if isinstance(entry[2], bytes)]
    assert [entry[:2] for entry in pictures] == [("task/digits/matrix", 1)]
    assert pictures[0][2].startswith(b"\x89PNG")


def test_a_line_is_on_disk_at_once(run_config, tmp_path):
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tracker.epochs(0, HISTORY[:1])
        assert [line["epoch"] for line in lines(tmp_path)] == [1]
        tracker.epochs(0, HISTORY)
        assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]


def test_a_run_that_goes_on_leaves_what_an_uninterrupted_one_does(run_config, tmp_path):
    """Killed after an epoch that no checkpoint holds: the checkpoint's word counts."""
    with tracking.open_tracker(run_config, str(tmp_path / "whole")) as tracker:
        tell_everything(tracker)
    stopped = tmp_path / "[stopped]*"  # as a path, not as a pattern
    with tracking.open_tracker(run_config, str(stopped)) as tracker:
        tracker.task(RECORDS[0])
        tracker.epochs(1, [{"loss": 9.0, "accuracy": 0.9}])
    assert lines(stopped)[-1]["train/loss"] == 9.0
    with tracking.open_tracker(run_config, str(stopped)) as tracker:
        tracker.task(RECORDS[0])
        tracker.epochs(1, RECORDS[1]["history"][:1])
        tracker.task(RECORDS[1])
        tracker.evaluations(FIGURES)
    assert lines(stopped) == lines(tmp_path / "whole")
    assert events(stopped) == events(tmp_path / "whole")


def test_tensorboard_can_be_left_out(run_config, tmp_path):
    run_config.tracking.tensorboard = False
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class FakeRun:
    """A Weights & Biases run that keeps what is logged."""

    def __init__(self, step):
        self.step, self.logged, self.axes, self.exit_code = step, {}, {}, None

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values, step):
        assert step not in self.logged
        self.logged[step] = values

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """The module, as far as it is used; `runs` are what was started."""
    fake = types.ModuleType("wandb")
    fake.runs, fake.first_step, fake.options = [], 0, None
    fake.Error = type("Error", (Exception,), {})
    fake.Image = lambda pixels: ("image", pixels.shape[-1], str(pixels.dtype))

    def init(**options):
        fake.options = options
        fake.runs.append(FakeRun(fake.first_step))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_gets_the_same_lines_and_pictures(run_config, wandb, tmp_path):
    run_config.tracking.wandb = True
    tracking.check(run_config.tracking)
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    (run,) = wandb.runs
    expected = dict(enumerate(lines(tmp_path)))
    expected[7]["task/digits/matrix"] = ("image", 3, "uint8")
    assert run.logged == expected
    assert run.axes == {"train/*": "global_epoch", "task/*": "task"}
    assert run.exit_code == 0
    assert wandb.options["dir"] == str(tmp_path)
    assert wandb.options["config"]["train"]["epochs"] == 2


def test_weights_and_biases_goes_on_after_the_lines_it_has(run_config, wandb, tmp_path):
    run_config.tracking.wandb = True
    wandb.first_step = 4
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    assert sorted(wandb.runs[0].logged) == [4, 5, 6, 7]
    assert len(lines(tmp_path)) == 8


def test_weights_and_biases_learns_that_a_run_was_stopped(run_config, wandb, tmp_path):
    run_config.tracking.wandb = True
    with pytest.raises(KeyboardInterrupt), tracking.open_tracker(run_config, str(tmp_path)):
        raise KeyboardInterrupt
    assert wandb.runs[0].exit_code == 1


def test_weights_and_biases_missing_is_one_line(run_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracking.check(run_config.tracking)  # not asked for
    run_config.tracking.wandb = True
    with pytest.raises(InputError, match=r"^tracking\.wandb=True: .*not installed; pip install"):
        tracking.check(run_config.tracking)


def test_weights_and_biases_refusing_is_one_line(run_config, wandb, tmp_path):
    def init(**_):
        raise wandb.Error("no API key\nconfigured")

    wandb.init = init
    run_config.tracking.wandb = True
    with (
        pytest.raises(InputError, match=r"^tracking\.wandb=True: no API key configured$"),
        tracking.open_tracker(run_config, str(tmp_path)),
    ):
        pass


def test_only_the_first_process_writes(run_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.jax, "process_index", lambda: 1)
    with tracking.open_tracker(run_config, str(tmp_path)) as tracker:
        tell_everything(tracker)
    assert not list(tmp_path.iterdir())
