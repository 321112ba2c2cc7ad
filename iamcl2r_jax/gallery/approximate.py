"""Approximate search in memory: any index that FAISS's `index_factory` can name."""

import threading

import numpy as np

from iamcl2r_jax.gallery.exact import ExactStore
from iamcl2r_jax.gallery.store import VectorStore, best, kept
from iamcl2r_jax.system.errors import InputError

_TRAINED_FROM = 10_000  # vectors; a smaller generation is searched exactly
# Of HNSW. On 100,000 vectors of width 1023 around simplex vertices recall@10 is .9995; with FAISS's
# own 40 for building it is .967, and .979 even where a search looks at five times as many.
_EF_CONSTRUCTION, _EF_SEARCH = 100, 96
_NPROBE = 32  # of IVF


class FaissStore(VectorStore):
    """A `VectorStore` in memory with one FAISS index for each generation.

    Vectors are kept once more for exact search: of what is hidden by `keep`, of generations that
    are small, and of those whose index is being built, which happens in a thread at the first
    search and again when half of an index's rows are dead.
    """

    persistent = False

    def __init__(self, index: str, *, smallest: int = _TRAINED_FROM):
        """Checks the index's name.

        Args:
          index: e.g. "HNSW32,Flat" or "IVF1024,Flat".
          smallest: vectors from which a generation gets an index.

        Raises:
          InputError: if FAISS is not installed or knows no such index.
        """
        try:
            import faiss
        except ImportError:
            raise InputError(
                f"index={index!r} needs FAISS: pip install 'iamcl2r_jax[faiss]'"
            ) from None
        self._faiss, self._index = faiss, index
        try:
            faiss.index_factory(8, index, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:
            raise InputError(
                f"index={index!r}: must be 'Flat' or a string of FAISS's index_factory, e.g. "
                "'HNSW32,Flat'"
            ) from None
        self._exact, self._smallest = ExactStore(), smallest
        self._indexes: dict[int, _Index] = {}
        self._building: dict[int, _Build] = {}
        self._lock = threading.Lock()  # FAISS may not search while it adds

    def create(self, generation: int, width: int) -> bool:
        return self._exact.create(generation, width)

    def drop(self, generation: int) -> None:
        with self._lock:
            self._indexes.pop(generation, None)
            self._building.pop(generation, None)
            self._exact.drop(generation)

    def write(self, generation: int, items: np.ndarray, vectors: np.ndarray) -> None:
        with self._lock:
            self._exact.write(generation, items, vectors)
            self._change(generation, items, vectors)

    def delete(self, generation: int, items: np.ndarray) -> None:
        with self._lock:
            self._exact.delete(generation, items)
            self._change(generation, items, None)

    def _change(self, generation: int, items: np.ndarray, vectors: np.ndarray | None) -> None:
        if (index := self._indexes.get(generation)) is not None:
            index.change(items, vectors)
        if (build := self._building.get(generation)) is not None:
            build.changes.append((items, vectors))

    def search(
        self, generation: int, queries: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            index = self._indexes.get(generation)
            if index is None or index.dead * 2 > index.rows:
                self._build(generation)
            if index is not None and len(queries):
                found = index.search(queries, k, keep)
                if found is not None:
                    return found
        return self._exact.search(generation, queries, k, keep)

    def read(self, generation: int) -> tuple[np.ndarray, np.ndarray]:
        return self._exact.read(generation)

    def close(self) -> None:
        with self._lock:
            self._indexes, self._building = {}, {}
            self._exact.close()

    def wait(self) -> None:
        """Waits for the indexes that are being built."""
        with self._lock:
            threads = [build.thread for build in self._building.values()]
        for thread in threads:
            thread.join()

    def _build(self, generation: int) -> None:
        """Begins to build an index, unless the generation is small or one is being built."""
        count = self._exact.count(generation)
        if count < self._smallest:
            self._indexes.pop(generation, None)
        elif generation not in self._building:
            items, vectors = self._exact.read(generation)
            build = self._building[generation] = _Build()
            arguments = (generation, build, items, vectors)
            build.thread = threading.Thread(target=self._built, args=arguments, daemon=True)
            build.thread.start()

    def _built(self, generation: int, build: "_Build", items, vectors) -> None:
        index = _Index(self._faiss, self._index, items, vectors)
        with self._lock:
            if self._building.get(generation) is not build:  # dropped meanwhile
                return
            for changed, written in build.changes:
                index.change(changed, written)
            self._indexes[generation] = index
            del self._building[generation]


class _Build:
    """An index that is being built, and what is written meanwhile."""

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.changes: list[tuple[np.ndarray, np.ndarray | None]] = []


class _Index:
    """A FAISS index whose rows are appended, with the item of each; -1 where it is dead."""

    def __init__(self, faiss, name: str, items: np.ndarray, vectors: np.ndarray):
        self._index = faiss.index_factory(vectors.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        inner = faiss.try_extract_index_ivf(self._index)
        if inner is not None:
            inner.nprobe = _NPROBE
        if isinstance(self._index, faiss.IndexHNSW):
            self._index.hnsw.efConstruction = _EF_CONSTRUCTION
            self._index.hnsw.efSearch = _EF_SEARCH
        self._index.train(vectors)
        self._items, self._row_of = np.empty(0, np.int64), {}
        self.dead = 0
        self.change(items, vectors)

    @property
    def rows(self) -> int:
        return len(self._items)

    def change(self, items: np.ndarray, vectors: np.ndarray | None) -> None:
        """Adds or replaces the vectors of items, or removes them if there are none."""
        gone = [self._row_of.pop(i) for i in items.tolist() if i in self._row_of]
        self._items[gone] = -1
        self.dead += len(gone)
        if vectors is not None:
            rows = range(self.rows, self.rows + len(items))
            self._row_of.update(zip(items.tolist(), rows, strict=True))
            self._index.add(np.ascontiguousarray(vectors))
            self._items = np.concatenate([self._items, items])

    def search(self, queries, k, keep):
        """As `VectorStore.search`, or None if too few of what it finds may be shown."""
        wanted = min(k, len(self._row_of))
        for some in (k + 8, 8 * k + 64):
            scores, rows = self._index.search(np.ascontiguousarray(queries), some)
            items = np.where(rows < 0, -1, self._items[rows])
            hidden = items < 0
            if keep is not None:
                hidden |= ~kept(keep, items)
            if ((~hidden).sum(axis=1) >= wanted).all():
                scores = np.where(hidden, -np.inf, scores).astype(np.float32)
                return best(np.where(hidden, -1, items), scores, k)
        return None
