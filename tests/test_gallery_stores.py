"""The engines in memory against a dictionary of vectors, under any order of writes."""

import numpy as np
import pytest
from gallery_world import entries, new_gallery, promoted
from gallery_world import units as of_gallery

from iamcl2r_jax.gallery import Gallery, contents, state, upkeep
from iamcl2r_jax.gallery.approximate import FaissStore
from iamcl2r_jax.gallery.exact import ExactStore
from iamcl2r_jax.gallery.store import StoreError, VectorStore, open_store
from iamcl2r_jax.system.errors import InputError

WIDTH = 6


def units(rng, count):
    vectors = rng.standard_normal((count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def naive(held, queries, k, keep):
    """Items by a float64 product over those that may be found."""
    shown = np.array([item for item in sorted(held) if keep is None or keep[item]], np.int64)
    found = np.full((len(queries), k), -1)
    if len(shown):
        scores = queries.astype(np.float64) @ np.stack([held[i] for i in shown]).T.astype("f8")
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found[:, : best.shape[1]] = shown[best]
    return found


STORES = [pytest.param(ExactStore, id="exact")] + [
    pytest.param(lambda index=index: FaissStore(index, smallest=50), id=index)
    for index in ("Flat", "IVF4,Flat", "HNSW16,Flat")
]


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_writes_and_deletions(make, seed):
    """Replaced, removed and hidden items are never found; the others are."""
    if make is not ExactStore:
        pytest.importorskip("faiss")
    store: VectorStore = make()
    rng, held = np.random.default_rng(seed), {}
    store.create(3, WIDTH)
    store.create(3, WIDTH)  # a second time changes nothing
    for _ in range(40):
        items = np.unique(rng.integers(1, 150, rng.integers(1, 25)))
        if rng.random() < 0.7:
            vectors = units(rng, len(items))
            store.write(3, items, vectors)
            held |= dict(zip(items.tolist(), vectors, strict=True))
        else:
            store.delete(3, items)
            for item in items.tolist():
                held.pop(item, None)
        keep = None if rng.random() < 0.5 else rng.random(150) < rng.random()
        queries = units(rng, 3)
        if make is not ExactStore and rng.random() < 0.5:
            store.wait()
        found, scores = store.search(3, queries, 5, keep)
        wanted = naive(held, queries, 5, keep)
        if make is ExactStore:
            np.testing.assert_array_equal(found, wanted)
        for query, items, values in zip(queries, found, scores, strict=True):
            there = items[items >= 0].tolist()
            assert len(set(there)) == len(there) == (wanted[0] >= 0).sum()
            assert all(item in held and (keep is None or keep[item]) for item in there)
            np.testing.assert_allclose(
                values[: len(there)], [held[i] @ query for i in there], atol=1e-6
            )
            assert np.isneginf(values[len(there) :]).all()
        items, vectors = store.read(3)
        assert items.tolist() == sorted(held)
        assert all(
            (held[item] == vector).all() for item, vector in zip(items, vectors, strict=True)
        )
    store.drop(3)
    store.drop(3)
    with pytest.raises(KeyError):
        store.search(3, units(rng, 1), 1)
    store.close()


@pytest.mark.parametrize("make", STORES)
def test_most_of_the_nearest_are_found(make):
    if make is not ExactStore:
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    store, vectors, queries = make(), units(rng, 2000), units(rng, 50)
    store.create(1, WIDTH)
    store.write(1, np.arange(1, 2001), vectors)
    found, _ = store.search(1, queries, 10)
    if make is not ExactStore:
        store.wait()
        assert store._indexes[1].rows == 2000
        found, _ = store.search(1, queries, 10)
    wanted = naive(dict(enumerate(vectors, start=1)), queries, 10, None)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)])
    assert recall == 1 if make is ExactStore else recall > 0.95


def test_more_rows_than_a_chunk_and_most_of_them_removed():
    """Chunks are filled one after the other, and rows that are dead make room."""
    rng = np.random.default_rng(0)
    vectors, store = units(rng, 70_000), ExactStore()
    store.create(1, WIDTH)
    for start in range(0, 70_000, 9_999):
        part = np.arange(start, min(start + 9_999, 70_000))
        store.write(1, part + 1, vectors[part])
    queries = units(rng, 4)
    for gone in (range(0), range(1, 30_001), range(30_001, 60_001)):
        store.delete(1, np.array(gone, np.int64))
        held = {n: vectors[n - 1] for n in range(gone.stop or 1, 70_001)}
        np.testing.assert_array_equal(store.search(1, queries, 7)[0], naive(held, queries, 7, None))
    assert len(store.read(1)[0]) == 10_000


def test_equal_scores_come_in_the_order_of_items():
    vectors, store = np.eye(WIDTH, dtype=np.float32)[[0, 0, 1, 0]], ExactStore()
    store.create(1, WIDTH)
    store.write(1, np.array([9, 2, 5, 7]), vectors)
    found, scores = store.search(1, vectors[:1], 6)
    assert found.tolist() == [[2, 7, 9, 5, -1, -1]]
    assert scores.tolist() == [[1, 1, 1, 0, -np.inf, -np.inf]]


