"""The choice of queries and what they find."""

import numpy as np
import pytest

from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.reports import retrieval_strip


def image_set(labels):
    images = np.arange(len(labels), dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
    images = np.broadcast_to(images, (len(labels), 2, 2, 3))
    return ImageSet(images, np.asarray(labels, np.int32), ("a", "b", "c"))


def test_draw_is_without_replacement_and_depends_on_the_seed_only():
    drawn = retrieval_strip.draw(3, 10, 100)
    assert len(set(drawn.tolist())) == 10
    assert (drawn == retrieval_strip.draw(3, 10, 100)).all()
    assert (drawn != retrieval_strip.draw(4, 10, 100)).any()
    assert sorted(retrieval_strip.draw(3, 10, 4)) == [0, 1, 2, 3]


def test_nearest_is_by_cosine_whatever_the_lengths():
    gallery = np.asarray([[10.0, 10.0], [0.1, 0.0], [0.0, 5.0], [0.0, 0.0]])
    query = np.asarray([[2.0, 0.1], [-1.0, 100.0]])
    found = retrieval_strip.nearest(gallery, query, 3)
    assert found.tolist() == [[1, 0, 2], [2, 0, 3]]
    cosines = query @ gallery[:3].T
    cosines /= np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(gallery[:3], axis=1))
    assert found[0].tolist() == np.argsort(-cosines[0]).tolist()


def test_strip_shows_what_was_found_and_marks_what_is_right():
    gallery, query = image_set([0, 1, 2]), image_set([1, 2])
    features = np.eye(3)
    strip = retrieval_strip.build(
        gallery, features, query, np.asarray([[0.0, 3, 1], [2, 1, 0]]), count=2
    )
    assert strip.query_classes.tolist() == ["b", "c"]
    assert strip.nearest_classes.tolist() == [["b", "c"], ["a", "b"]]
    assert strip.nearest_images[:, :, 0, 0, 0].tolist() == [[1, 2], [0, 1]]
    assert strip.right.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("count", [3, 9])
def test_a_small_gallery_gives_all_it_has(count):
    gallery = image_set([0, 1, 2])
    strip = retrieval_strip.build(gallery, np.eye(3), gallery, np.eye(3), count)
    assert strip.right.shape == (3, 3)
    assert strip.right.sum() == 3
