"""A few searches to look at: queries drawn at random and their nearest gallery images."""

import numpy as np

QUERIES, NEAREST = 8, 8


def draw(seed: int, count: int, total: int) -> np.ndarray:
    """`count` of the positions 0 … total-1 at random without replacement, all if fewer: int [N]."""
    return np.random.default_rng(seed).permutation(total)[:count]


def nearest(gallery: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """Positions of the gallery entries of highest cosine with each query: int [Q, min(count, N)].

    Features [N, D] and [Q, D] may be of any length. The nearest come first; ties by position.
    """
    # Shapes differ from set to set: NumPy, as XLA would compile every one of them.
    lengths = np.linalg.norm(gallery, axis=1)
    cosines = query @ gallery.T / np.maximum(lengths, 1e-12)  # up to each query's length
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]
