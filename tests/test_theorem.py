"""Theorem 1's check: against naive loops, and on caps where theory says how it must come out."""

import numpy as np
import pytest

from iamcl2r_jax import simplex
from iamcl2r_jax.evaluation import theorem


def naive_distances(query, gallery, labels, positions):
    """Mean over all pairs of drawn positions that are of different images."""
    num_classes = labels.max() + 1
    found = [[[] for _ in range(num_classes)] for _ in range(num_classes)]
    for i in positions:
        for j in positions:
            if i != j:
                norms = np.linalg.norm(query[i]) * np.linalg.norm(gallery[j])
                distance = 1 - float(query[i] @ gallery[j]) / norms
                found[labels[i]][labels[j]].append(distance)
    return np.array([[np.mean(cell) for cell in row] for row in found])


def random_features(rng, sizes=(4, 3, 5), dim=6):
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(size=(2, len(labels), dim)), labels


def caps(rng, kappas, *, per_class=60, num_classes=12):
    """Features of classes 0, 1, … in symmetric caps of the given concentrations."""
    vectors = simplex.dsimplex(num_classes).astype(np.float64)[: len(kappas)]
    labels = np.repeat(np.arange(len(kappas)), per_class)
    axes, cosines = vectors[labels], np.asarray(kappas)[labels, np.newaxis]
    noise = rng.normal(size=axes.shape)
    # Noise and its opposite, so that a cap is symmetric in the sample and not only on average.
    noise[1::2] = -noise[::2]
    noise -= np.sum(noise * axes, axis=1, keepdims=True) * axes
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return cosines * axes + np.sqrt(1 - cosines**2) * noise, labels, vectors


def test_expected_distances_equal_a_loop_over_pairs():
    (query, gallery), labels = random_features(np.random.default_rng(0))
    everyone = range(len(labels))
    for of in (gallery, query):  # two models, and one with itself
        np.testing.assert_allclose(
            theorem.expected_distances(query, of, labels),
            naive_distances(query, of, labels, everyone),
            rtol=1e-12,
        )


def test_resampled_distances_equal_a_loop_over_the_drawn_images():
    (query, gallery), labels = random_features(np.random.default_rng(1))
    drawn = np.array([0, 0, *range(len(labels)), 3, 5, 5])
    counts = np.bincount(drawn, minlength=len(labels))
    got = theorem.expected_distances(query, gallery, labels, np.stack([counts, counts * 2]))
    expected = naive_distances(query, gallery, labels, drawn)
    np.testing.assert_allclose(got[0], expected, rtol=1e-12)
    np.testing.assert_allclose(got[1], expected, rtol=1e-12)  # twice everything is the same


def test_a_resample_of_one_image_has_no_pair_of_its_class():
    (query, gallery), labels = random_features(np.random.default_rng(2), sizes=(2, 2))
    counts = np.where(labels == 0, 1, 2 * (np.arange(4) == np.argmax(labels)))
    got = theorem.expected_distances(query, gallery, labels, counts[np.newaxis])[0]
    assert np.isnan(got[1, 1])
    assert np.isfinite([got[0, 0], got[0, 1], got[1, 0]]).all()


def test_draws_keep_the_size_of_each_class():
    labels = np.array([0, 1, 0, 1, 1, 2, 2])
    counts = theorem.draw_counts(labels, 50, np.random.default_rng(0))
    for c, size in enumerate((2, 3, 2)):
        np.testing.assert_array_equal(counts[:, labels == c].sum(axis=1), size)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.5)
    assert counts.std() > 0.5


def test_concentration_and_class_means_equal_loops():
    (features, vectors), labels = random_features(np.random.default_rng(3))
    vectors = vectors[:3]
    cosines = [
        features[i] @ vectors[c] / np.linalg.norm(features[i]) / np.linalg.norm(vectors[c])
        for i, c in enumerate(labels)
    ]
    expected = [
        np.mean([v for v, c in zip(cosines, labels, strict=True) if c == k]) for k in (0, 1, 2)
    ]
    np.testing.assert_allclose(theorem.concentration(features, labels, vectors), expected)

    distances, sizes = np.arange(9.0).reshape(3, 3), np.array([4, 3, 5])
    expected = [(3 * 1 + 5 * 2) / 8, (4 * 3 + 5 * 5) / 9, (4 * 6 + 3 * 7) / 7]
    np.testing.assert_allclose(theorem.other_classes(distances, sizes), expected)
    np.testing.assert_array_equal(theorem.same_class(distances), [0, 4, 8])


