"""Exact search in memory: matrix products, which BLAS computes faster than FAISS's flat index."""

import dataclasses
import threading

import numpy as np

from iamcl2r_jax.gallery.store import VectorStore, best, kept

_ROWS = 16384  # of a chunk: the scores of one are still in the cache when its best are taken
_SLACK = 16  # candidates beyond k, since the product's rounding depends on where a row lies
_QUERIES = 256  # at once, so that scores take 16 MiB


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """Rows that no write changes any more; a search works on one of these.

    Attributes:
      chunks: of (vectors float32 [_ROWS, D], items int64 [_ROWS]); all but the last are full.
      count: rows in use.
      dead: bool [count or more], rows that were removed or replaced; None if none was.
    """

    chunks: tuple[tuple[np.ndarray, np.ndarray], ...]
    count: int
    dead: np.ndarray | None


class _Generation:
    """The rows of one generation. Rows are appended and marked as dead, never overwritten."""

    def __init__(self, width: int):
        self.width = width
        self.snapshot = _Snapshot((), 0, None)
        self._row_of: dict[int, int] = {}
        self._num_dead = 0

    def write(self, items: np.ndarray, vectors: np.ndarray) -> None:
        """Appends rows; called by one thread at a time, as `delete` is."""
        snapshot = self.snapshot
        replaced = [self._row_of[i] for i in items.tolist() if i in self._row_of]
        chunks, row, done = list(snapshot.chunks), snapshot.count, 0
        while done < len(items):
            where = row % _ROWS
            if where == 0:
                chunks.append((np.empty((_ROWS, self.width), np.float32), np.empty(_ROWS, "i8")))
            part = slice(done, done + min(_ROWS - where, len(items) - done))
            end = where + part.stop - part.start
            chunks[-1][0][where:end] = vectors[part]
            chunks[-1][1][where:end] = items[part]
            row, done = row + end - where, part.stop
        dead = self._marked(snapshot.dead, replaced, row)
        self._row_of.update(zip(items.tolist(), range(snapshot.count, row), strict=True))
        self.snapshot = _Snapshot(tuple(chunks), row, dead)

    def delete(self, items: np.ndarray) -> None:
        """Marks the rows of items as dead."""
        rows = [self._row_of.pop(i) for i in items.tolist() if i in self._row_of]
        snapshot = self.snapshot
        dead = self._marked(snapshot.dead, rows, snapshot.count)
        self.snapshot = _Snapshot(snapshot.chunks, snapshot.count, dead)
        if self._num_dead > max(_ROWS, len(self._row_of)):
            self._compact()

    @property
    def count(self) -> int:
        """Rows that are not dead."""
        return len(self._row_of)

    def _marked(self, dead, rows, count):
        if not rows and dead is None:
            return None
        marked = np.zeros(-(-count // _ROWS) * _ROWS, bool)
        if dead is not None:
            marked[: len(dead)] = dead
        marked[rows] = True
        self._num_dead += len(rows)
        return marked

    def _compact(self) -> None:
        fresh = _Generation(self.width)
        fresh.write(*self.read())
        self._row_of, self._num_dead, self.snapshot = fresh._row_of, 0, fresh.snapshot

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """See `VectorStore.read`."""
        snapshot = self.snapshot
        items = np.array(sorted(self._row_of), np.int64)
        vectors = np.empty((len(items), self.width), np.float32)
        for n, item in enumerate(items.tolist()):
            chunk, where = divmod(self._row_of[item], _ROWS)
            vectors[n] = snapshot.chunks[chunk][0][where]
        return items, vectors


class ExactStore(VectorStore):
    """A `VectorStore` in memory whose recall is 1.

    Scores do not depend on the order of writing, nor on how many queries are asked at once: the
    candidates of the float32 product are scored again in float64.
    """

    persistent = False

    def __init__(self):
        self._generations: dict[int, _Generation] = {}
        self._lock = threading.Lock()  # of writes; searches take a snapshot

    def create(self, generation: int, width: int) -> bool:
        with self._lock:
            if generation in self._generations:
                return False
            self._generations[generation] = _Generation(width)
            return True

    def drop(self, generation: int) -> None:
        with self._lock:
            self._generations.pop(generation, None)

    def write(self, generation: int, items: np.ndarray, vectors: np.ndarray) -> None:
        with self._lock:
            self._generations[generation].write(items, vectors)

    def delete(self, generation: int, items: np.ndarray) -> None:
        with self._lock:
            self._generations[generation].delete(items)

    def search(
        self, generation: int, queries: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        snapshot = self._generations[generation].snapshot
        parts = [
            _search(snapshot, queries[start : start + _QUERIES], k, keep)
            for start in range(0, len(queries), _QUERIES)
        ]
        if not parts:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def count(self, generation: int) -> int:
        """How many vectors it holds of a generation."""
        return self._generations[generation].count

    def read(self, generation: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            return self._generations[generation].read()

    def close(self) -> None:
        self._generations = {}


def _search(snapshot, queries, k, keep):
    some, rows, scores = k + _SLACK, [], []
    for number, (vectors, ids) in enumerate(snapshot.chunks):
        start = number * _ROWS
        count = min(_ROWS, snapshot.count - start)
        found = queries @ vectors[:count].T
        hidden = None if snapshot.dead is None else snapshot.dead[start : start + count]
        if keep is not None:
            others = ~kept(keep, ids[:count])
            hidden = others if hidden is None else hidden | others
        if hidden is not None:
            found[:, hidden] = -np.inf
        first = max(0, count - some)
        near = np.argpartition(found, first, axis=1)[:, first:]
        rows.append(near + start)
        scores.append(np.take_along_axis(found, near, 1))
    if not rows:
        return best(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), "f4"), k)
    rows, scores = np.concatenate(rows, 1), np.concatenate(scores, 1)
    if rows.shape[1] > some:
        near = np.argpartition(scores, -some, axis=1)[:, -some:]
        rows, scores = (np.take_along_axis(of, near, 1) for of in (rows, scores))
    items, exact = np.full(rows.shape, -1, np.int64), np.full(rows.shape, -np.inf, np.float32)
    chunk, where = np.divmod(rows, _ROWS)
    for number in np.unique(chunk):
        vectors, ids = snapshot.chunks[number]
        query, of = np.nonzero((chunk == number) & ~np.isneginf(scores))
        near = where[query, of]
        items[query, of] = ids[near]
        # Each sum is a row's own, in the same order wherever that row lies.
        products = queries[query].astype(np.float64) * vectors[near]
        exact[query, of] = products.sum(axis=1)
    return best(items, exact, k)
