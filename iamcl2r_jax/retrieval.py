"""Retrieval accuracy: queries of one model against a gallery of the same or another model.

Features are [N, D] arrays, normalised inside; similarity is the cosine. Labels are [N] arrays of
anything that can be sorted: integers need be neither contiguous nor start at 0. A query whose class
the gallery does not hold counts as wrong. A tie between the right class and another counts as
wrong, as it does in the compatibility criterion; nothing then depends on the order of the gallery.
"""

from collections.abc import Callable, Iterator, Sequence

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


def class_means(features, labels) -> tuple[np.ndarray, np.ndarray]:
    """One template per class: the normalised mean of its normalised features.

    Args:
      features: [N, D].
      labels: [N].

    Returns:
      (means float32 [C, D] of unit length, or zero where the features cancel; classes [C], sorted).
    """
    features, labels = _checked("features", features, labels)
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


def _chunks(query, num_gallery) -> Iterator[tuple[slice, np.ndarray | jax.Array]]:
    """Slices of the queries, and the queries there padded to one shape, so that jit traces once."""
    size = max(1, _SCORES_AT_ONCE // num_gallery)
    if len(query) <= size:
        yield slice(0, len(query)), query
        return
    query = np.asarray(query)
    for start in range(0, len(query), size):
        chunk = query[start : start + size]
        yield slice(start, start + len(chunk)), np.pad(chunk, [(0, size - len(chunk)), (0, 0)])


def _ranks(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """0-based rank [Q] of the first right entry in each query's list, ties counted against it."""
    # Positions among the labels that occur: jax would cut 64-bit labels down to 32.
    _, classes = np.unique(np.concatenate([gallery_labels, query_labels]), return_inverse=True)
    gallery_classes = jnp.asarray(classes[: len(gallery)])
    query_classes = classes[len(gallery) :]
    gallery = jnp.asarray(gallery)
    ranks = []
    for where, chunk in _chunks(query, len(gallery)):
        chunk_classes = np.resize(query_classes[where], len(chunk))  # repeated into the padding
        chunk_ranks = _others_ahead(chunk, chunk_classes, gallery, gallery_classes)
        ranks.append(np.asarray(chunk_ranks)[: where.stop - where.start])
    return np.concatenate(ranks)


def identification_hits(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """Whether each query is identified: nearest to its own among the class means of the gallery.

    For intervals: `scipy.stats.bootstrap` on these, paired for two models on the same queries.

    Args:
      gallery: [N, D], reduced to `class_means`.
      gallery_labels: [N].
      query: [Q, D].
      query_labels: [Q].

    Returns:
      bool [Q].

    Raises:
      ValueError: empty or non-finite features, shapes or widths that do not fit.
    """
    gallery, gallery_labels, query, query_labels = _checked_pair(
        gallery, gallery_labels, query, query_labels
    )
    means, classes = class_means(gallery, gallery_labels)
    return _ranks(means, classes, query, query_labels) == 0


def identification_accuracy(gallery, gallery_labels, query, query_labels) -> float:
    """1:N identification, the mean of `identification_hits`: the share of queries identified.

    The official code compares the retrieved row number with the label, which is right only if the
    gallery holds exactly the labels 0 … C-1; here the label of the retrieved class is compared.
    """
    return float(identification_hits(gallery, gallery_labels, query, query_labels).mean())


def recall_hits(
    gallery, gallery_labels, query, query_labels, ks: Sequence[int] = (1, 5)
) -> np.ndarray:
    """Whether each query's k nearest gallery entries hold one of its class.

    Arguments and errors are those of `identification_hits`, but every gallery entry stands for
    itself.

    Returns:
      bool [Q, len(ks)].
    """
    if min(ks) < 1:
        raise ValueError(f"ks: expected positive integers, got {tuple(ks)}")
    ranks = _ranks(*_checked_pair(gallery, gallery_labels, query, query_labels))
    return ranks[:, np.newaxis] < np.asarray(ks)[np.newaxis, :]


def recall_at_k(
    gallery, gallery_labels, query, query_labels, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Recall@k, the mean of `recall_hits` over queries: {k: value in [0, 1]}."""
    hits = recall_hits(gallery, gallery_labels, query, query_labels, ks)
    return dict(zip(ks, hits.mean(axis=0).tolist(), strict=True))


def average_precisions(gallery, gallery_labels, query, query_labels) -> np.ndarray:
    """Average precision of each query's ranking of the whole gallery, as scikit-learn defines it.

    AP = mean over the entries i of the query's class of
         #{entries of its class at least as similar as i} / #{entries at least as similar as i};
    0 if the gallery lacks the class. Arguments and errors are those of `identification_hits`, but
    every gallery entry stands for itself.

    Returns:
      float64 [Q].
    """
    gallery, gallery_labels, query, query_labels = _checked_pair(
        gallery, gallery_labels, query, query_labels
    )
    members = {label: np.flatnonzero(gallery_labels == label) for label in np.unique(query_labels)}
    gallery = jnp.asarray(gallery)
    precisions = np.zeros(len(query))
    for where, chunk in _chunks(query, len(gallery)):
        scores = np.asarray(_similarities(chunk, gallery))
        # NumPy sorts an order of magnitude faster than XLA does on a CPU.
        ordered = np.sort(scores, axis=1)
        for n in range(where.start, where.stop):
            own = np.sort(scores[n - where.start, members[query_labels[n]]])
            if own.size:
                own_nearer = len(own) - np.searchsorted(own, own)
                all_nearer = len(gallery) - np.searchsorted(ordered[n - where.start], own)
                precisions[n] = np.mean(own_nearer / all_nearer)
    return precisions


def mean_average_precision(gallery, gallery_labels, query, query_labels) -> float:
    """mAP, the mean of `average_precisions`, in [0, 1]."""
    return float(average_precisions(gallery, gallery_labels, query, query_labels).mean())


def recall_at_1(gallery, gallery_labels, query, query_labels) -> float:
    """Recall@1: the share of queries whose nearest gallery image is of their class, in [0, 1]."""
    return recall_at_k(gallery, gallery_labels, query, query_labels, ks=(1,))[1]


# A measure maps (gallery, gallery_labels, query, query_labels) to a value in [0, 1].
MEASURES: dict[str, Callable[..., float]] = {
    "identification": identification_accuracy,
    "recall_at_1": recall_at_1,
    "mean_average_precision": mean_average_precision,
}

# All that a measure looks at of a gallery, where that is less: maps (gallery, gallery_labels) to
# features and labels that stand for them, up to rounding, for whoever compares them more than once.
REDUCTIONS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "identification": class_means,
}