def test_caps_have_the_closed_form():
    rng = np.random.default_rng(4)
    old, labels, vectors = caps(rng, [0.5, 0.7, 0.6])
    new, _, _ = caps(rng, [0.6, 0.8, 0.9])
    kappa = theorem.concentration(old, labels, vectors)
    np.testing.assert_allclose(kappa, [0.5, 0.7, 0.6])
    closed = theorem.cap_distances([0.6, 0.8, 0.9] * np.ones(3), kappa, vectors, vectors)
    np.testing.assert_allclose(np.diagonal(closed), 1 - kappa * [0.6, 0.8, 0.9])
    np.testing.assert_allclose(closed[0, 1], 1 + 0.6 * 0.7 / 11, rtol=1e-6)
    measured = theorem.expected_distances(new, old, labels)
    # What is left is the noise of an image with itself, 1/59 of a cosine below one.
    np.testing.assert_allclose(measured, closed, atol=1 / 59)


@pytest.mark.parametrize("grown", [True, False])
def test_both_inequalities_stand_as_the_concentration_says(grown):
    rng = np.random.default_rng(5)
    low, high = [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]
    size = {"per_class": 1000, "num_classes": 4}
    old, labels, vectors = caps(rng, low if grown else high, **size)
    new, _, _ = caps(rng, high if grown else low, **size)
    check = theorem.check(new, old, labels, vectors, vectors, resamples=200)
    assert np.all((check.kappa_new > check.kappa_old) == grown)
    for inequality, count in ((check.same, 3), (check.other, 3), (check.pairs, 6)):
        assert inequality.margin.shape == (count,)
        stands = theorem.shares(inequality)
        assert stands["holds"] == stands["caps_hold"] == float(grown)
        assert stands["holds_beyond" if grown else "violated_beyond"] == 1.0
        assert stands["violated_beyond" if grown else "holds_beyond"] == 0.0
    for mean in (check.mean_same, check.mean_other):
        assert (mean.margin > 0) == grown
        assert (mean.interval[0] > 0) == grown
    np.testing.assert_allclose(check.mean_same.after, check.same.after.mean())


def test_one_class_may_fail_where_others_hold():
    rng = np.random.default_rng(6)
    old, labels, vectors = caps(rng, [0.5, 0.9, 0.5])
    new, _, _ = caps(rng, [0.8, 0.6, 0.8])
    check = theorem.check(new, old, labels, vectors, vectors, resamples=200)
    np.testing.assert_array_equal(check.same.margin > 0, [True, False, True])
    np.testing.assert_array_equal(check.same.caps_margin > 0, [True, False, True])
    np.testing.assert_allclose(theorem.shares(check.same)["violated_beyond"], 1 / 3)


def test_a_rotated_model_violates_both_whatever_its_concentration():
    """As models of learnable heads do: their vectors turn with them, so the closed form knows."""
    rng = np.random.default_rng(7)
    old, labels, vectors = caps(rng, [0.6, 0.6, 0.6])
    turn = np.roll(np.eye(vectors.shape[1]), 4, axis=0)
    new = old @ turn
    check = theorem.check(new, old, labels, vectors @ turn, vectors, resamples=200)
    np.testing.assert_allclose(check.kappa_new, check.kappa_old)
    assert theorem.shares(check.same)["violated_beyond"] == 1.0
    assert theorem.shares(check.same)["caps_hold"] == 0.0
    np.testing.assert_allclose(check.same.after, check.same.caps_after, atol=0.05)


def test_the_same_model_twice_is_a_tie_that_holds_but_not_beyond_its_interval():
    rng = np.random.default_rng(8)
    old, labels, vectors = caps(rng, [0.5, 0.6])
    check = theorem.check(old, old, labels, vectors, vectors, resamples=50)
    assert theorem.shares(check.same) == {
        "holds": 1.0,
        "holds_beyond": 0.0,
        "violated_beyond": 0.0,
        "caps_hold": 1.0,
    }


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 90 % intervals of a margin that is truly zero, most hold zero and some do not."""
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 30)
        vectors = np.eye(2, 4)
        old, new = (vectors[labels] + rng.normal(size=(60, 4)) for _ in range(2))
        check = theorem.check(
            new, old, labels, vectors, vectors, resamples=150, confidence=0.9, seed=seed
        )
        covered += [low <= 0 <= high for low, high in check.same.interval]
    assert 0.8 <= np.mean(covered) <= 0.97


def test_draws_follow_the_seed():
    (new, old), labels = random_features(np.random.default_rng(9), sizes=(6, 5))
    vectors = np.eye(2, new.shape[1])
    one, again, other = (
        theorem.check(new, old, labels, vectors, vectors, resamples=20, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.same.interval, again.same.interval)
    assert (one.same.interval != other.same.interval).any()


def test_what_cannot_be_measured_is_refused():
    features, vectors = np.ones((3, 4)), np.eye(2, 4)
    with pytest.raises(ValueError, match="class 1 needs two or more images"):
        theorem.check(features, features, np.array([0, 0, 1]), vectors, vectors)
    with pytest.raises(ValueError, match="two or more classes"):
        theorem.check(features, features, np.array([0, 0, 0]), vectors[:1], vectors[:1])
