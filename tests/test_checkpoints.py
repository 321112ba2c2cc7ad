import contextlib
import os
import pathlib
import re
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax import models
from iamcl2r_jax.models import checkpoints, stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError

VARIABLES = {
    "params": {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "batch_stats": {"bn": {"mean": np.asarray([0.1, -1e-30], np.float32)}},
}


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "checkpoint")
    checkpoints.save(path, VARIABLES, {"kind": "test", "numbers": [1, 2.5, None]})
    return path


def test_round_trip_is_bit_identical(path):
    _, loaded = checkpoints.load(path, lambda _: VARIABLES)
    assert jax.tree.structure(loaded) == jax.tree.structure(VARIABLES)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(VARIABLES), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert checkpoints.load_metadata(path) == {"kind": "test", "numbers": [1, 2.5, None]}


def test_record_and_variables_are_checked_with_one_look_at_each_file(path, monkeypatch):
    looked, digest = [], files.digest

    def counted(file):
        looked.append(file.name)
        return digest(file)

    monkeypatch.setattr(files, "digest", counted)
    seen = []

    def expected(record):
        seen.append(record)
        return VARIABLES

    record, variables = checkpoints.load(path, expected)
    assert seen == [record] == [{"kind": "test", "numbers": [1, 2.5, None]}]
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"], VARIABLES["params"]["conv"]["kernel"]
    )
    there = [file.name for file in pathlib.Path(path).rglob("*") if file.is_file()]
    assert sorted([*looked, "manifest.json"]) == sorted(there)


def test_a_record_that_cannot_be_used_ends_the_loading(path):
    def expected(record):
        raise InputError(f"checkpoint {path}: {record['kind']} is of no use")

    with pytest.raises(InputError, match="test is of no use"):
        checkpoints.load(path, expected)


def test_nothing_of_a_damaged_checkpoint_is_looked_at(path):
    (damaged,) = pathlib.Path(path).glob("metadata.json")
    damaged.write_bytes(damaged.read_bytes() + b" ")
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.load(path, lambda record: pytest.fail("it was looked at"))


def test_every_difference_is_listed(path):
    expected = {
        "params": {"conv": {"kernel": jnp.zeros((2, 4))}, "head": {"kernel": jnp.zeros(5)}},
        "batch_stats": {"bn": {"mean": jnp.zeros(2, jnp.bfloat16)}},
    }
    with pytest.raises(InputError) as error:
        checkpoints.load(path, lambda _: expected)
    message = str(error.value)
    assert "params/conv/kernel is float32[2, 3], needs float32[2, 4]" in message
    assert "params/head/kernel is missing, needs float32[5]" in message
    assert "batch_stats/bn/mean is float32[2], needs bfloat16[2]" in message
    assert "\n" not in message


def test_leaf_that_the_model_lacks_is_an_error(path):
    with pytest.raises(InputError, match=r"batch_stats/bn/mean .* is not part of the model"):
        checkpoints.load(path, lambda _: {"params": VARIABLES["params"]})


def test_existing_checkpoint_is_never_overwritten(path):
    with pytest.raises(InputError, match="exists already"):
        checkpoints.save(path, VARIABLES, {})
    assert checkpoints.load_metadata(path)["kind"] == "test"


@pytest.mark.parametrize("name", ["a[b]", "a[b", "a*b", "a?b", "a\\b", "ü 日", "a%5Bb", b"a\xffb"])
def test_a_path_that_glob_takes_for_a_pattern(tmp_path, name):
    other = {"params": {"w": np.zeros((5, 7), np.int32)}}
    for neighbour in ("ab", "axb"):  # which match some of these patterns
        checkpoints.save(str(tmp_path / neighbour / "c"), other, {})
    for path in (tmp_path / os.fsdecode(name) / "c", tmp_path / "p" / os.fsdecode(name)):
        checkpoints.save(str(path), VARIABLES, {"kind": "test"})
        _, loaded = checkpoints.load(str(path), lambda _: VARIABLES)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, VARIABLES))
        assert checkpoints.load_metadata(str(path)) == {"kind": "test"}
        assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_a_path_that_cannot_be_had_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "[tmp]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[tmp]"))
    with pytest.raises(InputError, match=r"run\[1\]: a path with any of .* choose another path$"):
        files.require_writable(str(tmp_path / "run[1]"))
    assert [child.name for child in tmp_path.iterdir()] == ["[tmp]"]


