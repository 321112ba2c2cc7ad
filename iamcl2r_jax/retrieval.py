"""Retrieval metrics: queries of one model against a gallery of the same or another model.

Features are [N, D] arrays, normalised inside; similarity is the cosine. Labels are [N] arrays of
anything that can be sorted: integers need be neither contiguous nor start at 0. A query whose class
the gallery does not hold counts as wrong. A tie between the right class and another counts as
wrong, as it does in the compatibility criterion; nothing then depends on the order of the gallery.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import losses

_SCORES_AT_ONCE = 2**24  # similarities held in memory, 64 MiB


def _checked(name, features, labels):
    # What is on a device stays there: the queries of a model are compared with many galleries.
    features = features if isinstance(features, jax.Array) else np.asarray(features)
    labels = np.asarray(labels)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{name}: expected non-empty features [N, D], got {list(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}_labels: expected shape [{len(features)}], got {list(labels.shape)}"
        )
    if not features.__array_namespace__().isfinite(features).all():
        raise ValueError(f"{name}: features must be finite, got NaN or infinity")
    return features, labels


def _checked_pair(gallery, gallery_labels, query, query_labels):
    gallery, gallery_labels = _checked("gallery", gallery, gallery_labels)
    query, query_labels = _checked("query", query, query_labels)
    if gallery.shape[1] != query.shape[1]:
        raise ValueError(
            f"query: features have width {query.shape[1]} but the gallery's have "
            f"{gallery.shape[1]}; models that are compared need the same width"
        )
    return gallery, gallery_labels, query, query_labels


def class_means(gallery, gallery_labels) -> tuple[np.ndarray, np.ndarray]:
    """One template per class: the normalised mean of its normalised features [N, D].

    Returns:
      (means float32 [C, D] of unit length, or zero where the features cancel; classes [C], sorted).
    """
    features, labels = _checked("gallery", gallery, gallery_labels)
    classes, counts = np.unique(labels, return_counts=True)
    by_class = np.asarray(losses.normalize(features))[np.argsort(labels, kind="stable")]
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(by_class, starts, axis=0, dtype=np.float64)
    means = sums / counts[:, np.newaxis]
    return np.asarray(losses.normalize(means.astype(np.float32))), classes


@jax.jit
def _others_ahead(query, query_classes, gallery, gallery_classes):
    """How many entries of other classes are at least as near as the nearest of the own class.

    [B]; the largest integer where the gallery lacks the class.
    """
    scores = losses.cosine_similarities(query, gallery)
    own = query_classes[:, jnp.newaxis] == gallery_classes[jnp.newaxis, :]
    nearest = jnp.max(scores, axis=1, keepdims=True, where=own, initial=-jnp.inf)
    ahead = jnp.sum(~own & (scores >= nearest), axis=1)
    return jnp.where(jnp.any(own, axis=1), ahead, jnp.iinfo(ahead.dtype).max)


_similarities = jax.jit(losses.cosine_similarities)


@partial(jax.jit, static_argnames="size")
def _rows(array, start, size):
    return jax.lax.dynamic_slice_in_dim(array, start, size)


def _chunks(query, num_gallery) -> Iterator[tuple[slice, int, jax.Array]]:
    """The queries in chunks of one shape, so that jit traces once, cut on the device.

    Yields:
      Positions of the queries that no chunk before had, how many queries at the beginning of the
      chunk one before had (the last chunk reaches back to be full), and the chunk.
    """
    size = min(len(query), max(1, _SCORES_AT_ONCE // num_gallery))
    for start in range(0, len(query), size):
        first = min(start, len(query) - size)
        chunk = query if size == len(query) else _rows(query, first, size)
        yield slice(start, first + size), start - first, chunk


def _ranks(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """0-based rank [Q] of the first right entry in each query's list, ties counted against it."""
    # Positions among the labels that occur: jax would cut 64-bit labels down to 32.
    _, classes = np.unique(np.concatenate([gallery_labels, query_labels]), return_inverse=True)
    gallery_classes = jnp.asarray(classes[: len(gallery)])
    query_classes = classes[len(gallery) :]
    gallery, query = jnp.asarray(gallery), jnp.asarray(query)
    ranks = []
    for where, known, chunk in _chunks(query, len(gallery)):
        chunk_classes = query_classes[where.start - known : where.stop]
        chunk_ranks = _others_ahead(chunk, chunk_classes, gallery, gallery_classes)
        ranks.append(np.asarray(chunk_ranks)[known:])
    return np.concatenate(ranks)


