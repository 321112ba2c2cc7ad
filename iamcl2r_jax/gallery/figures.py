"""Retrieval metrics of a gallery as it answers, from searches alone.

The same definitions as `retrieval`, on what a user of the gallery sees: while a backfill runs, this
is the actual value beside the gate's prediction.
"""

import numpy as np

from iamcl2r_jax.gallery.gallery import Gallery

_AT_ONCE = 64  # queries whose whole rankings are in memory


def per_query(
    gallery: Gallery, vectors: np.ndarray, labels: list[str], *, model: str
) -> dict[str, np.ndarray]:
    """The value of each query: whether its nearest item is of its label, and average precision.

    Args:
      gallery: items without a label are of no class.
      vectors: queries by the model, float32 [Q, D] of unit length.
      labels: of the queries, [Q].
      model: its name.

    Returns:
      {"recall_at_1": bool [Q], "mean_average_precision": float64 [Q]}.

    Raises:
      Refused: the model may not search the vectors that are stored.
    """
    with gallery.database.reading() as connection:
        stored = dict(connection.execute("SELECT id, label FROM items"))
    hits, precisions = np.zeros(len(vectors), bool), np.zeros(len(vectors))
    for start in range(0, len(vectors), _AT_ONCE):
        some = vectors[start : start + _AT_ONCE]
        found, scores, _ = gallery.search_arrays(some, model=model, k=max(1, len(stored)))
        for n, (items, ranked) in enumerate(zip(found, scores, strict=True), start=start):
            there = items >= 0
            own = np.array([stored.get(item) == labels[n] for item in items[there].tolist()], bool)
            ranked = ranked[there]
            if own.any():
                # A tie with another class counts as wrong.
                hits[n] = ranked[own].max() > np.max(ranked[~own], initial=-np.inf)
                precisions[n] = _average_precision(ranked, own)
    return {"recall_at_1": hits, "mean_average_precision": precisions}


def _average_precision(scores: np.ndarray, own: np.ndarray) -> float:
    """Mean over the own entries of the share of own ones among all at least as near."""
    everyone, mine = np.sort(scores), np.sort(scores[own])
    nearer = len(mine) - np.searchsorted(mine, mine)
    return float(np.mean(nearer / (len(everyone) - np.searchsorted(everyone, mine))))
