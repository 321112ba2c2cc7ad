"""Several evaluations of the same models: what is computed, and what is kept."""

import dataclasses
import types
import weakref

import flax.linen as nn
import numpy as np
import pytest

from iamcl2r_jax import retrieval
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.data.sources import Evaluation, ImageSet, refuse_equal_sets
from iamcl2r_jax.evaluation import features as features_module
from iamcl2r_jax.evaluation import pairs, searches
from iamcl2r_jax.evaluation.features import FeatureExtractor, Features, call_shape
from iamcl2r_jax.evaluation.intervals import paired_intervals
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import results, runs

METRICS = ("recall_at_1", "identification")
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
    forward = (lambda gallery: gallery[:, ::-1]) if seed == 1 else None
    query, gallery = (features(seed, images) for images in (of.query.images, of.gallery.images))
    return Features(query, gallery, forward)


def alone(of, models, metrics=METRICS):
    return pairs.evaluate_pairs(models, of.query.labels, of.gallery.labels, metrics)


def test_evaluations_of_one_model_after_another_are_those_of_each_alone(sets):
    named = [(name, embedded(task, of)) for task in range(NUM_TASKS) for name, of in sets.items()]
    together = pairs.evaluate_models(sets, named, METRICS)
    for name, of in sets.items():
        values = alone(of, [found for other, found in named if other == name])
        shown = together[name].pop("searches")
        assert together[name] == {
            "metric": "recall_at_1",
            **pairs.summarize(values["recall_at_1"]),
            "metrics": {"identification": pairs.summarize(values["identification"])},
            "queries_in_gallery": 0,
        }
        # Searches of the newest model in the oldest gallery, which model 1 of 0 … 2 carried on.
        newest, oldest = features(NUM_TASKS - 1, of.query.images), features(0, of.gallery.images)
        assert shown["queries"] == searches.draw(0, 8, len(newest)).tolist()
        found = searches.nearest(oldest[:, ::-1], newest[shown["queries"]], 8)
        assert shown["nearest"] == found.tolist()
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

    pairs.evaluate_models(sets, one_by_one(), METRICS)
    assert len(queries) == 2 * NUM_TASKS


def test_each_model_of_a_run_is_restored_once(sets, monkeypatch):
    restored = []

    def load_task(config, workdir, task):
        restored.append(task)
        return types.SimpleNamespace(architecture=None, variables=task, adapter=None)

    monkeypatch.setattr(runs, "load_task", load_task)
    context = types.SimpleNamespace(
        workdir="",
        config=types.SimpleNamespace(metrics=METRICS),
        stream=types.SimpleNamespace(tasks=range(NUM_TASKS)),
        programs=types.SimpleNamespace(features=lambda _: features),
        reporter=Reporter(),
        preemption=Preemption(),
    )
    found, passes = results.evaluate(context, sets)
    assert restored == [0, 1, 2]
    assert passes == 2 * NUM_TASKS
    named = [
        (name, Features(features(task, of.query.images), features(task, of.gallery.images)))
        for task in range(NUM_TASKS)
        for name, of in sets.items()
    ]
    assert found == pairs.evaluate_models(sets, named, METRICS)


def test_a_gallery_is_reduced_once_for_all_models(sets, monkeypatch):
    of, metric, reduced = sets["three"], retrieval.METRICS["identification"], []

    def counting(gallery, labels):
        reduced.append(gallery)
        return metric.reduce(gallery, labels)

    counted = dataclasses.replace(metric, reduce=counting)
    monkeypatch.setitem(retrieval.METRICS, "identification", counted)
    alone(of, [embedded(seed, of) for seed in (0, 2, 3)])
    assert len(reduced) == NUM_TASKS