def test_what_does_not_read_back_never_counts_as_saved(tmp_path, monkeypatch):
    """Orbax writes to such a path, and finds nothing there."""
    monkeypatch.setattr(files, "plain_path", contextlib.nullcontext)
    monkeypatch.setattr(files, "plain_name", str)
    with pytest.raises(files.WriteError, match=r"\[a\]/c was written but cannot be read back"):
        checkpoints.save(tmp_path / "[a]" / "c", VARIABLES, {})
    assert not list((tmp_path / "[a]").iterdir())


def test_files_that_others_leave_in_a_checkpoint_do_not_count(path):
    for place in ("", "variables", "variables/d"):
        folder = pathlib.Path(path) / place
        for name in (".DS_Store", "._metadata", "Thumbs.db", ".nfs0000000000c0ffee"):
            (folder / name).write_bytes(b"\0other")
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "metadata@SynoEAStream").write_bytes(b"\0other")
    checkpoints.verify(path)
    _, loaded = checkpoints.load(path, lambda _: VARIABLES)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, VARIABLES))
    assert checkpoints.load_metadata(path)["kind"] == "test"


def test_a_draft_that_cannot_be_removed_is_no_hindrance(tmp_path, monkeypatch):
    stuck = tmp_path / ".c.draft"
    stuck.mkdir()
    monkeypatch.setattr(files, "discard", lambda path: "held" if path.name == stuck.name else None)
    checkpoints.save(str(tmp_path / "c"), VARIABLES, {"kind": "test"})
    assert checkpoints.load_metadata(str(tmp_path / "c")) == {"kind": "test"}
    assert stuck.exists()


def test_missing_and_unfinished_are_told_apart_from_finished(path, tmp_path):
    assert checkpoints.exists(path)
    (tmp_path / "other").mkdir()
    for name in ("other", "nowhere"):
        assert not checkpoints.exists(str(tmp_path / name))
        with pytest.raises(InputError, match="no finished checkpoint"):
            checkpoints.load(str(tmp_path / name), lambda _: VARIABLES)


def test_a_model_and_its_metadata_come_back(tmp_path):
    architecture = stored.Architecture.of("resnet20", 7, {"width": 4})
    image = stored.ImageInput(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    metadata = stored.Metadata("external", architecture, "linear", 8, (5, 6), image, {"a": [1]})
    shapes = stored.expected_variables(metadata)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    stored.save_model(str(tmp_path / "model"), stored.Model(metadata, variables))
    model = stored.load_model(str(tmp_path / "model"))
    assert model.metadata == metadata
    chex.assert_trees_all_equal(model.variables, variables)
    assert model.architecture.module() == models.create("resnet20", 7, width=4)
    np.testing.assert_array_equal(model.classifier_rows(), np.ones((8, 7)))
    # A learnable head chooses among the classes that it has seen.
    features = np.ones((2, 7), np.float32)
    assert model.accuracy(features, np.array([5, 4])) == 0.5


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ({"kind": "task"}, "must be 'task'"),
        ({"head": "simplex"}, "head='linear', the run's method needs head='simplex'"),
        ({"num_slots": 9}, "K=8, the run has K=9"),
        ({"image": stored.ImageInput(16, (0.0,) * 3, (1.0,) * 3)}, "they must be equal"),
        ({"stream_classes": 6}, "too few simplex slots for 6 stream and 3 external"),
    ],
)
def test_a_model_that_is_not_as_required_is_refused(require, message):
    architecture = stored.Architecture("resnet20", 7)
    image = stored.ImageInput(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    metadata = stored.Metadata("external", architecture, "linear", 8, (0, 3), image)
    stored.require("a", metadata)
    with pytest.raises(InputError, match=re.escape(message)):
        stored.require("a", metadata, **require)
