"""Damaged and foreign files: noticed, named in one line, and never run.

Every file that a run reads is damaged in turn: progress and task checkpoints, external models,
config.json, data.json, results.json, images in folders and TFDS files. A damage counts as harmless
only if what is read is bit for bit what was written.
"""

import contextlib
import errno
import os
import pathlib
import pickle
import shutil
import sys
import types
import zipfile
from functools import partial

import jax
import numpy as np
import pytest
import smallworld
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from iamcl2r_jax.data import sources
from iamcl2r_jax.models import checkpoints, stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.torch_import import torch_files
from iamcl2r_jax.training import external, lifelong, pretraining, runs
from iamcl2r_jax.training.resume import Position, ProgressStore

tried = {}


# --- The kinds of damage ------------------------------------------------------------------------


def truncated(content, rng):
    return content[: rng.integers(len(content))]


def flipped(content, rng):
    content = bytearray(content)
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(content)


def emptied(content, rng):
    return b""


def lengthened(content, rng):
    return content + rng.bytes(10)


def deleted(content, rng):
    return None


DAMAGES = (truncated, flipped, flipped, emptied, lengthened, deleted)


@contextlib.contextmanager
def damaged(path, damage, rng):
    """The file damaged inside the block, and as it was afterwards."""
    content = path.read_bytes()
    changed = damage(content, rng)
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


def some_damages(path, rng, rounds):
    """So many of the kinds in random order; of an empty file there is less to damage."""
    kinds = DAMAGES if path.stat().st_size else (lengthened, deleted)
    return [kinds[i] for i in rng.permutation(len(kinds))[:rounds]]


def files_below(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


def refusal(read, named):
    """What reading is refused with, one line that names the place; None and what was read."""
    try:
        return None, read()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert named in message, message
    return message, None


def try_all(kind, paths, read, named, *, rounds, seed, harmless=(lengthened, flipped, truncated)):
    """Damages each file in some ways; each must be noticed, or change nothing that is read."""
    rng, whole, noticed = np.random.default_rng(seed), read(), 0
    for path in paths:
        for damage in some_damages(path, rng, rounds):
            with damaged(path, damage, rng):
                message, got = refusal(read, named)
            tried[kind] = tried.get(kind, 0) + 1
            noticed += message is not None
            if message is None:
                assert same(got, whole), f"{damage.__name__} {path} passed unnoticed"
                assert damage in harmless, f"{damage.__name__} {path}"
    assert noticed >= 0.5 * rounds * len(paths)
    assert same(read(), whole)


def same(first, second):
    return jax.tree.structure(first) == jax.tree.structure(second) and all(
        np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


# --- What is damaged: a run whose last task is under way ----------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run as it lies on disk when it is killed in its third task; nothing in it was trained."""
    smallworld.register()
    root = tmp_path_factory.mktemp("world")
    smallworld.write_images(root)
    c = smallworld.get_config(str(root))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lifelong, "train_task", saves_and_stops_in_the_last_task)
        patched.setattr(lifelong, "task_accuracy", lambda *_: 0.5)
        patched.setattr(pretraining._Trainer, "train", random_external_model)
        patched.setattr(pretraining._Trainer, "held_out_accuracy", lambda *_: 0.5)
        with pytest.raises(StoppedHere) as stopped:
            lifelong.run(c, str(root / "run"), Reporter(Console(quiet=True)))
    return root, c, stopped.value.given


class StoppedHere(Exception):
    """What the replaced training ends in, with what it was given."""

    def __init__(self, *given):
        super().__init__("stopped")
        self.given = given


def random_like(variables, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), variables)


def random_external_model(trainer, classes, *_, **__):
    config = trainer._config
    metadata = stored.Metadata(
        stored.EXTERNAL,
        trainer._architecture,
        config.head,
        config.num_slots,
        (0, classes),
        stored.ImageInput.of(config.image),
    )
    model = stored.Model(metadata, random_like(stored.expected_variables(metadata), classes))
    return model, [{"loss": 1.0, "accuracy": 0.5}]


def saves_and_stops_in_the_last_task(group, number, starts, store):
    (run,), (start,) = group, starts
    if number == smallworld.NUM_TASKS - 1:
        states = [state_of(run, start, random_like(start.variables, 10 + i)) for i in range(2)]
        for epoch, state in enumerate(states, 1):
            store.save(state, Position(tuple({"loss": float(e)} for e in range(epoch))))
        store.wait()
        raise StoppedHere(*jax.device_get(states))
    return [(random_like(start.variables, number), [{"loss": 1.0, "accuracy": 0.5}])]


