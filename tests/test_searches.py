"""The choice of queries and what they find."""

import numpy as np
import pytest

from iamcl2r_jax.evaluation import searches


def test_draw_is_without_replacement_and_depends_on_the_seed_only():
    drawn = searches.draw(3, 10, 100)
    assert len(set(drawn.tolist())) == 10
    assert (drawn == searches.draw(3, 10, 100)).all()
    assert (drawn != searches.draw(4, 10, 100)).any()
    assert sorted(searches.draw(3, 10, 4)) == [0, 1, 2, 3]


def test_nearest_is_by_cosine_whatever_the_lengths():
    gallery = np.asarray([[10.0, 10.0], [0.1, 0.0], [0.0, 5.0], [0.0, 0.0]])
    query = np.asarray([[2.0, 0.1], [-1.0, 100.0]])
    found = searches.nearest(gallery, query, 3)
    assert found.tolist() == [[1, 0, 2], [2, 0, 3]]
    cosines = query @ gallery[:3].T
    cosines /= np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(gallery[:3], axis=1))
    assert found[0].tolist() == np.argsort(-cosines[0]).tolist()


@pytest.mark.parametrize("count", [3, 9])
def test_a_small_gallery_gives_all_it_has(count):
    found = searches.nearest(np.eye(3), np.eye(3), count)
    assert found.shape == (3, 3)
    assert found[:, 0].tolist() == [0, 1, 2]