def identification_accuracy(gallery, gallery_labels, query, query_labels) -> float:
    """1:N identification: the share of queries nearest to their own among the class means.

    The official code compares the retrieved row number with the label, which is right only if the
    gallery holds exactly the labels 0 … C-1; here the label of the retrieved class is compared.
    Arguments and errors are those of `Metric.values`.
    """
    metric = METRICS["identification"]
    return float(metric.values(gallery, gallery_labels, query, query_labels).mean())


def recall_hits(
    gallery, gallery_labels, query, query_labels, ks: Sequence[int] = (1, 5)
) -> np.ndarray:
    """Whether each query's k nearest gallery entries hold one of its class.

    Arguments and errors are those of `Metric.values`. bool [Q, len(ks)].
    """
    if min(ks) < 1:
        raise ValueError(f"ks: expected positive integers, got {tuple(ks)}")
    ranks = _ranks(*_checked_pair(gallery, gallery_labels, query, query_labels))
    return ranks[:, np.newaxis] < np.asarray(ks)[np.newaxis, :]


def nearest_hits(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """Whether each query's nearest gallery entry is of its class, bool [Q]; see `recall_hits`."""
    return recall_hits(gallery, gallery_labels, query, query_labels, ks=(1,))[:, 0]


def average_precisions(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """Average precision of each query's ranking of the whole gallery, as scikit-learn defines it.

    AP = mean over the entries i of the query's class of
         #{entries of its class at least as similar as i} / #{entries at least as similar as i};
    0 if the gallery lacks the class. Arguments and errors are those of `Metric.values`.
    float64 [Q].
    """
    gallery, gallery_labels, query, query_labels = _checked_pair(
        gallery, gallery_labels, query, query_labels
    )
    members = {label: np.flatnonzero(gallery_labels == label) for label in np.unique(query_labels)}
    gallery, query = jnp.asarray(gallery), jnp.asarray(query)
    precisions = np.zeros(len(query))
    for where, known, chunk in _chunks(query, len(gallery)):
        scores = np.asarray(_similarities(chunk, gallery))[known:]
        # NumPy sorts an order of magnitude faster than XLA does on a CPU.
        ordered = np.sort(scores, axis=1)
        for n in range(where.start, where.stop):
            own = np.sort(scores[n - where.start, members[query_labels[n]]])
            if own.size:
                own_nearer = len(own) - np.searchsorted(own, own)
                all_nearer = len(gallery) - np.searchsorted(ordered[n - where.start], own)
                precisions[n] = np.mean(own_nearer / all_nearer)
    return precisions


def _whole(gallery, gallery_labels):
    return gallery, gallery_labels


@dataclasses.dataclass(frozen=True)
class Metric:
    """A retrieval metric: the mean over queries of a value in [0, 1], higher being better.

    Attributes:
      title: its name in tables.
      meaning: one sentence.
      per_query: maps (gallery, gallery_labels, query, query_labels) to the value of each query,
        [Q]; the gallery is what `reduce` leaves of it.
      reduce: maps a gallery (features, labels) to what the metric reads of it, where that is less.
      verbs: what queries do with "93.5 %", and what they did.
    """

    title: str
    meaning: str
    per_query: Callable[..., np.ndarray]
    reduce: Callable[..., tuple[np.ndarray, np.ndarray]] = _whole
    verbs: tuple[str, str] = ("find", "found")

    def values(self, gallery, gallery_labels, query, query_labels) -> np.ndarray:
        """The value of each query, [Q].

        Args:
          gallery, gallery_labels: [N, D] and [N], the whole gallery.
          query, query_labels: [Q, D] and [Q].

        Raises:
          ValueError: empty or non-finite features, shapes or widths that do not fit.
        """
        return self.per_query(*self.reduce(gallery, gallery_labels), query, query_labels)


METRICS: dict[str, Metric] = {
    "identification": Metric(
        "identification",
        "Identification (1:N): share of queries that are nearest to the mean feature of their own "
        "class in the gallery.",
        nearest_hits,
        class_means,
    ),
    "recall_at_1": Metric(
        "recall@1", "Share of queries whose nearest gallery image is of their class.", nearest_hits
    ),
    "mean_average_precision": Metric(
        "mAP",
        "Mean over the queries of the average precision over the whole gallery.",
        average_precisions,
        verbs=("reach a mAP of", "reached"),
    ),
}