def state_of(run, start, variables):
    epoch = run.context.programs.epoch(start.origin.architecture)
    return epoch.program.init_state(variables)


def tells_what_it_was_given(group, number, starts, store):
    """In place of training: where it would begin, and from what."""
    (run,), (start,) = group, starts
    state, position = store.latest(state_of(run, start, start.variables))
    given = jax.device_get(state), position, start.origin.variables, run.memory.tolist()
    raise StoppedHere(number, *given)


def test_every_file_of_a_task(world):
    root, c, _ = world
    path = root / "run" / "tasks" / "1"

    def read():
        record = runs.load_task_record(str(path), 1)
        return record["memory"], runs.load_task(c, str(root / "run"), 1).variables

    try_all("task checkpoints", files_below(path), read, str(path), rounds=3, seed=0)


def test_every_file_of_an_external_model(world):
    root, c, _ = world
    path = min(p for p in (root / "models").iterdir() if p.name[0] != ".")

    def read():
        loaded = external.load_external(c, str(path))
        return loaded.variables, loaded.metadata.slots

    try_all("external models", files_below(path), read, str(path), rounds=3, seed=1)


def test_every_file_of_a_training_under_way(world, tmp_path):
    """The newest gives way to the one before it, which is told."""
    root, _, states = world
    progress = root / "run" / "progress" / "2"
    rng = np.random.default_rng(2)
    for place in files_below(progress / "000002"):
        for damage in some_damages(place, rng, 3):
            copy = tmp_path / "progress"
            shutil.copytree(progress, copy)
            with (tmp_path / "said").open("w") as said:
                store = ProgressStore(str(copy), ConfigDict(), Reporter(Console(file=said)))
                with damaged(copy / place.relative_to(progress), damage, rng):
                    state, position = store.latest(states[0])
                    copy.mkdir(exist_ok=True)
                    (copy / place.relative_to(progress)).parent.mkdir(parents=True, exist_ok=True)
            tried["progress checkpoints"] = tried.get("progress checkpoints", 0) + 1
            assert same(state, states[position.epoch - 1])
            told = "going back to the one before" in (tmp_path / "said").read_text()
            assert told == (position.epoch == 1)
            assert position.epoch == 1 or damage in (flipped, truncated, lengthened)
            shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["config.json", "data.json", "numerics.json"])
def test_what_a_run_says_of_itself(world, name):
    root, c, _ = world
    run = root / "run"
    digests = files.read_json(run / "data.json")

    def read():
        if name == "data.json":
            runs.refuse_other_data(digests, str(run))
        else:
            runs.refuse_other_config(c, str(run))
        return files.read_json(run / name)

    try_all(name, [run / name] * 4, read, str(run), rounds=6, seed=3)


def test_results_that_are_damaged_are_made_again(world, tmp_path):
    """They are never returned; None means that the run goes on to make them."""
    results = {"evaluations": {"a": {"matrix": [[0.25, None], [0.5, 1.0]]}}, "name": "é"}
    path = tmp_path / "results.json"
    files.write_json(path, results)
    rng = np.random.default_rng(4)
    for damage in DAMAGES * 6:
        with damaged(path, damage, rng):
            read = runs.finished(str(tmp_path), Reporter(Console(quiet=True)))
        tried["results.json"] = tried.get("results.json", 0) + 1
        assert read is None or (read == results and damage in (flipped, truncated))


def test_images_of_a_folder(world):
    root, *_ = world
    name = f"folder:{root}/stream"
    digest = sources.load(name, "test", image_size=8).digest()

    def read():
        # As a run does: what it began with is known by its digest.
        loaded = sources.load(name, "test", image_size=8)
        if loaded.digest() != digest:
            raise InputError(f"{name}: its images or labels are not those that the run began with")
        return loaded.images

    images = files_below(root / "stream" / "test")
    try_all("images", images, read, name, rounds=2, seed=5)