def test_values_of_pairs_and_their_intervals(sets):
    """Every entry is the mean over queries of the metric; intervals are of paired differences."""
    of = sets["four"]
    models = [embedded(seed, of) for seed in (0, 2, 3)]

    def values(t, k):
        metric = retrieval.METRICS["mean_average_precision"]
        return metric.values(models[k].gallery, of.gallery.labels, models[t].query, of.query.labels)

    found = alone(of, models, ["mean_average_precision"])["mean_average_precision"]
    for t in range(NUM_TASKS):
        for k in range(NUM_TASKS):
            if k > t:
                assert np.isnan(found.matrix[t, k])
                continue
            assert found.matrix[t, k] == values(t, k).mean()
            intervals = found.gain_intervals[t, k], found.reindexing_intervals[t, k]
            if t == k:
                assert np.isnan(intervals).all()
                continue
            for interval, gain in zip(
                intervals, (values(t, k) - values(k, k), values(t, t) - values(t, k)), strict=True
            ):
                assert interval[0] < gain.mean() < interval[1]
                # A normal approximation: 16 queries are few.
                spread = np.array([-1.96, 1.96]) * gain.std() / np.sqrt(len(gain))
                np.testing.assert_allclose(interval, gain.mean() + spread, atol=0.05)
    again = alone(of, models, ["mean_average_precision"])["mean_average_precision"]
    np.testing.assert_array_equal(found.gain_intervals, again.gain_intervals)


@pytest.mark.parametrize("unit", [1.0, 0.5])  # hits, and values that are none
def test_intervals_against_the_exact_distribution(unit):
    """Of 16 queries, 9 are won, 2 are lost; the sum of 16 draws has a known distribution."""
    differences = unit * np.array([1] * 9 + [-1] * 2 + [0] * 5)
    total = np.ones(1)
    for _ in range(16):
        total = np.convolve(total, np.array([2, 5, 9]) / 16)  # one draw, of -1, 0, 1
    below = np.cumsum(total)
    ends = [(np.searchsorted(below, p) - 16) * unit / 16 for p in (0.025, 0.975)]
    found = paired_intervals(np.stack([differences, np.zeros(16), -differences]))
    np.testing.assert_allclose(found, [ends, [0, 0], [-ends[1], -ends[0]]], atol=1e-6)


def test_one_model_has_no_pair(sets):
    of = sets["three"]
    (values,) = alone(of, [embedded(0, of)], ["identification"]).values()
    assert pairs.summarize(values)["gain_intervals"] == [[None]]


def test_queries_that_are_in_the_gallery_are_counted_and_equal_sets_refused(sets):
    of = sets["three"]
    images = of.gallery.images.copy()
    images[:4] = of.query.images[3:7]
    half = Evaluation(of.query, dataclasses.replace(of.gallery, images=images))
    assert half.queries_in_gallery == 4
    refuse_equal_sets("query", half)
    # A gallery with more images than the queries: each of these still finds itself.
    more = np.concatenate([of.query.images[::-1], images])
    labels = np.concatenate([of.query.labels[::-1], of.gallery.labels])
    whole = Evaluation(of.query, dataclasses.replace(of.gallery, images=more, labels=labels))
    with pytest.raises(InputError, match=r"^query: all 12 images are also in the gallery"):
        refuse_equal_sets("query", whole)


@pytest.mark.parametrize(
    ("count", "side", "shape"),
    [
        (8, 224, (1, 32)),
        (33, 224, (1, 256)),
        (257, 224, (8, 256)),
        (8, 32, (8, 256)),  # its padding is small, and every other shape is another program
    ],
)
def test_few_large_images_are_not_padded_to_many(count, side, shape):
    images = np.broadcast_to(np.uint8(0), (count, side, side, 3))
    assert call_shape(images) == shape


def test_features_do_not_depend_on_the_shape_of_the_call(monkeypatch):
    """In calls of one, of several and of one larger batch, in the order of the images."""

    class Sum(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return images.sum(axis=(1, 2))

    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), np.uint8)
    extract = FeatureExtractor(Sum(), ImageOptions((0, 0, 0), (1 / 255,) * 3))
    expected = images.sum(axis=(1, 2))
    np.testing.assert_allclose(extract({}, images), expected, rtol=1e-6)
    monkeypatch.setattr(features_module, "_LARGE", 0)
    np.testing.assert_allclose(extract({}, images), expected, rtol=1e-6)
    np.testing.assert_allclose(extract({}, images[:5]), expected[:5], rtol=1e-6)
