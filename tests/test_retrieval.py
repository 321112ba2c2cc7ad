"""Retrieval against naive loops and scikit-learn, and the cases that naive code gets wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from iamcl2r_jax import retrieval

identification_hits = retrieval.METRICS["identification"].values

GALLERY_LABELS = np.array([7, -3, 7, 1000, 1000, -3, 7, 12, 12, 1000])


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((10, 6)).astype(np.float32)
    query = rng.standard_normal((23, 6)).astype(np.float32)
    query_labels = rng.choice([7, -3, 1000, 12, 5], 23)  # 5 is not in the gallery
    assert 5 in query_labels
    return gallery, GALLERY_LABELS, query, query_labels


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x)


def naive_identification(gallery, gallery_labels, query, query_labels):
    hits = []
    for feature, label in zip(query, query_labels, strict=True):
        best, best_score = None, -np.inf
        for candidate in sorted(set(gallery_labels)):
            members = [
                unit(g) for g, y in zip(gallery, gallery_labels, strict=True) if y == candidate
            ]
            score = unit(feature) @ unit(np.mean(members, axis=0))
            if score > best_score:
                best, best_score = candidate, score
        hits.append(best == label)
    return hits


def naive_list(gallery, feature):
    return np.array([unit(g) @ unit(feature) for g in gallery])


def test_identification_against_a_loop(features):
    hits = identification_hits(*features)
    assert hits.dtype == bool
    np.testing.assert_array_equal(hits, naive_identification(*features))
    assert 0 < hits.mean() < 1
    accuracy = retrieval.identification_accuracy(*features)
    assert isinstance(accuracy, float)
    assert accuracy == hits.mean()


def test_recall_against_a_loop(features):
    gallery, gallery_labels, query, query_labels = features
    expected = {
        k: np.mean(
            [
                label in gallery_labels[np.argsort(-naive_list(gallery, feature))[:k]]
                for feature, label in zip(query, query_labels, strict=True)
            ]
        )
        for k in (1, 2, 10, 50)
    }
    hits = retrieval.recall_hits(*features, ks=(1, 2, 10, 50))
    assert hits.dtype == bool
    assert hits.mean(axis=0).tolist() == list(expected.values())
    assert expected[50] < 1  # the absent class stays wrong, however long the list


def test_average_precision_equals_scikit_learn(features):
    gallery, gallery_labels, query, query_labels = features
    known = np.isin(query_labels, gallery_labels)
    expected = [
        average_precision_score(gallery_labels == label, naive_list(gallery, feature))
        for feature, label in zip(query[known], query_labels[known], strict=True)
    ]
    result = retrieval.average_precisions(*features)
    np.testing.assert_allclose(result[known], expected, rtol=1e-12)
    np.testing.assert_array_equal(result[~known], 0)


def test_average_precision_with_ties_equals_scikit_learn():
    gallery = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [-1, 0]])
    labels = np.array([0, 1, 0, 1, 1])
    query = np.array([[1.0, 0.0]])
    for label in (0, 1):
        expected = average_precision_score(labels == label, gallery[:, 0])
        result = retrieval.average_precisions(gallery, labels, query, np.array([label]))
        assert result == pytest.approx([expected])


@pytest.mark.parametrize("scores_at_once", [1, 30, 100, 230])
def test_chunks_do_not_matter(features, scores_at_once, monkeypatch):
    recall = retrieval.recall_hits(*features)
    precisions = retrieval.average_precisions(*features)
    identified = identification_hits(*features)
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", scores_at_once)
    # One shape, hence one trace.
    chunks = list(retrieval._chunks(jnp.asarray(features[2]), 10))
    assert len({chunk.shape for *_, chunk in chunks}) == 1
    np.testing.assert_array_equal(retrieval.recall_hits(*features), recall)
    np.testing.assert_array_equal(identification_hits(*features), identified)
    np.testing.assert_allclose(retrieval.average_precisions(*features), precisions, rtol=1e-12)


def test_names_and_order_of_classes_do_not_matter(features):
    gallery, gallery_labels, query, query_labels = features
    renamed = {7: 2**40 + 1, -3: 2**40, 1000: 0, 12: -(2**50), 5: 1}  # would collide in 32 bits
    rename = np.vectorize(renamed.get)
    order = np.random.default_rng(1).permutation(len(gallery))
    other = (gallery[order], rename(gallery_labels)[order], query, rename(query_labels))
    np.testing.assert_array_equal(identification_hits(*other), identification_hits(*features))
    np.testing.assert_array_equal(retrieval.recall_hits(*other), retrieval.recall_hits(*features))
    np.testing.assert_allclose(
        retrieval.average_precisions(*other), retrieval.average_precisions(*features), rtol=1e-12
    )


def test_lengths_of_features_do_not_matter(features):
    gallery, gallery_labels, query, query_labels = features
    scales = np.geomspace(1e-3, 1e3, len(gallery))[:, np.newaxis]
    np.testing.assert_array_equal(
        identification_hits(scales * gallery, gallery_labels, 9 * query, query_labels),
        identification_hits(*features),
    )


def test_labels_are_compared_not_row_numbers():
    gallery = np.eye(3)
    query = np.eye(3)
    assert retrieval.identification_accuracy(gallery, [5, 9, 4], query, [5, 9, 4]) == 1
    assert retrieval.identification_accuracy(gallery, [5, 9, 4], query, [0, 1, 2]) == 0


def test_class_means_by_hand():
    features = np.array([[3.0, 0.0], [0.0, -2.0], [0.0, 5.0]])
    means, classes = retrieval.class_means(features, np.array([9, -1, 9]))
    np.testing.assert_array_equal(classes, [-1, 9])
    np.testing.assert_allclose(means, [[0, -1], [np.sqrt(0.5), np.sqrt(0.5)]], atol=1e-7)
    assert means.dtype == np.float32


def test_a_tie_is_wrong():
    gallery, labels = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])
    for label in (0, 1):
        arguments = (gallery, labels, np.array([[2.0, 1.0]]), np.array([label]))
        assert retrieval.identification_accuracy(*arguments) == 0
        np.testing.assert_array_equal(retrieval.recall_hits(*arguments), [[False, True]])


def test_zero_features_are_wrong_not_nan():
    gallery, labels = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), np.array([0, 0, 1])
    means, _ = retrieval.class_means(gallery, labels)  # features that cancel, a feature of zeros
    np.testing.assert_array_equal(means, 0)
    query = np.array([[1.0, 0.0], [0.0, 0.0]])
    arguments = (gallery, labels, query, np.array([0, 1]))
    np.testing.assert_array_equal(identification_hits(*arguments), False)
    np.testing.assert_array_equal(retrieval.recall_hits(*arguments, ks=(1,))[:, 0], [True, False])
    assert np.isfinite(retrieval.average_precisions(*arguments)).all()


def test_separable_classes_are_all_found():
    rng = np.random.default_rng(2)
    centres = 10 * np.eye(4)
    labels = np.arange(4).repeat(5)
    gallery, query = (centres[labels] + rng.standard_normal((20, 4)) for _ in range(2))
    arguments = (gallery, labels, query, labels)
    assert retrieval.identification_accuracy(*arguments) == 1
    for metric in retrieval.METRICS.values():
        assert metric.values(*arguments).mean() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.ones((2, 4))}, "query: features have width 4 but the gallery's have 3"),
        ({"query": np.ones(3)}, r"query: expected non-empty features \[N, D\], got \[3\]"),
        ({"gallery": np.ones((0, 3)), "gallery_labels": []}, r"gallery: .* got \[0, 3\]"),
        ({"query_labels": [0]}, r"query_labels: expected shape \[2\], got \[1\]"),
        ({"gallery": np.array([[1, 2, np.nan]])}, "gallery: features must be finite"),
        ({"query": np.full((2, 3), np.inf)}, "query: features must be finite"),
    ],
)
@pytest.mark.parametrize("metric", retrieval.METRICS)
def test_refuses_in_one_line(metric, change, message):
    arguments = {
        "gallery": np.ones((1, 3)),
        "gallery_labels": [0],
        "query": np.ones((2, 3)),
        "query_labels": [0, 1],
    }
    compute = retrieval.METRICS[metric].values
    compute(**arguments)
    with pytest.raises(ValueError, match=message) as error:
        compute(**arguments | change)
    assert "\n" not in str(error.value)


def test_refuses_k_below_one(features):
    with pytest.raises(ValueError, match=r"ks: expected positive integers, got \(0, 1\)"):
        retrieval.recall_hits(*features, ks=(0, 1))


def test_registered_metrics_are_those_defined_here(features):
    """The value of each query, over the whole gallery or what is left of it."""
    expected = {
        "identification": identification_hits(*features),
        "recall_at_1": retrieval.recall_hits(*features)[:, 0],
        "mean_average_precision": retrieval.average_precisions(*features),
    }
    assert retrieval.METRICS.keys() == expected.keys()
    gallery, gallery_labels, *query = features
    for name, metric in retrieval.METRICS.items():
        np.testing.assert_array_equal(metric.values(*features), expected[name])
        reduced = metric.reduce(gallery, gallery_labels)
        assert len(reduced[0]) == (4 if name == "identification" else len(gallery))
        np.testing.assert_array_equal(metric.per_query(*reduced, *query), expected[name])


@pytest.mark.parametrize("metric", retrieval.METRICS)
@pytest.mark.parametrize("at_once", [retrieval._SCORES_AT_ONCE, 50])
def test_queries_may_be_on_a_device_and_come_in_parts(features, monkeypatch, metric, at_once):
    compute = retrieval.METRICS[metric].values
    expected = compute(*features)
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", at_once)
    gallery, gallery_labels, query, query_labels = features
    query = jnp.asarray(query)
    np.testing.assert_array_equal(compute(gallery, gallery_labels, query, query_labels), expected)
    with pytest.raises(ValueError, match="query: features must be finite"):
        compute(gallery, gallery_labels, query.at[3, 2].set(jnp.nan), query_labels)
