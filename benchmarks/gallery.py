"""The embedded gallery against plain FAISS flat search of the same vectors.

    python benchmarks/gallery.py [--count=100000] [--width=1023] [--index=HNSW32,Flat]
        [--engine=milvus:http://127.0.0.1:19530/benchmark]

Vectors lie around the simplex's vertices. Measured are durable inserts, opening, exact search one
query at a time (recall against FAISS, and with queries while a thread adds items), and search by an
index of FAISS's in the gallery, or with `--engine` and `--index=HNSW32` by a Milvus server's that
runs at that address. `--large` also measures exact search of a million of width 319.

ratio: median time of one exact query, items included / the same by faiss.IndexFlatIP alone.
Goals: ratio at most 1.15, recall@10 1, p99 while 1,000 items a second are added at most 3 times
that of an idle gallery, 10,000 inserted rows a second, opened within 1 s; of the index recall@10
0.98 and a median of 10 ms.
"""

import tempfile
import threading
import time

import faiss
import harness
import numpy as np
import psutil

from iamcl2r_jax.gallery import Gallery, ModelInfo, NewItem
from iamcl2r_jax.gallery.store import EXACT, MEMORY

_K = 10
_BATCH = 1000  # rows of a transaction
_ADDED_AT_ONCE, _ADDED_PER_SECOND = 20, 1000


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=200)
    options.add_argument("--count", type=int, default=100_000, help="vectors")
    options.add_argument("--width", type=int, default=1023, help="of a vector")
    options.add_argument("--index", default="HNSW32,Flat", help="besides exact search")
    options.add_argument("--engine", default=MEMORY, help="of that index")
    options.add_argument("--large", action="store_true", help="also a million of width 319")
    args = options.parse_args(argv)
    if args.small:
        args.count, args.width, args.repeats, args.index = 12_000, 31, 20, "IVF16,Flat"
    faiss.omp_set_num_threads(1 if args.small else harness.cores())
    vectors, queries = around_vertices(args.count, args.width, args.repeats)
    with tempfile.TemporaryDirectory() as directory:
        figures = measured(directory, vectors, queries, args)
    if args.large:
        figures["large"] = large()
    rows = [(name, f"{value:.4g}") for name, value in figures.items() if isinstance(value, float)]
    return harness.finish("gallery", rows, figures, figures["exact p50 / FAISS flat"], args)


def around_vertices(count: int, width: int, num_queries: int, seed: int = 0):
    """Unit vectors near random vertices of the simplex, and queries near others' vectors."""
    rng = np.random.default_rng(seed)
    spread = 1.5 / np.sqrt(width)

    def near(labels):
        found = spread * rng.standard_normal((len(labels), width), dtype=np.float32)
        found[np.arange(len(labels)), labels] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return near(rng.integers(width, size=count)), near(rng.integers(width, size=num_queries))


def new_gallery(directory: str, width: int, index: str = EXACT, engine: str = MEMORY) -> Gallery:
    info = ModelInfo("0" * 64, width + 1, width, (0, width), {"size": 32}, "none")
    return Gallery.create(directory, info, name="model", index=index, engine=engine)


def fill(gallery: Gallery, vectors: np.ndarray) -> float:
    """Adds all vectors and returns rows a second, each batch on disk."""
    items = [NewItem(f"item{n}", label=f"{n % 100}") for n in range(len(vectors))]
    started = time.perf_counter()
    for start in range(0, len(vectors), _BATCH):
        part = slice(start, start + _BATCH)
        gallery.add(items[part], {"model": vectors[part]})
    return len(vectors) / (time.perf_counter() - started)


