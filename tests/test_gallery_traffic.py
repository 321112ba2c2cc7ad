"""Promotions and rollbacks while queries and writes run: none fails, no refused pair answers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest
from gallery_world import embedders, entries, new_gallery, pass_gate, units

from iamcl2r_jax.gallery import Gallery, Refused, backfill

ITEMS = 40
VECTORS = {"a": units(ITEMS, 0), "b": units(ITEMS, 9)}
# By the gate b may search a's vectors; nothing else was compared, and c was refused.
ALLOWED = {("a", "a"), ("b", "a"), ("b", "b")}


def queries_while(directory, upgrade, least, threads):
    """Runs queries in threads during `upgrade`; returns the pairs that answered, and how many."""
    pairs, failures, number, ended = set(), [], count(), threading.Event()
    gallery = Gallery(directory)

    def ask():
        while not ((request := next(number)) >= least and ended.is_set()):
            model = gallery.route(str(request)).name
            item = request % ITEMS
            try:
                (hits,) = gallery.search(VECTORS[model][[item]], model=model, k=ITEMS)
                names = [hit.item.key for hit in hits]
                assert len(hits) == len(set(names)) == ITEMS
                own = next(hit for hit in hits if hit.item.key == f"item{item}")
                assert own.model != model or (own is hits[0] and abs(own.score - 1) < 1e-6)
                pairs.update((model, hit.model) for hit in hits)
            except Exception as error:
                failures.append(error)
                return

    with ThreadPoolExecutor(threads) as pool:
        asking = [pool.submit(ask) for _ in range(threads)]
        try:
            upgrade()
        finally:
            ended.set()
        for future in asking:
            future.result()
    gallery.close()
    assert failures == []
    return pairs, next(number) - threads  # the last number of each thread was not asked


def rounds(gallery, repeats):
    """Promotes and rolls back; the items wait for the backfill with both vectors."""
    for _ in range(repeats):
        gallery.canary(0.5)
        gallery.promote()
        backfill.run(gallery, embedders(), batch=8)
        gallery.rollback()


@pytest.mark.parametrize(
    ("repeats", "least", "threads"),
    [(6, 500, 4), pytest.param(60, 10_000, 8, marks=pytest.mark.slow)],
)
def test_promotions_and_rollbacks_under_queries(tmp_path, repeats, least, threads):
    directory = str(tmp_path / "g")
    with new_gallery(directory, ITEMS) as gallery:
        gallery.register(gallery_model("c"), "c")
        gallery.record_gate("c", compatible=False, details={})
        pass_gate(gallery)
        gallery.canary(0.5)
        gallery.add(entries(0, ITEMS), VECTORS)
        gallery.rollback()
        pairs, asked = queries_while(directory, lambda: rounds(gallery, repeats), least, threads)
        assert asked >= least
        assert pairs <= ALLOWED
        assert {("a", "a"), ("b", "b")} <= pairs
        actions = [event["action"] for event in gallery.events(10_000)]
        assert actions.count("promote") == repeats
        with pytest.raises(Refused):
            gallery.search(units(1, 1), model="c")


def gallery_model(name):
    from gallery_world import info

    return info(name)


def test_items_added_by_threads_are_all_there_once(tmp_path):
    with new_gallery(tmp_path / "g") as gallery:

        def add(start):
            for n in range(start, start + 10):
                gallery.add(entries(n, n + 1), {"a": units(100, 0)[[n]]})
                (hits,) = gallery.search(units(100, 0)[[n]], model="a", k=1)
                assert hits[0].item.key == f"item{n}"

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(add, start) for start in range(0, 100, 10)]:
                future.result()
        numbers, _, _ = gallery.search_arrays(units(1, 1), model="a", k=200)
        assert sorted(numbers[0][numbers[0] > 0]) == list(range(1, 101))
        np.testing.assert_array_equal(numbers[0][100:], -1)
