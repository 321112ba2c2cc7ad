"""docs/datasets.md: what it tells to run is run, on small files of the published layouts."""

import os
import pathlib
import re
import subprocess
import sys

import archives
import numpy as np
import pytest
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from iamcl2r_jax.config import validate
from iamcl2r_jax.data import catalogue, sources
from iamcl2r_jax.training import inputs

ROOT = pathlib.Path(__file__).parents[1]


def run_block(language, directory):
    """Runs the page's only block in a language, in a directory."""
    page = (ROOT / "docs" / "datasets.md").read_text()
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    # `python` of the page is the one that runs the tests.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    program = ["bash", "-euc"] if language == "sh" else [sys.executable, "-Werror", "-c"]
    subprocess.run([*program, block], cwd=directory, env={**os.environ, "PATH": path}, check=True)


def check_config(root):
    """The folder config takes what was made; returns the classes of each split."""
    c = ConfigFileFlagParser("config").parse(f"{ROOT}/configs/folder.py:root={root},size=8")
    validate(c)
    stream, evaluations = inputs.load_stream(c), inputs.load_evaluations(c)
    assert evaluations.keys() == {"gallery"}
    assert len(stream.train) > len(stream.test) > 0
    described = {s: sources.describe(f"folder:{root}", s) for s in ("train", "test", "gallery")}
    return {split: set(d.class_names) for split, d in described.items()}


def test_tinyimagenet(tmp_path):
    archive = archives.tiny_imagenet(np.random.default_rng(0), num_classes=54, per_class=3)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(archive)
    run_block("sh", tmp_path)
    classes = check_config(tmp_path / "tinyimagenet")
    assert classes["train"] == classes["test"] == {f"n{100 + c:08}" for c in range(4)}
    assert classes["gallery"] == {f"n{100 + c:08}" for c in range(4, 54)}
    # Each validation image is where its line says: image n is of class n modulo 54.
    for split in ("test", "query"):
        files = list((tmp_path / "tinyimagenet" / split).glob("*/*"))
        assert len(files) == 2 * len(classes[{"test": "test", "query": "gallery"}[split]])
        for file in files:
            number = int(file.stem.removeprefix("val_"))
            assert file.parent.name == f"n{100 + number % 54:08}"


def test_celeba(tmp_path):
    images = {11: 12, 2880: 10, 7: 9, 5: 20, 301: 5, 302: 4, 303: 3}
    partition = {11: 0, 2880: 0, 7: 0, 5: 1, 301: 2, 302: 2, 303: 2}
    files = archives.celeba(np.random.default_rng(1), images, partition)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    run_block("python", tmp_path)
    classes = check_config(tmp_path / "celeba")
    assert classes["train"] == classes["test"] == {"00011", "02880"}
    assert classes["gallery"] == {"00301", "00302"}

    owner = dict(line.split() for line in files["identity_CelebA.txt"].decode().splitlines())
    made = list((tmp_path / "celeba").glob("*/*/*"))
    assert len(made) == len({file.name for file in made}) == 12 + 10 + 5 + 4
    assert all(int(file.parent.name) == int(owner[file.name]) for file in made)
    counts = {
        split: len(list((tmp_path / "celeba" / split).glob("*/*")))
        for split in ("train", "test", "gallery", "query")
    }
    assert counts == {"train": 10 + 8, "test": 2 + 2, "gallery": 3 + 2, "query": 2 + 2}


@pytest.mark.parametrize("name", ["cifar100", "mnist", "kmnist", "caltech_birds2011"])
def test_the_page_names_what_is_prepared_without_tensorflow(name):
    assert f"`{name}`" in (ROOT / "docs" / "datasets.md").read_text()
    assert name in catalogue._BY_NAME
