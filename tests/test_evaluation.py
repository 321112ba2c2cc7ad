"""Several evaluations of the same models: what is computed, and what is kept."""

import types
import weakref

import numpy as np
import pytest

from iamcl2r_jax import retrieval
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.evaluation import evaluation
from iamcl2r_jax.evaluation.evaluation import Embedded, Evaluation
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import lifelong

MEASURES = ("recall_at_1", "identification")
NUM_TASKS = 3


@pytest.fixture
def sets():
    """Two evaluations of random pictures, of three and four classes."""
    rng = np.random.default_rng(0)

    def images(count, classes):
        pixels = rng.integers(0, 256, (count, 2, 2, 3), np.uint8)
        names = tuple(map(str, range(classes)))
        return ImageSet(pixels, np.arange(count, dtype=np.int32) % classes, names)

    return {
        "three": Evaluation(query=images(12, 3), gallery=images(9, 3)),
        "four": Evaluation(query=images(16, 4), gallery=images(8, 4)),
    }


def features(seed, images):
    """What stands in for a model: a random projection of the pixels."""
    weights = np.random.default_rng(seed).normal(size=(12, 5))
    return (images.reshape(len(images), -1) / 255.0 @ weights).astype(np.float32)


def embedded(seed, of):
    carry = (lambda gallery: gallery[:, ::-1]) if seed == 1 else None
    query, gallery = (features(seed, images) for images in (of.query.images, of.gallery.images))
    return Embedded(query, gallery, carry)


def test_evaluations_of_one_model_after_another_are_those_of_each_alone(sets):
    pairs = [(name, embedded(task, of)) for task in range(NUM_TASKS) for name, of in sets.items()]
    together = evaluation.measured(sets, pairs, MEASURES)
    for name, of in sets.items():
        alone = [found for other, found in pairs if other == name]
        matrices = evaluation.compatibility_matrices(of, alone, MEASURES)
        main = evaluation.summarize(matrices["recall_at_1"])
        other = evaluation.summarize(matrices["identification"])
        assert together[name] == {"measure": "recall_at_1"} | main | {
            "measures": {"identification": other}
        }
    assert list(together) == ["three", "four"]


def test_queries_of_one_model_and_evaluation_are_in_memory_at_once(sets):
    queries = []

    def one_by_one():
        for task in range(NUM_TASKS):
            for name, of in sets.items():
                found = embedded(task, of)
                queries.append(weakref.ref(found.query))
                assert sum(query() is not None for query in queries) <= 2  # the last is let go next
                yield name, found

    evaluation.measured(sets, one_by_one(), MEASURES)
    assert len(queries) == 2 * NUM_TASKS


def test_each_model_of_a_run_is_restored_once(sets, monkeypatch):
    restored = []

    def load_task(config, workdir, task):
        restored.append(task)
        return types.SimpleNamespace(spec={}, variables=task, carry=lambda: None)

    monkeypatch.setattr(lifelong, "load_task", load_task)
    setting = types.SimpleNamespace(
        config=types.SimpleNamespace(measures=MEASURES),
        stream=types.SimpleNamespace(tasks=range(NUM_TASKS)),
        programs=types.SimpleNamespace(of=lambda _: types.SimpleNamespace(features=features)),
        reporter=Reporter(),
        preemption=Preemption(),
    )
    found, passes = lifelong.evaluate(setting, "", sets)
    assert restored == [0, 1, 2]
    assert passes == 2 * NUM_TASKS
    pairs = [
        (name, Embedded(features(task, of.query.images), features(task, of.gallery.images)))
        for task in range(NUM_TASKS)
        for name, of in sets.items()
    ]
    assert found == evaluation.measured(sets, pairs, MEASURES)


def test_a_gallery_is_reduced_once_for_all_models(sets, monkeypatch):
    of, reduce, reduced = sets["three"], retrieval.REDUCTIONS["identification"], []

    def counting(gallery, labels):
        reduced.append(gallery)
        return reduce(gallery, labels)

    monkeypatch.setitem(retrieval.REDUCTIONS, "identification", counting)
    models = [
        Embedded(features(seed, of.query.images), features(seed, of.gallery.images))
        for seed in range(NUM_TASKS)
    ]
    evaluation.compatibility_matrices(of, models, MEASURES)
    assert len(reduced) == NUM_TASKS
