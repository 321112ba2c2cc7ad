"""Every pair of models: the compatibility matrices, their intervals and what results.json holds."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import compatibility, retrieval
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.evaluation.features import Features
from iamcl2r_jax.evaluation.intervals import paired_intervals
from iamcl2r_jax.evaluation.searches import NEAREST, QUERIES, draw, nearest


@dataclasses.dataclass(frozen=True)
class PairValues:
    """One metric for each pair of T models.

    Attributes:
      matrix: C[t, k], queries by model t against the gallery of model k <= t, carried on by models
        k+1 to t where these say how; float64 [T, T], NaN above the diagonal.
      gain_intervals: of C[t, k] - C[k, k], see `intervals`; [T, T, 2], NaN but for t > k.
      reindexing_intervals: of C[t, t] - C[t, k], as those.
    """

    matrix: np.ndarray
    gain_intervals: np.ndarray
    reindexing_intervals: np.ndarray


def evaluate_pairs(
    models: Iterable[Features],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    metrics: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, PairValues]:
    """Every pair of models by every metric.

    Args:
      models: features by each model, oldest first. Taken one at a time; only galleries are kept, so
        that the queries of one model are in memory at once.
      query_labels: [Q].
      gallery_labels: [N].
      metrics: keys of `retrieval.METRICS`.
      seed: of the bootstrap.
    """
    rows = _Rows(query_labels, gallery_labels, metrics)
    for features in models:
        rows.add(features)
    return rows.values(seed)


class _Rows:
    """The values of all pairs, row by row, and the galleries that the next row takes."""

    def __init__(self, query_labels, gallery_labels, metrics: Sequence[str]):
        self._query_labels, self._gallery_labels = query_labels, gallery_labels
        self._galleries = []  # of each model: its features, and by metric what that reads of them
        self._rows = {name: [] for name in metrics}  # of each model: values of the queries, [k, Q]

        self._drawn = draw(0, QUERIES, len(query_labels))
        self._drawn_features = None  # of these queries by the newest model, [8, D]

    def add(self, features: Features) -> None:
        self._drawn_features = features.query[self._drawn]
        if features.forward is not None:
            self._galleries = [
                self._stored(features.forward(gallery)) for gallery, _ in self._galleries
            ]
        self._galleries.append(self._stored(features.gallery))
        query = jnp.asarray(features.query)  # to the device once for all galleries
        for name, rows in self._rows.items():
            rows.append(
                [
                    retrieval.METRICS[name].per_query(*read[name], query, self._query_labels)
                    for _, read in self._galleries
                ]
            )

    def _stored(self, gallery):
        read = {
            name: retrieval.METRICS[name].reduce(gallery, self._gallery_labels)
            for name in self._rows
        }
        return gallery, read

    def searches(self) -> dict[str, Any]:
        oldest, _ = self._galleries[0]
        found = nearest(np.asarray(oldest), self._drawn_features, NEAREST)
        return {"queries": self._drawn.tolist(), "nearest": found.tolist()}

    def values(self, seed: int) -> dict[str, PairValues]:
        return {name: pair_values(rows, seed) for name, rows in self._rows.items()}


def pair_values(rows: Sequence[Sequence[np.ndarray]], seed: int) -> PairValues:
    """The matrix and its intervals.

    Args:
      rows: of each model t the metric of its queries, [Q], against the gallery of each k <= t.
      seed: of the bootstrap.
    """
    matrix = np.full((len(rows), len(rows)), np.nan)
    for t, row in enumerate(rows):
        matrix[t, : len(row)] = [values.mean() for values in row]
    intervals = np.full((2, len(rows), len(rows), 2), np.nan)
    pairs = [(t, k) for t in range(len(rows)) for k in range(t)]
    if pairs:
        both = [(rows[t][k], rows[k][k]) for t, k in pairs]
        both += [(rows[t][t], rows[t][k]) for t, k in pairs]
        differences = [np.subtract(new, old, dtype=np.float32) for new, old in both]
        found = paired_intervals(np.stack(differences), seed)
        intervals[:, *np.transpose(pairs)] = found.reshape(2, len(pairs), 2)
    return PairValues(matrix, *intervals)


def evaluate_models(
    evaluations: Mapping[str, Evaluation],
    embedded: Iterable[tuple[str, Features]],
    metrics: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """What results.json holds of some evaluations.

    Args:
      evaluations: by name.
      embedded: the features of each evaluation, named, by each model, oldest first. Taken one at a
        time; the galleries of all evaluations are kept.
      metrics: keys of `retrieval.METRICS`; the first is the main one.

    Returns:
      For each evaluation its main `metric` with `summarize` of it, the others in `metrics`;
      `queries_in_gallery`, how many queries are images of the gallery too; and of `searches` by the
      newest model in the oldest gallery the positions of `queries`, drawn at random, and `nearest`.
    """
    rows = {
        name: _Rows(evaluation.query.labels, evaluation.gallery.labels, metrics)
        for name, evaluation in evaluations.items()
    }
    for name, features in embedded:
        rows[name].add(features)
    found = {}
    for name, of in rows.items():
        (main, values), *others = of.values(seed=0).items()
        found[name] = {
            "metric": main,
            **summarize(values),
            "metrics": {other: summarize(values) for other, values in others},
            "queries_in_gallery": evaluations[name].queries_in_gallery,
            "searches": of.searches(),
        }
    return found


def summarize(values: PairValues) -> dict[str, Any]:
    """The figures of one metric, as they stand in results.json.

    Accuracies in [0, 1] except AA, which is in percent; null where a figure is undefined.
    `near_misses` is how many pairs are incompatible by less than a point.
    """
    matrix = values.matrix
    return {
        "matrix": lower_triangle(matrix),
        "gain_intervals": lower_triangle(values.gain_intervals),
        "ac": compatibility.average_compatibility(matrix),
        "near_misses": int(compatibility.near_misses(matrix).sum()),
        "aa": compatibility.average_accuracy(matrix),
        "aca": finite(compatibility.average_compatibility_accuracy(matrix)),
        "bc": finite(compatibility.backward_compatibility(matrix)),
        "fc": finite(compatibility.forward_compatibility(matrix)),
        "ac_per_task": compatibility.average_compatibility_per_task(matrix).tolist(),
        "aa_per_task": compatibility.average_accuracy_per_task(matrix).tolist(),
    }


def lower_triangle(array: np.ndarray) -> list[list[Any]]:
    """[T, T, ...] as nested lists, null where there is no pair."""
    return [[cell.tolist() if np.isfinite(cell).all() else None for cell in row] for row in array]


def finite(value: float) -> float | None:
    """The value as JSON holds it: null where it is undefined."""
    return value if np.isfinite(value) else None
