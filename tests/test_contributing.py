"""CONTRIBUTING.md: its examples, put where they tell to and run together."""

import contextlib
import pathlib
import re
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from iamcl2r_jax import losses, methods, models, retrieval
from iamcl2r_jax.data import augment
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.methods import optimizers
from iamcl2r_jax.training import lifelong, runs

PAGE = pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md"
SIZE, CLASSES = 8, 4


@pytest.fixture(scope="module", autouse=True)
def examples():
    """The page's Python blocks, and the registries restored afterwards."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    names = {}
    registries = (
        methods.METHODS,
        models.BACKBONES,
        retrieval.METRICS,
        augment.AUGMENTATIONS,
        optimizers.OPTIMIZERS,
        maps.MAPS,
    )
    with contextlib.ExitStack() as restored:
        for registry in registries:
            restored.enter_context(mock.patch.dict(registry))
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
        yield names


def test_the_methods_loss_is_what_its_docstring_says():
    """‖f - o‖² of unit vectors is 2 (1 - cos), which we have in another form."""
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(2, 6, 5)).astype(np.float32)
    labels = rng.integers(0, 7, 6)
    logits = rng.normal(size=(6, 7)).astype(np.float32)
    loss = methods.get("simplex_l2").loss
    for has_old in (True, False):
        inputs = methods.LossInputs(
            features=new,
            old_features=old,
            has_old=np.asarray(has_old),
            labels=labels,
            from_memory=np.zeros(6, bool),
            logits=logits,
        )
        total, terms = jax.jit(lambda inputs: loss(inputs, l2_weight=3.0))(inputs)
        expected = float(losses.cross_entropy(logits, labels))
        assert terms["ce"] == pytest.approx(expected, rel=1e-6)
        expected += 6 * float(losses.feature_distillation(new, old)) if has_old else 0
        assert total == pytest.approx(expected, rel=1e-5)


def test_the_map_is_fitted_and_applied():
    x, y = np.random.default_rng(0).normal(size=(2, 9, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(maps.fit("shift", x, x)(x), unit, atol=1e-6)
    shifted = maps.fit("shift", x, y)(x)
    np.testing.assert_allclose(
        np.mean(shifted, axis=0),
        np.mean(y / np.linalg.norm(y, axis=1, keepdims=True), axis=0),
        atol=1e-6,
    )


def test_the_examples_run_together(examples, tmp_path):
    """One registry line each, and a run of the method on the backbone under the metric."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        pattern = rng.uniform(0, 255, (SIZE, SIZE, 3))
        for split, count in (("train", 6), ("test", 3), ("query", 3), ("gallery", 3)):
            directory = tmp_path / "images" / split / f"class{label}"
            directory.mkdir(parents=True)
            for n in range(count):
                pixels = np.clip(pattern + rng.normal(0, 30, pattern.shape), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{n}.png")
    dataset = f"folder:{tmp_path / 'images'}"

    c = examples["get_config"]()
    c.method, c.num_slots, c.memory_per_class = "simplex_l2", 8, 2
    assert c.method_options.simplex_l2.to_dict() == {"l2_weight": 1.0}
    c.image.size, c.image.augmentation, c.train.optimizer = SIZE, "darken", "lion"
    assert c.image.augmentation_options.darken.to_dict() == {"most": 0.5}
    assert c.train.optimizer_options.lion.to_dict() == {"b1": 0.9, "b2": 0.99}
    c.model.backbone = "mlp"
    with c.unlocked():
        c.model.options = ConfigDict({"width": 16})
        c.evaluations = ConfigDict({"shop": c.evaluations.shop})
    c.evaluations.shop.dataset = dataset
    c.stream.dataset = dataset
    c.stream.initial_classes = c.stream.increment = CLASSES // 2
    c.replacements.tasks = ()
    c.train.epochs, c.train.batch_size, c.train.learning_rate = 2, 4, 1e-3
    c.saving.every_epochs = 1
    c.metrics = ("recall_at_2", "identification")
    results = lifelong.run(c, str(tmp_path / "run"))

    assert results["method"] == "simplex_l2"
    assert results["train_traces"] == 1
    figures = results["evaluations"]["shop"]
    assert figures["metric"] == "recall_at_2"
    assert 0.5 < figures["matrix"][1][1] <= 1
    first, second = runs.task_records(str(tmp_path / "run"))
    assert all(epoch["l2"] == 0 for epoch in first["history"])  # there is nothing old yet
    assert any(epoch["l2"] > 0 for epoch in second["history"])
    trained = runs.load_task(c, str(tmp_path / "run"), 1)
    assert dict(trained.architecture.options) == {"width": 16}
