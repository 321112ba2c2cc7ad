"""The interface of an engine that searches vectors.

SQLite is the truth; a store is fed from it and can always be filled again. It may be memory of this
process, or a server with a collection for each generation.
"""

from typing import Protocol

import numpy as np

from iamcl2r_jax.system.errors import InputError

MEMORY = "memory"
MILVUS = "milvus:"
EXACT = "Flat"


class StoreError(RuntimeError):
    """The engine does not answer or refuses; the message is one line."""


class VectorStore(Protocol):
    """Vectors by generation and item; every call may come from several threads.

    Items are numbers that are given once and never again. Vectors have unit length; scores are
    inner products.

    Attributes:
      persistent: whether it keeps its vectors when this process ends. Such a store is fed by one
        process at a time, from where the last one stopped; another starts empty.
    """

    persistent: bool

    def create(self, generation: int, width: int) -> bool:
        """Makes room for a generation, and returns whether it was not there already."""

    def drop(self, generation: int) -> None:
        """Removes a generation with its vectors; nothing if it is not there."""

    def write(self, generation: int, items: np.ndarray, vectors: np.ndarray) -> None:
        """Adds vectors, float32 [N, D], of items, int64 [N]; those of known items are replaced.

        A persistent store has made them durable when this returns.
        """

    def delete(self, generation: int, items: np.ndarray) -> None:
        """Removes the vectors of items, int64 [N]; unknown ones are passed over."""

    def search(
        self, generation: int, queries: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest items to each query.

        Args:
          generation: searched in.
          queries: float32 [Q, D] of unit length.
          k: how many.
          keep: bool [largest item + 1 or more], which items may be found; None for all.

        Returns:
          (items int64 [Q, k], scores float32 [Q, k]), best first, of equal scores the smaller item
          first; where there are fewer, item -1 and score -inf.

        Raises:
          KeyError: if there is no such generation.
        """

    def read(self, generation: int) -> tuple[np.ndarray, np.ndarray]:
        """What it holds of a generation, for `verify`: items int64 [N], sorted, and vectors."""

    def close(self) -> None:
        """Gives up connections and memory."""


def open_store(engine: str, index: str) -> VectorStore:
    """The engine that a gallery names.

    Args:
      engine: "memory", or "milvus:http://HOST:PORT/NAME".
      index: "Flat" for exact search, or what the engine is to build: for "memory" a string of
        FAISS's `index_factory`, for Milvus "HNSW32" and the like.

    Raises:
      InputError: if there is no such engine, or its package is missing.
      StoreError: if it does not answer.
    """
    if engine == MEMORY and index == EXACT:
        from iamcl2r_jax.gallery.exact import ExactStore

        return ExactStore()
    if engine == MEMORY:
        from iamcl2r_jax.gallery.approximate import FaissStore

        return FaissStore(index)
    if engine.startswith(MILVUS):
        from iamcl2r_jax.gallery.milvus import MilvusStore

        return MilvusStore(engine.removeprefix(MILVUS), index)
    raise InputError(f"engine={engine}: must be {MEMORY!r} or '{MILVUS}http://HOST:PORT/NAME'")


def best(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of candidates [Q, N], padded to [Q, k], in the order of `VectorStore.search`.

    Where there is none the item is -1 and the score -inf.
    """
    if items.shape[1] < k:
        padding = [(0, 0), (0, k - items.shape[1])]
        items = np.pad(items, padding, constant_values=-1)
        scores = np.pad(scores, padding, constant_values=-np.inf)
    order = best_of(items, scores, k)
    return np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)


def kept(keep: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether `keep` has each item; -1 it has not, nor those beyond it, which are newer."""
    inside = (items >= 0) & (items < len(keep))
    return inside & keep[np.where(inside, items, 0)]


def best_of(items: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Columns [Q, k] of the k best of candidates [Q, N]; equal scores in the order of items."""
    return np.lexsort((items, -scores), axis=1)[:, :k]
