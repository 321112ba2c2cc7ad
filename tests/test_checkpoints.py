import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax.models import checkpoints
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
    loaded = checkpoints.load(path, VARIABLES)
    assert jax.tree.structure(loaded) == jax.tree.structure(VARIABLES)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(VARIABLES), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert checkpoints.load_record(path) == {"kind": "test", "numbers": [1, 2.5, None]}


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

    record, variables = checkpoints.load_described(path, expected)
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
        checkpoints.load_described(path, expected)


def test_nothing_of_a_damaged_checkpoint_is_looked_at(path):
    (damaged,) = pathlib.Path(path).glob("record/metadata")
    damaged.write_bytes(damaged.read_bytes() + b" ")
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.load_described(path, lambda record: pytest.fail("it was looked at"))


def test_every_difference_is_listed(path):
    expected = {
        "params": {"conv": {"kernel": jnp.zeros((2, 4))}, "head": {"kernel": jnp.zeros(5)}},
        "batch_stats": {"bn": {"mean": jnp.zeros(2, jnp.bfloat16)}},
    }
    with pytest.raises(InputError) as error:
        checkpoints.load(path, expected)
    message = str(error.value)
    assert "params/conv/kernel is float32[2, 3], needs float32[2, 4]" in message
    assert "params/head/kernel is missing, needs float32[5]" in message
    assert "batch_stats/bn/mean is float32[2], needs bfloat16[2]" in message
    assert "\n" not in message


def test_leaf_that_the_model_lacks_is_an_error(path):
    with pytest.raises(InputError, match=r"batch_stats/bn/mean .* is not part of the model"):
        checkpoints.load(path, {"params": VARIABLES["params"]})


def test_existing_checkpoint_is_never_overwritten(path):
    with pytest.raises(InputError, match="exists already"):
        checkpoints.save(path, VARIABLES, {})
    assert checkpoints.load_record(path)["kind"] == "test"


def test_missing_and_unfinished_are_told_apart_from_finished(path, tmp_path):
    assert checkpoints.exists(path)
    (tmp_path / "other").mkdir()
    for name in ("other", "nowhere"):
        assert not checkpoints.exists(str(tmp_path / name))
        with pytest.raises(InputError, match="no finished checkpoint"):
            checkpoints.load(str(tmp_path / name), VARIABLES)


def test_model_spec_round_trip():
    spec = checkpoints.model_spec("resnet18", 7, {"width": 4, "stem": "small"})
    module = checkpoints.create_model(spec)
    assert (module.num_features, module.width, module.stem) == (7, 4, "small")