def test_a_search_keeps_what_it_began_with_while_rows_are_written():
    """A snapshot is never changed: rows are added behind it, and the marks of dead ones copied."""
    rng, store = np.random.default_rng(0), ExactStore()
    store.create(1, WIDTH)
    vectors = units(rng, 100)
    store.write(1, np.arange(100), vectors)
    before = store._generations[1].snapshot
    store.write(1, np.arange(50, 150), units(rng, 100))
    store.delete(1, np.arange(10))
    (chunk, items), *_ = before.chunks
    np.testing.assert_array_equal(chunk[: before.count], vectors)
    np.testing.assert_array_equal(items[: before.count], np.arange(100))
    assert before.dead is None


@pytest.mark.parametrize(
    ("engine", "index", "says"),
    [("mysql", "Flat", "engine=mysql"), ("memory", "none", "index='none': must be 'Flat' or")],
)
def test_unknown_engines_are_one_line(engine, index, says):
    pytest.importorskip("faiss")
    with pytest.raises(InputError, match=says):
        open_store(engine, index)


class Persistent(ExactStore):
    """Keeps its vectors when the gallery is closed, as a server does, and counts writes."""

    persistent = True

    def __init__(self):
        super().__init__()
        self.written = 0

    def write(self, generation, items, vectors):
        super().write(generation, items, vectors)
        self.written += len(items)

    def close(self):
        pass


@pytest.mark.parametrize("kept", [0, 1, 3, 100])
def test_an_engine_that_is_far_behind_catches_up(tmp_path, kept):
    """The changes that it has not seen were forgotten, all but the last."""
    with new_gallery(tmp_path / "g", 20) as gallery, Gallery(str(tmp_path / "g")) as behind:
        behind.feed()
        gallery.remove(["item0", "item1"])
        gallery.add(entries(5, 7), {"a": of_gallery(2, 6)})
        gallery.add(entries(20, 23), {"a": of_gallery(3, 5)})
        with gallery.database.writing() as connection:
            contents.prune_changes(connection, kept)
        assert upkeep.verify_store(behind) == []
        assert behind.search(of_gallery(2, 6), model="a")[1][0].item.key == "item6"
        assert upkeep.verify(gallery) == []


def test_an_engine_that_has_lost_its_vectors_says_so_until_it_is_refilled(tmp_path):
    """Also when it is found missing while the gallery is open."""
    store = Persistent()

    def opened():
        return Gallery(str(tmp_path / "g"), store=store)

    engine = "milvus:http://127.0.0.1:1/g"
    with new_gallery(tmp_path / "g", 20) as gallery, gallery.database.writing() as connection:
        state.put_setting(connection, state.ENGINE, engine)
    with opened() as gallery:
        before = gallery.search(of_gallery(1, 1), model="a", k=30)
        promoted(gallery)
        gallery.add(entries(20, 23), {m: of_gallery(3, 5) for m in "ab"})
        store._generations.clear()
        with pytest.raises(StoreError, match=r"generation 1; run .* refill"):
            gallery.search(of_gallery(1, 1), model="a")
        for _ in range(2):
            with opened() as other, pytest.raises(StoreError, match=r"generation 1; run .* refill"):
                other.search(of_gallery(1, 1), model="a")
        upkeep.refill(gallery)
        assert upkeep.verify_store(gallery) == []
        gallery.remove(["item20", "item21", "item22"])
        assert gallery.search(of_gallery(1, 1), model="a", k=30) == before
        store._generations.clear()  # nothing was written since
        with pytest.raises(StoreError, match=r"generation 1; run .* refill"):
            gallery.search(of_gallery(1, 1), model="a")
    with opened() as gallery:
        upkeep.refill(gallery)
        assert gallery.search(of_gallery(1, 1), model="a", k=30) == before


def test_a_persistent_engine_is_fed_only_what_changed(tmp_path):
    store = Persistent()
    new_gallery(tmp_path / "g", 20).close()

    def opened():
        return Gallery(str(tmp_path / "g"), store=store)

    with opened() as gallery:
        gallery.search(of_gallery(1, 1), model="a")
        assert store.written == 20
    with opened() as gallery:
        gallery.add(entries(20, 23), {"a": of_gallery(3, 5)})
        gallery.remove(["item0"])
    assert store.written == 20  # a process that does not search feeds nothing
    with opened() as gallery, opened() as other:
        gallery.search(of_gallery(1, 1), model="a")
        other.search(of_gallery(1, 1), model="a")
        assert store.written == 23
        assert upkeep.verify_store(gallery) == []
        promoted(gallery)
        gallery.add(entries(5, 7), {m: of_gallery(2, 6) for m in "ab"})
        other.search(of_gallery(1, 1), model="b")
        assert upkeep.verify_store(gallery) == []
        gallery.retire()
        other.search(of_gallery(1, 1), model="b")
        assert list(store._generations) == [1]
