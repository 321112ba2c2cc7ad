"""Galleries that need not fit into memory, searched a block at a time."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import losses, retrieval
from iamcl2r_jax.evaluation.feature_tables import ROWS_AT_ONCE, FeatureTable

WHOLE = 2**27  # bytes of features that are read at once, 128 MiB
_SCORES_AT_ONCE = 2**24  # similarities held in memory, 64 MiB


@dataclasses.dataclass
class Gallery:
    """Some rows of a table, as they are or mapped to another model's space.

    Attributes:
      table: holds them.
      rows: their positions, ascending.
      carry: maps features [n, S] to [n, D]; None leaves them as they are.
      width: D.
    """

    table: FeatureTable
    rows: np.ndarray
    carry: Callable[[np.ndarray], np.ndarray] | None = None
    width: int = 0

    def __post_init__(self):
        self.width = self.width or self.table.width
        self._read = {}  # by metric, what it reads of the gallery where that fits into memory

    @property
    def labels(self) -> np.ndarray:
        """[N]."""
        return self.table.labels[self.rows]

    def blocks(self) -> Iterator[np.ndarray]:
        """Its features, float32 [n, D] at a time."""
        for block in self.table.blocks(self.rows, ROWS_AT_ONCE):
            yield block if self.carry is None else self.carry(block)

    def values(self, metric: str, query: np.ndarray, query_labels: np.ndarray) -> np.ndarray:
        """A metric of each query [Q], by features [Q, D] and labels [Q], as by `retrieval.METRICS`.

        A metric that is not known here reads the whole gallery at once.
        """
        chosen = retrieval.METRICS[metric]
        large = 4 * len(self.rows) * self.width > WHOLE
        if chosen.reduce is retrieval.class_means:
            if metric not in self._read:
                self._read[metric] = _class_means(self)
        elif large and chosen.per_query in _BLOCKWISE:
            return _BLOCKWISE[chosen.per_query](self, query, query_labels)
        elif metric not in self._read:
            whole = np.concatenate(list(self.blocks()))
            self._read[metric] = chosen.reduce(whole, self.labels)
        return chosen.per_query(*self._read[metric], query, query_labels)


def _class_means(gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
    """`retrieval.class_means` of the whole gallery."""
    classes, index = np.unique(gallery.labels, return_inverse=True)
    sums, start = np.zeros((len(classes), gallery.width)), 0
    for block in gallery.blocks():
        unit = np.asarray(losses.normalize(block))
        own = index[start : start + len(block)]
        order = np.argsort(own, kind="stable")
        first = np.flatnonzero(np.diff(own[order], prepend=-1))
        sums[own[order][first]] += np.add.reduceat(unit[order], first, axis=0, dtype=np.float64)
        start += len(block)
    means = sums / np.bincount(index)[:, np.newaxis]
    return np.asarray(losses.normalize(means.astype(np.float32))), classes


@jax.jit
def _nearest(query, query_classes, block, block_classes):
    """Similarity of each query to the nearest entry of its class and of another: [B], [B]."""
    scores = losses.cosine_similarities(query, block)
    own = query_classes[:, jnp.newaxis] == block_classes[jnp.newaxis, :]
    other = ~own & (block_classes >= 0)[jnp.newaxis, :]
    return (
        jnp.max(scores, axis=1, where=own, initial=-jnp.inf),
        jnp.max(scores, axis=1, where=other, initial=-jnp.inf),
    )


def _nearest_hits(gallery: Gallery, query, query_labels) -> np.ndarray:
    """`retrieval.nearest_hits`."""
    gallery_classes, query_classes = _classes(gallery.labels, query_labels)
    best = np.full((2, len(query)), -np.inf, np.float32)
    for where, chunk, classes, block in _products(gallery, gallery_classes, query, query_classes):
        found = _nearest(chunk, classes, *block)
        best[:, where] = np.maximum(best[:, where], np.stack(found)[:, : where.stop - where.start])
    return best[0] > best[1]


_similarities = jax.jit(losses.cosine_similarities)


def _average_precisions(gallery: Gallery, query, query_labels) -> np.ndarray:
    """`retrieval.average_precisions`: the own entries of each query first, then all others."""
    gallery_classes, query_classes = _classes(gallery.labels, query_labels)
    own = [[] for _ in range(len(query))]
    for where, chunk, _, (block, block_classes) in _products(
        gallery, gallery_classes, query, query_classes
    ):
        scores = np.asarray(_similarities(chunk, block))
        for n in range(where.start, where.stop):
            own[n].append(scores[n - where.start, block_classes == query_classes[n]])
    own = [np.sort(np.concatenate(parts)) for parts in own]
    nearer = [np.zeros(len(entries), np.int64) for entries in own]
    for where, chunk, _, (block, block_classes) in _products(
        gallery, gallery_classes, query, query_classes
    ):
        scores = np.sort(np.asarray(_similarities(chunk, block))[:, block_classes >= 0], axis=1)
        for n in range(where.start, where.stop):
            behind = np.searchsorted(scores[n - where.start], own[n])
            nearer[n] += scores.shape[1] - behind
    return np.array(
        [
            np.mean((len(o) - np.searchsorted(o, o)) / a) if len(o) else 0.0
            for o, a in zip(own, nearer, strict=True)
        ]
    )


_BLOCKWISE = {
    retrieval.nearest_hits: _nearest_hits,
    retrieval.average_precisions: _average_precisions,
}


def _classes(gallery_labels, query_labels) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int32 from 0."""
    _, classes = np.unique(np.concatenate([gallery_labels, query_labels]), return_inverse=True)
    classes = classes.astype(np.int32)
    return classes[: len(gallery_labels)], classes[len(gallery_labels) :]


def _products(gallery, gallery_classes, query, query_classes):
    """Every block of the gallery with every chunk of the queries, each padded to one shape.

    Yields:
      Positions of the queries, their features and classes, and features and classes of the block;
      padding has the class -1.
    """
    size = max(1, _SCORES_AT_ONCE // ROWS_AT_ONCE)
    start = 0
    for block in gallery.blocks():
        classes = gallery_classes[start : start + len(block)]
        start += len(block)
        padding = ROWS_AT_ONCE - len(block)
        block = np.pad(block, [(0, padding), (0, 0)])
        classes = np.pad(classes, (0, padding), constant_values=-1)
        for first in range(0, len(query), size):
            where = slice(first, min(first + size, len(query)))
            rest = size - (where.stop - first)
            chunk = np.pad(query[where], [(0, rest), (0, 0)])
            own = np.pad(query_classes[where], (0, rest), constant_values=-2)
            yield where, chunk, own, (block, classes)
