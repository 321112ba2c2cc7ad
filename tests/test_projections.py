"""The plane of three classes, and what it shows."""

import numpy as np
import pytest

from iamcl2r_jax.reports import projections
from iamcl2r_jax.simplex import dsimplex


def test_simplex_vertices_make_an_equilateral_triangle_and_others_its_centre():
    vertices = dsimplex(8)
    plane = projections.plane_through(vertices[[1, 4, 6]])
    triangle = projections.project(plane, vertices[[1, 4, 6]])
    sides = np.linalg.norm(triangle - triangle[[1, 2, 0]], axis=1)
    assert sides == pytest.approx(np.full(3, np.linalg.norm(vertices[0] - vertices[1])), abs=1e-6)
    assert triangle[0] == pytest.approx([0, sides[0] / np.sqrt(3)], abs=1e-6)
    assert projections.project(plane, vertices[[0, 7]]) == pytest.approx(np.zeros((2, 2)), abs=1e-6)


def test_distances_in_the_plane_are_kept_and_others_dropped():
    points = np.random.default_rng(0).normal(size=(3, 6))
    plane = projections.plane_through(points)
    shown = projections.project(plane, points)
    for i in range(3):
        for j in range(i):
            distance = np.linalg.norm(points[i] - points[j])
            assert np.linalg.norm(shown[i] - shown[j]) == pytest.approx(distance)
    outside = np.linalg.svd(points - points.mean(axis=0))[2][-1]
    assert projections.project(plane, points + 3 * outside) == pytest.approx(shown)


def test_a_plane_needs_no_more_than_two_dimensions():
    points = np.asarray([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    shown = projections.project(projections.plane_through(points), points)
    assert shown == pytest.approx(np.asarray([[0, 2 / 3], [-1, -1 / 3], [1, -1 / 3]]))


def test_view_normalises_and_measures_the_cosine_with_the_own_vector():
    rows = 3 * dsimplex(4)[:3]
    labels = np.asarray([0, 1, 2, 2])
    features = {"same": 5 * rows[labels], "opposite": -rows[labels], "none": np.zeros((4, 3))}
    view = projections.view(rows, labels, features)
    assert view.features["same"] == pytest.approx(view.vertices[labels])
    assert view.concentrations == pytest.approx({"same": 1.0, "opposite": -1.0, "none": 0.0})
