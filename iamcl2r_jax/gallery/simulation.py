"""What a backfill will do to the search while it runs, from features of labelled images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from iamcl2r_jax.gallery import orders

FRACTIONS = tuple(n / 10 for n in range(11))
RAW, ZSCORE = "raw", "zscore"
Scaling = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric at each of `FRACTIONS` re-embedded, by how scores are merged.

    Attributes:
      raw: with scores as they are.
      zscore: with scores scaled by the mean and std of each generation.
      old_scaling: (mean, std) of the scores in the old and in the new vectors.
    """

    raw: list[float]
    zscore: list[float]
    old_scaling: Scaling
    new_scaling: Scaling

    @property
    def recommended(self) -> str:
        """The merging whose curve is higher on average."""
        return RAW if np.mean(self.raw) >= np.mean(self.zscore) else ZSCORE

    def described(self) -> dict[str, Any]:
        """As JSON values; `dip` is how far the worst point lies below the untouched gallery."""
        curves = {RAW: self.raw, ZSCORE: self.zscore}
        return {
            "fractions": list(FRACTIONS),
            **curves,
            "recommended": self.recommended,
            "dip": {name: float(curve[0] - min(curve)) for name, curve in curves.items()},
        }


def simulate(
    values: Callable[..., np.ndarray],
    old: np.ndarray,
    new: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    seed: int = 0,
) -> Curve:
    """Re-embeds a labelled gallery bit by bit, in the order that a backfill takes.

    Scalings are fitted on a random half of the queries, the metric is taken on the other half.

    Args:
      values: (gallery, labels, queries, query labels) -> value of each query; it must look at the
        order of the gallery's images by cosine alone.
      old, new: the gallery by the old and by the new model, float32 [N, D] of unit length.
      labels: [N].
      query: by the new model, float32 [Q, D] of unit length.
      query_labels: [Q].
      seed: of the order and of the halves.
    """
    order = orders.round_robin(labels.tolist(), seed)
    shuffled = np.random.default_rng(seed).permutation(len(query))
    fit, rest = np.array_split(shuffled, [len(query) // 2])
    old_scaling, new_scaling = (_scaling(query[fit], gallery) for gallery in (old, new))
    asked, asked_labels = query[rest], query_labels[rest]
    curves: dict[str, list[float]] = {RAW: [], ZSCORE: []}
    for fraction in FRACTIONS:
        renewed = np.zeros(len(labels), bool)
        renewed[order[: round(fraction * len(order))]] = True
        mixed = np.where(renewed[:, np.newaxis], new, old)
        curves[RAW].append(float(np.mean(values(mixed, labels, asked, asked_labels))))
        if 0 < fraction < 1:  # one generation alone is not scaled
            scaling = np.where(renewed[:, np.newaxis], new_scaling, old_scaling)
            scaled, longer = _as_cosines(mixed, scaling, asked)
            found = values(scaled, labels, longer, asked_labels)
            curves[ZSCORE].append(float(np.mean(found)))
        else:
            curves[ZSCORE].append(curves[RAW][-1])
    return Curve(curves[RAW], curves[ZSCORE], old_scaling, new_scaling)


def _scaling(query: np.ndarray, gallery: np.ndarray) -> Scaling:
    scores = query @ gallery.T
    std = float(np.std(scores, dtype=np.float64))
    return float(np.mean(scores, dtype=np.float64)), std or 1.0  # 0 if all scores are equal


def _as_cosines(
    gallery: np.ndarray, scaling: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose cosines are (s - mean) / std of those given, up to one common factor.

    s = <q, g>. With g' = [g / std, -mean / std, r] and q' = [q, 1, 0], <q', g'> = (s - mean) / std,
    and r >= 0 makes all g' equally long.
    """
    mean, std = scaling[:, :1], scaling[:, 1:]
    longer = np.concatenate([gallery / std, -mean / std], axis=1)
    squares = np.sum(np.square(longer), axis=1, keepdims=True)
    rest = np.sqrt(np.max(squares) - squares)
    longer = np.concatenate([longer, rest], axis=1).astype(np.float32)
    ones, zeros = np.ones((len(query), 1)), np.zeros((len(query), 1))
    return longer, np.concatenate([query, ones, zeros], axis=1).astype(np.float32)