class Dots(tfds.core.GeneratorBasedBuilder):
    """Some images as a TFDS set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["a", "b"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            yield i, {"image": Image.fromarray(pixels), "label": i % 2}


def test_files_of_tfds(tmp_path):
    def read():
        loaded = sources.load("dots", "train", image_size=8, data_dir=str(tmp_path))
        return loaded.images, loaded.labels

    read()
    place = tmp_path / "dots" / "1.0.0"
    data = [path for path in files_below(place) if "array_record" in path.name]
    told = [place / "dataset_info.json"]
    # Much of a record file's 64 KiB is padding.
    try_all("TFDS files", data * 2 + told * 3, read, "dots", rounds=6, seed=6)


def test_fewer_records_than_there_are_do_not_pass(tmp_path):
    """The metadata say how many records there are, and have no checksum."""
    sources.load("dots", "train", image_size=8, data_dir=str(tmp_path))
    path = tmp_path / "dots" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"12"', '"10"'))
    with pytest.raises(InputError, match="train has 12 records, its metadata 10"):
        sources.load("dots", "train", image_size=8, data_dir=str(tmp_path))


# --- The whole run ------------------------------------------------------------------------------

# What is damaged, how, and the task and epoch where the run then goes on; None if it refuses.
CASES = [
    ("run/config.json", flipped, None),
    ("run/config.json", deleted, None),
    ("run/data.json", emptied, None),
    ("run/data.json", deleted, None),
    ("run/tasks/0/metadata.json", flipped, (0, 0)),
    ("run/tasks/1/variables/manifest.ocdbt", truncated, (1, 0)),
    ("run/tasks/1/manifest.json", deleted, (1, 0)),
    ("run/progress/2/000002/variables/_METADATA", flipped, (2, 1)),
    ("run/progress/2/000002/manifest.json", deleted, (2, 1)),
    ("stream/train/a/0.png", deleted, None),
    ("open/test/x/1.png", emptied, None),
]


@pytest.fixture
def passing_world(world, tmp_path):
    """The world, put back afterwards: what a run does to it is undone."""
    root, c, _ = world
    shutil.copytree(root, tmp_path / "kept")
    yield root, c
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "kept", root)


@pytest.mark.parametrize(("place", "damage", "goes_on"), CASES)
def test_a_run_falls_back_or_refuses(passing_world, tmp_path, monkeypatch, place, damage, goes_on):
    root, c = passing_world
    monkeypatch.setattr(lifelong, "train_task", tells_what_it_was_given)
    content = damage((root / place).read_bytes(), np.random.default_rng(7))
    (root / place).unlink()
    if content is not None:
        (root / place).write_bytes(content)
    tried["whole runs"] = tried.get("whole runs", 0) + 1
    with (tmp_path / "said").open("w") as file:
        reporter = Reporter(Console(file=file, width=1000))
        if goes_on is None:
            message, _ = refusal(lambda: lifelong.run(c, str(root / "run"), reporter), "")
            assert message is not None
            return
        with pytest.raises(StoppedHere) as stopped:
            lifelong.run(c, str(root / "run"), reporter)
    number, _, position, start, memory = stopped.value.given
    assert (number, position.epoch) == goes_on
    said = (tmp_path / "said").read_text()
    assert "is damaged" in said or "no finished checkpoint" in said
    assert str((root / place).parents[len(pathlib.Path(place).parts) - 4]) in said
    assert len(memory) == 4 * number  # two images of each of two classes a task
    assert np.isfinite(jax.tree.leaves(start)[0]).all()


def test_an_intact_run_goes_on_where_it_was(passing_world, monkeypatch):
    root, c = passing_world
    monkeypatch.setattr(lifelong, "train_task", tells_what_it_was_given)
    with pytest.raises(StoppedHere) as stopped:
        lifelong.run(c, str(root / "run"), Reporter(Console(quiet=True)))
    number, _, position, *_ = stopped.value.given
    assert (number, position.epoch) == (2, 2)


def test_other_images_for_a_pre_training_under_way_are_refused(world, tmp_path):
    _, c, _ = world
    recipe = c.replacements.recipe
    train = sources.load(recipe.dataset, "train", image_size=8)
    place = str(tmp_path / "place")
    pathlib.Path(place).mkdir()
    pretraining._refuse_other_origin(train, place)
    pretraining._refuse_other_origin(train, place)
    other = sources.ImageSet(255 - train.images, train.labels, train.class_names)
    with pytest.raises(InputError, match="are not those that the pre-training in"):
        pretraining._refuse_other_origin(other, place)
    (tmp_path / "place" / "data.json").unlink()
    (tmp_path / "place" / "000001").mkdir()
    with pytest.raises(InputError, match=r"data\.json, which tells from what images"):
        pretraining._refuse_other_origin(train, place)


# --- Disks --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(
        files.WriteError, match=r"a\.json cannot be written \(No space left on devi"
    ):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_checkpoint_is_not_begun_without_room_for_it(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=100_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage)
    variables = {"params": {"w": np.zeros(10_000, np.float32)}}
    with pytest.raises(files.WriteError, match="No space left on device"):
        checkpoints.save(str(tmp_path / "a"), variables, {})
    assert not list(tmp_path.iterdir())
    usage.free = 200_000
    checkpoints.save(str(tmp_path / "a"), variables, {})
    assert checkpoints.exists(str(tmp_path / "a"))


def test_what_cannot_be_removed_yet_does_not_hide_why_a_checkpoint_failed(tmp_path, monkeypatch):
    """As when Orbax's threads still write into the directory."""
    variables = {"params": {"w": np.zeros(4, np.float32)}}

    def fail(code, *_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_digests", partial(fail, errno.EFBIG))
        patch.setattr(type(epath.Path(tmp_path)), "rmtree", partial(fail, errno.ENOTEMPTY))
        with pytest.raises(files.WriteError, match="File too large"):
            checkpoints.save(str(tmp_path / "a"), variables, {})
    assert [p.name for p in tmp_path.iterdir()] == [".a.draft"]
    checkpoints.save(str(tmp_path / "a"), variables, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", ["/proc/run", "{tmp}/file/run"])
def test_a_place_that_cannot_be_written_is_told(place, tmp_path):
    (tmp_path / "file").touch()
    place = place.format(tmp=tmp_path)
    for write in (
        lambda: files.require_writable(place),
        lambda: files.write_json(f"{place}/a.json", {}),
        lambda: checkpoints.save(f"{place}/a", {"params": {"w": np.zeros(1)}}, {}),
        lambda: files.one_writer(place).__enter__(),
    ):
        with pytest.raises(files.WriteError, match=f"{place}.* cannot be written"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_asking_whether_a_place_can_be_written_leaves_no_trace(tmp_path):
    files.require_writable(str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


# --- Foreign files ------------------------------------------------------------------------------


class Touches:
    """Pickled, it is a program that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def payload(tmp_path):
    """The pickle, and its mark; it works, if anything unpickles it."""
    mark = tmp_path / "executed"
    content = pickle.dumps(Touches(mark))
    pickle.loads(content).close()
    assert mark.exists()
    mark.unlink()
    yield content
    assert not mark.exists()


@pytest.fixture
def unpickled():
    """Names that any unpickler of this process looked up meanwhile."""
    names, armed = [], True

    def audit(event, args):
        if event == "pickle.find_class" and armed:
            names.append(args)

    sys.addaudithook(audit)  # for good; hence `armed`
    yield names
    armed = False


# TensorStore's threads call back when Orbax has given up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fitting_checksums", [False, True])
def test_a_checkpoint_runs_nothing(world, tmp_path, payload, unpickled, fitting_checksums):
    """Each file in turn is a pickle, unnoticed by the checksums if they are made to fit."""
    root, c, _ = world
    for name in [p.relative_to(root) for p in files_below(root / "run" / "tasks" / "1")]:
        copy = tmp_path / "run"
        shutil.copytree(root / "run", copy)
        (copy / name.relative_to("run")).write_bytes(payload)
        place = copy / "tasks" / "1"
        if fitting_checksums:
            digests = checkpoints._digests(checkpoints.epath.Path(place))
            files.write_json(place / "manifest.json", {"files": digests})
        message, _ = refusal(lambda: runs.load_task(c, str(tmp_path / "run"), 1), str(place))
        assert message or fitting_checksums
        shutil.rmtree(copy)
    assert not unpickled


def test_other_files_run_nothing(world, tmp_path, payload, unpickled):
    _, c, _ = world
    for name in ("config.json", "data.json", "results.json"):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(DamagedError):
            files.read_json(tmp_path / name)
    with pytest.raises(InputError):
        lifelong.run(c, str(tmp_path), Reporter(Console(quiet=True)))
    for name, content in (("plain.pt", payload), ("zip.pt", None), ("a.safetensors", payload)):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", payload)
        else:
            path.write_bytes(content)
        with pytest.raises(InputError):
            torch_files.read_state_dict(str(path))
    images = tmp_path / "images" / "train" / "a"
    images.mkdir(parents=True)
    for i in range(2):
        (images / f"{i}.png").write_bytes(payload)
    with pytest.raises(InputError, match="unreadable"):
        sources.load(f"folder:{tmp_path / 'images'}", "train", image_size=8)
    assert not unpickled


def test_at_least_200_corruptions_were_tried():
    print(
        f"\n{sum(tried.values())} corruptions: " + ", ".join(f"{n} {k}" for k, n in tried.items())
    )
    if len(tried) == 9:  # all of the file ran
        assert sum(tried.values()) >= 200
