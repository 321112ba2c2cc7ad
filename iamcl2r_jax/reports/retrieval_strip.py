"""A few searches to look at: queries drawn at random and their nearest gallery images."""

import dataclasses

import numpy as np

from iamcl2r_jax.reports.words import printable


@dataclasses.dataclass(frozen=True)
class Strip:
    """Searches for Q queries, with N nearest gallery images each."""

    query_images: np.ndarray  # uint8 [Q, H, W, 3]
    query_classes: np.ndarray  # name of each query's class, [Q]
    nearest_images: np.ndarray  # uint8 [Q, N, H, W, 3], nearest first
    nearest_classes: np.ndarray  # names of their classes, [Q, N]
    right: np.ndarray  # whether they are of the query's class, bool [Q, N]


def draw(seed: int, count: int, total: int) -> np.ndarray:
    """`count` of the positions 0 … total-1 at random without replacement, all if fewer: int [N]."""
    return np.random.default_rng(seed).permutation(total)[:count]


def nearest(gallery, query, count: int) -> np.ndarray:
    """Positions of the gallery entries of highest cosine with each query: int [Q, min(count, N)].

    Features [N, D] and [Q, D] may be of any length. The nearest come first; ties by position.
    """
    # Shapes differ from set to set: NumPy, as XLA would compile every one of them.
    lengths = np.linalg.norm(gallery, axis=1)
    cosines = query @ gallery.T / np.maximum(lengths, 1e-12)  # up to each query's length
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def build(gallery_set, gallery_features, query_set, query_features, count: int) -> Strip:
    """The strip of queries against a gallery.

    Args:
      gallery_set, query_set: `sources.ImageSet` of [N] and [Q] images with common class names.
      gallery_features, query_features: [N, D] by the older and [Q, D] by the newer model.
      count: nearest images of each query.
    """
    found = nearest(gallery_features, query_features, count)
    names = np.asarray([printable(name) for name in query_set.class_names], object)
    found_labels = gallery_set.labels[found]
    return Strip(
        query_images=query_set.images,
        query_classes=names[query_set.labels],
        nearest_images=gallery_set.images[found],
        nearest_classes=names[found_labels],
        right=found_labels == query_set.labels[:, np.newaxis],
    )