def measured(directory: str, vectors: np.ndarray, queries: np.ndarray, args) -> dict[str, float]:
    """The figures of one size."""
    place = f"{directory}/exact"
    with new_gallery(place, vectors.shape[1]) as gallery:
        figures = {"insert, rows a second": fill(gallery, vectors)}
    started = time.perf_counter()
    gallery = Gallery(place)
    gallery.feed()
    figures["open, s"] = time.perf_counter() - started
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    truth = flat.search(queries, _K)[1]
    figures["exact recall@10"] = recall(gallery, queries, truth)
    turn = iter(np.tile(np.arange(len(queries)), 4))
    seconds = harness.in_turn(
        {
            "gallery": lambda: ask(gallery, queries, next(turn)),
            "FAISS": lambda: flat.search(queries[[next(turn)]], _K),
        },
        len(queries),
    )
    p50 = {name: float(np.median(values)) for name, values in seconds.items()}
    figures |= {
        "exact p50, ms": 1e3 * p50["gallery"],
        "FAISS flat p50, ms": 1e3 * p50["FAISS"],
        "exact p50 / FAISS flat": p50["gallery"] / p50["FAISS"],
    }
    figures |= under_writes(gallery, queries, vectors)
    gallery.close()
    place = f"{directory}/indexed"
    figures |= indexed(place, vectors, queries, truth, args.index, args.engine)
    return figures


def ask(gallery: Gallery, queries: np.ndarray, number: int):
    return gallery.search(queries[[number]], model="model", k=_K)


def recall(gallery: Gallery, queries: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true nearest that are found; items are numbered from 1."""
    found = gallery.search_arrays(queries, model="model", k=_K)[0] - 1
    return float(np.mean([np.isin(of, row).mean() for of, row in zip(truth, found, strict=True)]))


def latencies(gallery: Gallery, queries: np.ndarray) -> np.ndarray:
    seconds = np.empty(len(queries))
    for number in range(len(queries)):
        started = time.perf_counter()
        ask(gallery, queries, number)
        seconds[number] = time.perf_counter() - started
    return seconds


def under_writes(gallery: Gallery, queries: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """p99 of a query while a thread adds items, against that of an idle gallery."""
    idle = np.percentile(latencies(gallery, queries), 99)
    ended, added, started = threading.Event(), 0, time.perf_counter()

    def add():
        nonlocal added
        while not ended.is_set():
            items = [NewItem(f"late{added + n}") for n in range(_ADDED_AT_ONCE)]
            rows = np.arange(added, added + _ADDED_AT_ONCE) % len(vectors)
            gallery.add(items, {"model": vectors[rows]})
            added += _ADDED_AT_ONCE
            wait = started + added / _ADDED_PER_SECOND - time.perf_counter()
            ended.wait(max(0.0, wait))

    writer = threading.Thread(target=add)
    writer.start()
    busy = np.percentile(latencies(gallery, queries), 99)
    ended.set()
    writer.join()
    return {
        "exact p99 idle, ms": 1e3 * float(idle),
        "exact p99 while adding, ms": 1e3 * float(busy),
        "p99 while adding / idle": float(busy / idle),
        "added meanwhile, items a second": added / (time.perf_counter() - started),
    }


def indexed(directory, vectors, queries, truth, index, engine) -> dict[str, float]:
    """Search by an index: the times to feed the engine and to build it, recall and median."""
    name = index if engine == MEMORY else f"Milvus {index}"
    with new_gallery(directory, vectors.shape[1], index, engine) as gallery:
        fill(gallery, vectors)
        started = time.perf_counter()
        gallery.feed()
        fed = time.perf_counter()
        ask(gallery, queries, 0)
        gallery.store.wait()
        built = time.perf_counter()
        figures = {
            f"{name}: fed, s": fed - started,
            f"{name}: built, s": built - fed,
            f"{name}: recall@10": recall(gallery, queries, truth),
            f"{name}: p50, ms": 1e3 * float(np.median(latencies(gallery, queries))),
        }
        gallery.store.drop(gallery.view().base)
        return figures


def large() -> dict[str, float]:
    """A million of width 319: exact search, and what the open gallery adds to this process."""
    vectors, queries = around_vertices(1_000_000, 319, 50)
    with tempfile.TemporaryDirectory() as directory:
        with new_gallery(directory, 319) as gallery:
            rows = fill(gallery, vectors)
        del vectors
        before = resident()
        started = time.perf_counter()
        with Gallery(directory) as gallery:
            gallery.feed()
            opened = time.perf_counter() - started
            p50 = float(np.median(latencies(gallery, queries)))
            memory = resident() - before
    figures = {
        "insert, rows a second": rows,
        "open, s": opened,
        "exact p50, ms": 1e3 * p50,
        "memory of the open gallery, GB": memory / 1e9,
    }
    for name, value in figures.items():
        print(f"1,000,000 x 319, {name}: {value:.4g}")
    return figures


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
