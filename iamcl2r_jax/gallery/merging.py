"""Merges what a query finds in several generations, whose scores may be of different scale."""

from collections.abc import Sequence

import numpy as np

from iamcl2r_jax.gallery.records import View
from iamcl2r_jax.gallery.store import best_of


def merged(
    found: Sequence[tuple[int, np.ndarray, np.ndarray]], view: View, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best of what each generation has: items, scores and generations [Q, k], best first.

    Args:
      found: of each generation its id, and items and scores [Q, k] as of `VectorStore.search`.
      view: says how scores are merged.
    """
    upgrade = view.upgrade
    if len(found) > 1 and upgrade.merge == "zscore":
        scaled = []
        for generation, items, scores in found:
            mean, std = upgrade.scaling[generation]
            scaled.append((generation, items, (scores - mean) / std))
        found = scaled
    origins = np.concatenate(
        [np.full(items.shape, generation) for generation, items, _ in found], axis=1
    )
    items, scores = (np.concatenate([part[n] for part in found], axis=1) for n in (1, 2))
    order = best_of(items, scores, k)
    return tuple(np.take_along_axis(of, order, 1) for of in (items, scores, origins))
