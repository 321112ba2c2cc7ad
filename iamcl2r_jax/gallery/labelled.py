"""Labelled images of the user and what launch/evaluate.py makes of them; all that the gate uses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from iamcl2r_jax import retrieval
from iamcl2r_jax.evaluation import gate, intervals, pairs
from iamcl2r_jax.evaluation.features import Features

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


def compare(
    old: tuple[np.ndarray, np.ndarray],
    new: tuple[np.ndarray, np.ndarray],
    images: Images,
    metric: str,
    seed: int,
) -> dict[str, Any]:
    """What launch/evaluate.py says of an upgrade.

    Args:
      old, new: features of the gallery [N, D] and of the queries [Q, D] by each model.
      images: gives the labels.
      metric: of `metrics`.
      seed: of the intervals.

    Returns:
      `values` {"old/old", "new/old", "new/new"} of queries/gallery, `compatible`, `gain` and
      `reindexing_gain` with `gain_interval` and `reindexing_interval`.
    """
    models = [Features(query=query, gallery=gallery) for gallery, query in (old, new)]
    labels = images.query_labels, images.gallery_labels
    found = pairs.evaluate_pairs(models, *labels, [metric], seed=seed)[metric]
    (upgrade,) = gate.upgrades_of(found)
    del upgrade["old"], upgrade["new"]
    names = ("old", "new")
    values = {
        f"{names[t]}/{names[k]}": float(found.matrix[t, k]) for t, k in ((1, 0), (0, 0), (1, 1))
    }
    return {"values": values, **upgrade}
