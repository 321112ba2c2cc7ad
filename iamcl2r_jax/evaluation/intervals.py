"""How sure a figure is: intervals over the queries, mean and std over runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**22  # positions of queries held in memory, 32 MiB


def paired_intervals(differences: np.ndarray, seed: int = 0) -> np.ndarray:
    """Percentile bootstrap intervals of mean differences over the same queries.

    Queries are drawn with replacement, each with its values by both models. How good the gallery's
    images are as a sample is not in it: those are the gallery in question.

    Args:
      differences: value in [0, 1] of each query by one model less that by another, for P pairs of
        models, [P, Q].
      seed: of the draws.

    Returns:
      Both ends, float64 [P, 2]; `CONFIDENCE` of such intervals hold the true difference.
    """
    differences = np.asarray(differences, np.float32)
    rng = np.random.default_rng(seed)
    hits = np.array_equal(differences, np.rint(differences))
    means = _means_of_hits(rng, differences) if hits else _means(rng, differences)
    ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    return np.quantile(means, ends, axis=0).T


def _means_of_hits(rng: np.random.Generator, differences: np.ndarray) -> np.ndarray:
    """Means of the resamples, [R, P], where differences are -1, 0 or 1: how often each is drawn."""
    values = np.array([-1, 0, 1])
    shares = np.stack([(differences == value).mean(axis=1) for value in values], axis=1)
    num_queries = differences.shape[1]
    counts = rng.multinomial(num_queries, shares, size=(RESAMPLES, len(differences)))
    return counts @ values / num_queries


def _means(rng: np.random.Generator, differences: np.ndarray) -> np.ndarray:
    """Means of the resamples, [R, P]; the same queries are drawn for all pairs."""
    num_queries = differences.shape[1]
    at_once = max(1, min(RESAMPLES, _DRAWN_AT_ONCE // num_queries))
    means = []
    for start in range(0, RESAMPLES, at_once):
        rows = np.arange(min(at_once, RESAMPLES - start))[:, np.newaxis]
        drawn = rng.integers(num_queries, size=(len(rows), num_queries)) + num_queries * rows
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(counts.astype(np.float32) @ differences.T / num_queries)
    return np.concatenate(means).astype(np.float64)


def mean_and_std(values: Sequence[Any]) -> dict[str, Any]:
    """Of figures, or of lines of equal length, one of each run; None where a run has none.

    Returns:
      "values" as they are, "mean", None if there is none, and "std" of a sample (n - 1), None for
      fewer than two.
    """
    there = [value for value in values if value is not None]
    return {
        "values": list(values),
        "mean": np.mean(there, axis=0).tolist() if there else None,
        "std": np.std(there, axis=0, ddof=1).tolist() if len(there) > 1 else None,
    }
