"""What a gallery answers has the metrics that the evaluation computes, to the last digit."""

import numpy as np
import pytest
from gallery_world import WIDTH, embedders, new_gallery, promoted

from iamcl2r_jax import retrieval
from iamcl2r_jax.gallery import NewItem, backfill, figures, orders, simulation

CLASSES, PER_CLASS, QUERIES = 12, 9, 150


def clustered(labels, seed, noise):
    """Unit features around one random direction a class; a model is a seed and a noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, WIDTH))
    features = centres[labels] + noise * rng.standard_normal((len(labels), WIDTH))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def world(tmp_path):
    """A gallery whose items have vectors of both models, and queries by the new one."""
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    query_labels = np.arange(QUERIES) % CLASSES
    stored = {"a": clustered(labels, 1, 2.5), "b": clustered(labels, 2, 1.5)}
    queries = {"a": clustered(query_labels, 3, 2.5), "b": clustered(query_labels, 4, 1.5)}
    with new_gallery(tmp_path / "g") as gallery:
        items = [NewItem(f"{n}", label=str(label)) for n, label in enumerate(labels)]
        gallery.add(items, {"a": stored["a"]})
        yield gallery, items, labels, stored, queries, query_labels


def expected(gallery, labels, query, query_labels):
    return {
        name: retrieval.METRICS[name].values(gallery, labels, query, query_labels)
        for name in ("recall_at_1", "mean_average_precision")
    }


def compare(gallery, model, query, query_labels, wanted):
    found = figures.per_query(gallery, query, [str(label) for label in query_labels], model=model)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert 0.2 < values.mean() < 1  # neither easy nor hopeless


def test_figures_of_one_generation_equal_those_of_the_evaluation(world):
    gallery, _, labels, stored, queries, query_labels = world
    wanted = expected(stored["a"], labels, queries["a"], query_labels)
    compare(gallery, "a", queries["a"], query_labels, wanted)


@pytest.mark.parametrize("merge", ["raw", "zscore"])
def test_figures_of_a_mixed_gallery_equal_those_that_the_gate_predicted(world, merge):
    """At each tenth of a backfill, whose items have their vectors already."""
    gallery, items, labels, stored, queries, query_labels = world
    curve = simulation.simulate(
        lambda *sets: retrieval.METRICS["recall_at_1"].values(*sets),
        stored["a"],
        stored["b"],
        labels,
        queries["b"],
        query_labels,
    )
    scaling = {1: curve.old_scaling, 0: curve.new_scaling}
    promoted(gallery, merge=merge, scaling=scaling)
    gallery.add(items, stored)
    # The half of the queries that the prediction was measured on.
    shuffled = np.random.default_rng(0).permutation(QUERIES)[QUERIES // 2 :]
    seen, wanted = [], getattr(curve, merge)

    def look(progress):
        values = figures.per_query(
            gallery,
            queries["b"][shuffled],
            [str(label) for label in query_labels[shuffled]],
            model="b",
        )["recall_at_1"]
        seen.append(values.mean())

    look(None)
    total = CLASSES * PER_CLASS
    steps = [round(fraction * total) for fraction in simulation.FRACTIONS]
    sizes = iter(np.diff(steps))
    for size in sizes:
        backfill.run(gallery, embedders(), batch=int(size), report=once(gallery, look))
        if gallery.status()["upgrade"]["paused"]:
            gallery.resume()
    assert seen == wanted


def once(gallery, look):
    """A report that looks after the first batch and pauses."""

    def report(progress):
        look(progress)
        if progress.state != "complete":
            gallery.pause()

    return report


def test_round_robin_takes_one_of_each_group_in_turn():
    groups = ["x"] * 5 + ["y"] * 3 + ["z"]
    order = orders.round_robin(groups, seed=3)
    assert sorted(order) == list(range(9))
    taken = [groups[n] for n in order]
    assert sorted(taken[:3]) == ["x", "y", "z"]
    assert sorted(taken[3:5]) == sorted(taken[5:7]) == ["x", "y"]
    assert taken[7:] == ["x", "x"]
    assert order.tolist() != orders.round_robin(groups, seed=4).tolist()
    assert orders.round_robin([]).tolist() == []


def test_cells_of_kmeans_find_clusters():
    labels = np.repeat(np.arange(5), 20)
    centres = np.eye(5, WIDTH, dtype=np.float32)
    vectors = centres[labels] + 0.01 * np.random.default_rng(0).standard_normal((100, WIDTH))
    cells = orders.cells(vectors.astype(np.float32))
    assert all(len(set(labels[cells == cell])) == 1 for cell in set(cells.tolist()))


def test_a_simulation_by_hand():
    """Two classes; the old vectors of class 1 lie where its new queries do not look."""
    old = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    new = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    query = np.array([[1, 0, 0], [0, 1, 0.1]] * 4, np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    values = retrieval.METRICS["recall_at_1"].values
    curve = simulation.simulate(values, old, new, np.arange(2), query, np.arange(8) % 2)
    assert curve.raw[-1] == 1
    assert curve.raw == sorted(curve.raw)
    described = curve.described()
    assert described["dip"]["raw"] == 0
    assert len(described["fractions"]) == len(described["zscore"]) == 11
