"""In which order a backfill embeds items.

Re-embedded items attract queries of classes that are not reached yet, so that every class should
be as far as the others at any time.
"""

from collections.abc import Hashable, Sequence

import numpy as np

_LARGEST_SAMPLE = 20_000  # vectors that cells are fitted on
_MOST_CELLS = 256


def round_robin(groups: Sequence[Hashable], seed: int = 0) -> np.ndarray:
    """One of each group in turn, at random inside a group and a round: positions int64 [N]."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(group))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    counts = np.bincount(group) if len(group) else np.empty(0, np.int64)
    turn = np.empty(len(group), np.int64)
    turn[by_group] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[np.argsort(turn[shuffled], kind="stable")]


def cells(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Cells of k-means of vectors [N, D], int64 [N], for classes where no labels are known."""
    from sklearn.cluster import MiniBatchKMeans

    count = int(np.clip(np.sqrt(len(vectors)), 1, _MOST_CELLS))
    rng = np.random.default_rng(seed)
    sample = rng.choice(len(vectors), min(len(vectors), _LARGEST_SAMPLE), replace=False)
    fitted = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(vectors[np.sort(sample)])
    return fitted.predict(vectors).astype(np.int64)
