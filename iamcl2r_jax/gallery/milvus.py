"""Milvus as the engine: a server that holds vectors for many processes, a collection a generation.

SQLite stays the truth. A server that was killed has what it had acknowledged; one that has lost its
disk is filled again, see `upkeep.refill`.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from iamcl2r_jax.gallery.store import EXACT, StoreError, VectorStore, best, kept
from iamcl2r_jax.system.errors import InputError

_TIMEOUT = 60.0  # seconds; loading a collection after a restart takes some
_ROWS = 1024  # written at a time: a message has at most 64 MiB
_READ = 4096  # item numbers read at a time
_EMPTY = 1000  # ranges of item numbers without any, after which there are no more
_MOST = 16384  # hits that Milvus gives at most
_LISTED = 20_000  # items that a filter may list
_EF_CONSTRUCTION, _EF_SEARCH = 200, 96
_ADDRESS = re.compile(r"(https?://[^/\s]+)/([A-Za-z][A-Za-z0-9_]{0,99})")


class MilvusStore(VectorStore):
    """A `VectorStore` on a Milvus server; see there for its methods.

    A first search after a change waits until the server has seen it, later ones do not: waiting
    takes as long as the server's clock ticks, a fifth of a second.
    """

    persistent = True

    def __init__(self, address: str, index: str):
        """Connects.

        Args:
          address: http://HOST:PORT/NAME; the names of the collections begin with NAME.
          index: "Flat", or "HNSW" with the number of links, e.g. "HNSW32".

        Raises:
          InputError: pymilvus is not installed, or address or index are not of this form.
          StoreError: the server does not answer.
        """
        parts, hnsw = _ADDRESS.fullmatch(address), re.fullmatch(r"HNSW([0-9]{1,2})", index)
        if parts is None:
            raise InputError(
                f"engine=milvus:{address}: must be milvus:http://HOST:PORT/NAME, where NAME is of "
                "letters, digits and _, and of this gallery alone"
            )
        if index != EXACT and not (hnsw and 4 <= int(hnsw[1]) <= 64):
            raise InputError(f"index={index!r}: must be 'Flat' or 'HNSW4' to 'HNSW64' in Milvus")
        try:
            import pymilvus
        except ImportError:
            raise InputError(
                "engine=milvus needs pymilvus: pip install 'iamcl2r_jax[milvus]'"
            ) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are one line of ours
        self._pymilvus = pymilvus
        self._uri, self._name = parts.groups()
        self._links = None if hnsw is None else int(hnsw[1])
        self._loaded: set[int] = set()  # generations
        self._unseen: set[int] = set()  # generations that changed since the last search
        self._lock = threading.Lock()
        with self._answering():
            self._client = pymilvus.MilvusClient(uri=self._uri, timeout=_TIMEOUT)

    def create(self, generation: int, width: int) -> bool:
        with self._answering():
            self._changed(generation)
            if self._client.has_collection(self._collection(generation)):
                if generation not in self._loaded:  # somebody may have released it
                    self._client.load_collection(self._collection(generation))
                    self._loaded.add(generation)
                return False
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            kind = self._pymilvus.DataType
            schema.add_field("id", kind.INT64, is_primary=True)
            schema.add_field("vector", kind.FLOAT_VECTOR, dim=width)
            index = self._client.prepare_index_params()
            options: dict[str, Any] = {"index_type": "FLAT"}
            if self._links is not None:
                built = {"M": self._links, "efConstruction": _EF_CONSTRUCTION}
                options = {"index_type": "HNSW", "params": built}
            index.add_index("vector", metric_type="IP", **options)
            self._client.create_collection(
                self._collection(generation), schema=schema, index_params=index
            )
            self._loaded.add(generation)
            return True

    def drop(self, generation: int) -> None:
        with self._answering():
            if self._client.has_collection(self._collection(generation)):
                self._client.drop_collection(self._collection(generation))
            self._loaded.discard(generation)

    def write(self, generation: int, items: np.ndarray, vectors: np.ndarray) -> None:
        for start in range(0, len(items), _ROWS):
            part = slice(start, start + _ROWS)
            rows = [
                {"id": item, "vector": vector}
                for item, vector in zip(items[part].tolist(), vectors[part], strict=True)
            ]
            with self._answering(generation):
                self._client.upsert(self._collection(generation), rows)
        self._changed(generation)

    def delete(self, generation: int, items: np.ndarray) -> None:
        for start in range(0, len(items), _ROWS):
            some = items[start : start + _ROWS].tolist()
            with self._answering(generation):
                self._client.delete(self._collection(generation), filter=f"id in {some}")
        self._changed(generation)

    def search(
        self, generation: int, queries: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `VectorStore`; at most 16,384 hits."""
        if k > _MOST:
            raise InputError(f"k={k}: Milvus gives at most {_MOST} hits")
        with self._lock:
            level = "Strong" if generation in self._unseen else "Eventually"
        with self._answering(generation):
            found = self._kept(generation, queries, k, keep, level)
        with self._lock:
            if level == "Strong":
                self._unseen.discard(generation)
        return found

    def read(self, generation: int) -> tuple[np.ndarray, np.ndarray]:
        collection, rows, start = self._collection(generation), [], 0
        with self._answering(generation):
            counted = self._client.query(
                collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
            total = counted[0]["count(*)"]
            empty = 0
            while len(rows) < total and empty < _EMPTY:
                some = self._client.query(
                    collection,
                    filter=f"id >= {start} and id < {start + _READ}",
                    output_fields=["id", "vector"],
                    consistency_level="Strong",
                )
                rows += some
                start, empty = start + _READ, 0 if some else empty + 1
        rows.sort(key=lambda row: row["id"])
        items = np.array([row["id"] for row in rows], np.int64)
        return items, np.array([row["vector"] for row in rows], np.float32)

    def wait(self) -> None:
        """Waits until the server has built the indexes of what it holds; searches need not wait."""
        with self._answering():
            for generation in sorted(self._loaded):
                self._client.flush(self._collection(generation))
                while self._client.describe_index(self._collection(generation), "vector")[
                    "pending_index_rows"
                ]:
                    time.sleep(0.1)

    def close(self) -> None:
        """See `VectorStore`; the vectors stay on the server."""
        self._client.close()

    def _kept(self, generation, queries, k, keep, level) -> tuple[np.ndarray, np.ndarray]:
        """Searches, and looks among more hits until enough of them are to be kept."""
        if keep is None:
            return best(*self._found(generation, queries, k, "", level), k)
        shown = np.flatnonzero(keep)
        if len(shown) <= _LISTED:
            listed = f"id in {shown.tolist()}"
            return best(*self._found(generation, queries, k, listed, level), k)
        more = k
        while True:
            more = min(4 * more, _MOST)
            items, scores = self._found(generation, queries, more, "", level)
            good = kept(keep, items)
            ended = (items[:, -1] < 0).all()
            if ended or (good.sum(axis=1) >= k).all():
                break
            if more == _MOST:
                dropped = f"id not in {np.flatnonzero(~keep).tolist()}"
                listed = dropped if 2 * len(shown) > len(keep) else f"id in {shown.tolist()}"
                return best(*self._found(generation, queries, k, listed, level), k)
        return best(np.where(good, items, -1), np.where(good, scores, -np.inf), k)

    def _found(self, generation, queries, k, chosen, level) -> tuple[np.ndarray, np.ndarray]:
        items = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        params = {} if self._links is None else {"ef": max(k, _EF_SEARCH)}
        answers = self._client.search(
            self._collection(generation),
            data=list(queries),
            anns_field="vector",
            limit=k,
            filter=chosen,
            consistency_level=level,
            search_params={"metric_type": "IP", "params": params},
        )
        for query, hits in enumerate(answers):
            for rank, hit in enumerate(hits):
                items[query, rank], scores[query, rank] = hit["id"], hit["distance"]
        return items, scores

    def _collection(self, generation: int) -> str:
        return f"{self._name}_{int(generation)}"

    def _changed(self, generation: int) -> None:
        with self._lock:
            self._unseen.add(generation)

    @contextmanager
    def _answering(self, generation: int | None = None) -> Iterator[None]:
        """Turns the client's errors into ours: KeyError if the generation is not there."""
        try:
            yield
        except self._pymilvus.exceptions.MilvusException as error:
            if generation is not None and error.code == 100:  # collection not found
                raise KeyError(generation) from error
            why = " ".join(str(error.message).split())[:200]
            raise StoreError(
                f"the Milvus server at {self._uri} cannot do it now ({why})"
            ) from error
        except Exception as error:  # of gRPC, which says at length that nobody is there
            if not type(error).__module__.startswith("grpc"):
                raise
            raise StoreError(f"the Milvus server at {self._uri} does not answer") from error
