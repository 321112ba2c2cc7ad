"""Labelled images of the user and what launch/evaluate.py makes of them; all that the gate uses."""

import dataclasses
from collections.abc import Callable

import numpy as np

from iamcl2r_jax import retrieval
from iamcl2r_jax.evaluation import gate, intervals

Values = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
CONFIDENCE = intervals.CONFIDENCE
Split = gate.Split


@dataclasses.dataclass(frozen=True)
class Images:
    """Images searched in and searched for, as models of one image size take them.

    Attributes:
      gallery, query: uint8 [N, size, size, 3].
      gallery_labels, query_labels: int32 [N], of the same classes.
    """

    gallery: np.ndarray
    gallery_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


def load(gallery: Split, query: Split, size: int, data_dir: str | None) -> Images:
    """Loads labelled images; classes are matched by name.

    Raises:
      InputError: if a set cannot be had, both are the same, or they share no class.
    """
    loaded = gate.load_evaluation(gallery, query, size, data_dir)
    return Images(
        loaded.gallery.images, loaded.gallery.labels, loaded.query.images, loaded.query.labels
    )


def metrics() -> list[str]:
    """Names of the metrics that a gate may decide by."""
    return list(retrieval.METRICS)


def values(metric: str) -> Values:
    """The function (gallery, its labels, queries, their labels) -> value of each query, [Q]."""
    return retrieval.METRICS[metric].values


def interval(first: np.ndarray, second: np.ndarray, seed: int) -> list[float]:
    """Bootstrap interval of mean(first) - mean(second) over the same queries."""
    differences = np.subtract(first, second, dtype=np.float32)
    return intervals.paired_intervals(differences[np.newaxis], seed)[0].tolist()
