"""Milvus as the engine of a gallery, against a real server; the slow ones start it."""

import itertools
import socket
import threading
import time

import numpy as np
import pytest
from gallery_world import WIDTH, embedders, entries, info, new_gallery, pass_gate, units
from milvus_server import Server

from iamcl2r_jax.gallery import Gallery, backfill, upkeep
from iamcl2r_jax.gallery.exact import ExactStore
from iamcl2r_jax.gallery.milvus import MilvusStore
from iamcl2r_jax.gallery.store import StoreError, open_store
from iamcl2r_jax.programs import gallery as program
from iamcl2r_jax.system.errors import InputError


@pytest.mark.parametrize(
    ("engine", "index", "says"),
    [
        ("milvus:", "Flat", "HOST:PORT/NAME"),
        ("milvus:http://127.0.0.1:1", "Flat", "HOST:PORT/NAME"),
        ("milvus:http://127.0.0.1:1/a/b", "Flat", "HOST:PORT/NAME"),
        ("milvus:http://127.0.0.1:1/a", "IVF16,Flat", "'HNSW4' to 'HNSW64'"),
        ("milvus:http://127.0.0.1:1/a", "HNSW99", "'HNSW4' to 'HNSW64'"),
        ("qdrant", "Flat", "milvus:http"),
    ],
)
def test_bad_engines_are_one_line(engine, index, says):
    with pytest.raises(InputError, match=says):
        open_store(engine, index)


def test_a_server_that_is_not_there_is_one_line():
    pytest.importorskip("pymilvus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match=f"127.0.0.1:{port} cannot") as down:
        open_store(f"milvus:http://127.0.0.1:{port}/gallery", "Flat")
    assert "\n" not in str(down.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.kill()


def same(found, expected):
    """Equal items; scores to float32's rounding, as the server adds in another order."""
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.slow
def test_it_finds_what_an_exact_search_finds(server, monkeypatch):
    monkeypatch.setattr("iamcl2r_jax.gallery.milvus._LISTED", 5)  # so that masks are not listed
    rng, queries = np.random.default_rng(0), units(4, 99)
    theirs, ours = MilvusStore(f"{server.address}/exact", "Flat"), ExactStore()
    for store in (theirs, ours):
        store.create(1, WIDTH)
    for step in range(5):
        items = np.sort(rng.choice(3000, 400, replace=False)) + 1
        vectors = units(400, step)
        gone = rng.choice(3000, 50, replace=False) + 1
        for store in (theirs, ours):
            store.write(1, items, vectors)
            store.delete(1, gone)
        same(theirs.search(1, queries, 10), ours.search(1, queries, 10))
        for share in (0.0, 0.001, 0.02, 0.5, 0.999):
            keep = rng.random(3001) < share
            same(theirs.search(1, queries, 10, keep), ours.search(1, queries, 10, keep))
    for found, expected in zip(theirs.read(1), ours.read(1), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(KeyError):
        theirs.search(2, queries, 1)
    theirs.drop(1)
    with pytest.raises(KeyError):
        theirs.search(1, queries, 1)
    theirs.close()


@pytest.mark.slow
def test_an_index_finds_nearly_all(server):
    store = MilvusStore(f"{server.address}/hnsw", "HNSW16")
    vectors = units(2000, 0)
    store.create(1, WIDTH)
    store.write(1, np.arange(1, 2001), vectors)
    found, _ = store.search(1, vectors[:50], 1)
    assert np.mean(found[:, 0] == np.arange(1, 51)) > 0.95
    store.drop(1)
    store.close()


def answers(directory, **options):
    with Gallery(directory, **options) as gallery:
        model = gallery.route("x").name
        return gallery.search_arrays(units(5, 99), model=model, k=20)


@pytest.mark.slow
def test_an_upgrade_on_the_server(server, tmp_path):
    directory = str(tmp_path / "g")
    engine = f"milvus:{server.address}/upgrade"
    with new_gallery(directory, 60, engine=engine) as gallery:
        with pytest.raises(InputError, match="another gallery"):
            Gallery.create(str(tmp_path / "h"), info("a"), engine=engine)
        pass_gate(gallery)
        gallery.canary(1)
        gallery.add(entries(20, 50), {"a": units(30, 5), "b": units(30, 6)})
        gallery.promote()
        backfill.run(gallery, embedders())
        for step in (lambda: None, gallery.rollback):
            step()
            same(answers(directory), answers(directory, store=ExactStore()))
            assert upkeep.verify_store(gallery) == []
        upkeep.backup(gallery, str(tmp_path / "copy"))
        assert gallery.retire() > 0
        same(answers(directory), answers(directory, store=ExactStore()))
        # A server that lost what it had says so, and is given everything again.
        gallery.store.delete(1, np.arange(1, 11))
        assert len(upkeep.verify_store(gallery)) == 10
        gallery.store.drop(1)
        with pytest.raises(StoreError, match="lost the vectors of generation 1"):
            answers(directory)
        assert program.main(["refill", directory]) == 0
        assert upkeep.verify_store(gallery) == []
        gallery.store.drop(1)


def eventually(search):
    """What a search finds once the server has loaded its collections again."""
    end = time.monotonic() + 120
    while True:
        try:
            return search()
        except StoreError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.mark.slow
def test_killed_servers_lose_nothing(server, tmp_path):
    directory, added = str(tmp_path / "g"), 0
    engine = f"milvus:{server.address}/kills"
    new_gallery(directory, engine=engine).close()
    rng = np.random.default_rng(0)
    for _ in range(10):
        with Gallery(directory) as gallery:
            timer = threading.Timer(rng.uniform(0.05, 1.0), server.kill)
            timer.start()
            with pytest.raises(StoreError) as down:  # noqa: PT012
                for start in itertools.count(added, 100):
                    gallery.add(entries(start, start + 100), {"a": units(100, start)})
                    added = start + 100  # SQLite is the truth
                    gallery.search(units(1, 99), model="a")
            assert "\n" not in str(down.value)
            timer.join()
            server.start()
            found = eventually(lambda: gallery.search_arrays(units(5, 99), model="a", k=20))
        same(found, answers(directory, store=ExactStore()))
    with Gallery(directory) as gallery:
        assert upkeep.verify_store(gallery) == []
        assert gallery.status()["items"] == added
        gallery.store.drop(1)
