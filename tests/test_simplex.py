"""The simplex: its Gram matrix, its closed forms for few classes, and the slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax import simplex


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 101, 256, 1000, 1024])
def test_gram_matrix(num_classes):
    vertices = simplex.dsimplex(num_classes)
    assert vertices.shape == (num_classes, num_classes - 1)
    assert vertices.dtype == np.float32
    gram = vertices.astype(np.float64) @ vertices.astype(np.float64).T
    expected = np.full((num_classes, num_classes), -1 / (num_classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(gram, expected, rtol=0, atol=2e-7)


def test_vertices_balance():
    np.testing.assert_allclose(simplex.dsimplex(1024).sum(axis=0), 0, atol=1e-5)


def test_few_classes_by_hand():
    np.testing.assert_allclose(simplex.dsimplex(2), [[1], [-1]])
    # An equilateral triangle: (1, 0) and (0, 1) turned apart by 15° each, and the diagonal between.
    far, near = np.cos(np.pi / 12), np.sin(np.pi / 12)
    corner = -np.sqrt(0.5)
    triangle = [[far, -near], [-near, far], [corner, corner]]
    np.testing.assert_allclose(simplex.dsimplex(3), triangle, atol=1e-7)


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_too_few_classes(num_classes):
    with pytest.raises(ValueError, match=rf"num_classes: .* at least 2 classes, got {num_classes}"):
        simplex.dsimplex(num_classes)


def test_downstream_slots_fill_from_the_far_end():
    labels = np.array([0, 1, 99])
    expected = [1023, 1022, 924]
    np.testing.assert_array_equal(simplex.downstream_slot(labels, 1024), expected)
    traced = jax.jit(lambda y: simplex.downstream_slot(y, 1024))(jnp.asarray(labels))
    np.testing.assert_array_equal(traced, expected)
    assert traced.dtype == jnp.asarray(labels).dtype


def test_slots_of_stream_and_external_classes_are_disjoint_exactly_when_checked():
    num_classes = 12
    for stream in range(num_classes + 1):
        for external in range(num_classes + 1):
            taken = set(simplex.downstream_slot(np.arange(stream), num_classes).tolist())
            collide = bool(taken & set(simplex.external_slot(np.arange(external)).tolist()))
            if collide:
                with pytest.raises(ValueError, match="num_slots=12: too few simplex slots for"):
                    simplex.check_slots(stream, external, num_classes)
            else:
                simplex.check_slots(stream, external, num_classes)
