"""A gallery: what is stored, what is found, and which pairs of models may meet."""

import os
import shutil
import threading

import numpy as np
import pytest
from gallery_world import (
    Product,
    embedders,
    entries,
    info,
    keys,
    new_gallery,
    pass_gate,
    promoted,
    units,
    write_image,
    write_images,
)
from PIL import Image

from iamcl2r_jax.evaluation.gate import Split
from iamcl2r_jax.gallery import Gallery, NewItem, OutdatedError, Refused, backfill, gate, indexing
from iamcl2r_jax.gallery.embedder import Embedders
from iamcl2r_jax.gallery.images import read
from iamcl2r_jax.system.errors import InputError


@pytest.fixture
def gallery(tmp_path):
    with new_gallery(tmp_path / "g", 60) as made:
        yield made


def nearest(vectors, query, k):
    """Rows in the order of a plain float64 product."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return np.argsort(-scores, kind="stable")[:k].tolist()


def test_search_finds_what_a_plain_product_finds(gallery):
    queries, stored = units(7, 1), units(60, 0)
    found = gallery.search(queries, model="a", k=5)
    expected = [[f"item{n}" for n in nearest(stored, query, 5)] for query in queries]
    assert keys(found) == expected
    scores = [[hit.score for hit in hits] for hits in found]
    np.testing.assert_allclose(scores, np.sort(queries @ stored.T)[:, ::-1][:, :5], atol=1e-6)
    assert {hit.model for hits in found for hit in hits} == {"a"}
    assert len(gallery.search(queries, model="a", k=100)[0]) == 60


def test_scores_do_not_depend_on_batch_or_order(tmp_path, gallery):
    queries, stored = units(9, 1), units(60, 0)
    whole = gallery.search_arrays(queries, model="a", k=60)
    for n in range(9):
        alone = gallery.search_arrays(queries[n : n + 1], model="a", k=60)
        np.testing.assert_array_equal(alone[0][0], whole[0][n])
        np.testing.assert_array_equal(alone[1][0], whole[1][n])
    with new_gallery(tmp_path / "backwards") as other:
        other.add(entries(0, 60)[::-1], {"a": stored[::-1]})
        found = other.search(queries, model="a", k=60)
    assert found[0][0].score == whole[1][0, 0]
    assert keys(found) == keys(gallery.search(queries, model="a", k=60))


def test_an_item_is_replaced_by_its_key_and_removed_once(gallery):
    vector = units(1, 5)
    (number,) = gallery.add([NewItem("item3", label="other")], {"a": vector})
    assert number == 4
    assert gallery.status()["items"] == 60
    hit = gallery.search(vector, model="a", k=1)[0][0]
    assert (hit.item.key, hit.item.label) == ("item3", "other")
    assert hit.score == pytest.approx(1)
    assert gallery.remove(["item3", "item4"]) == 2
    assert not {"item3", "item4"} & set(keys(gallery.search(vector, model="a", k=60))[0])
    with pytest.raises(InputError, match=r"'item3'.*nothing was removed"):
        gallery.remove(["item5", "item3"])
    assert gallery.item("item5") is not None
    # A number is given once, also after the last item was removed.
    gallery.remove(["item59"])
    assert gallery.add([NewItem("item59")], {"a": vector}) == [61]


def test_everything_is_there_after_opening_again(tmp_path, gallery):
    expected = gallery.search(units(3, 1), model="a")
    gallery.close()
    with Gallery(str(tmp_path / "g")) as again:
        assert again.search(units(3, 1), model="a") == expected


def test_another_connection_is_seen_at_once(tmp_path, gallery):
    vector = units(1, 5)
    gallery.search(vector, model="a")
    with Gallery(str(tmp_path / "g")) as other:
        other.add([NewItem("new")], {"a": vector})
        assert keys(gallery.search(vector, model="a", k=1)) == [["new"]]
        other.remove(["new"])
        assert "new" not in keys(gallery.search(vector, model="a", k=60))[0]


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (units(2, 0)[:, :-1], r"shape \[2, 32\], got \[2, 31\]"),
        (units(1, 0), r"shape \[2, 32\], got \[1, 32\]"),
        (2 * units(2, 0), "row 0 has length 2"),
        (units(2, 0) * [[1], [np.nan]], "row 1 has length nan"),
        (units(2, 0) * [[1], [np.inf]], "row 1 has length inf"),
        (units(2, 0) * [[1], [0]], "row 1 has length 0"),
    ],
)
def test_bad_vectors_are_not_written(gallery, vectors, says):
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=says):
        gallery.add(entries(60, 62), {"a": vectors})
    assert gallery.status()["items"] == 60
    if len(vectors) == 2:
        with np.errstate(invalid="ignore"), pytest.raises(InputError, match="model a"):
            gallery.search(vectors, model="a")


@pytest.mark.parametrize("items", [[NewItem("x"), NewItem("x")], [NewItem("x"), NewItem("")]])
def test_every_item_has_a_key_of_its_own(gallery, items):
    with pytest.raises(InputError, match="key"):
        gallery.add(items, {"a": units(2, 0)})


def test_text_that_is_not_unicode_is_one_line(gallery):
    """As a file's name may be whose bytes are not UTF-8."""
    for touch in (
        lambda: gallery.item("a\udcff"),
        lambda: gallery.remove(["a\udcff"]),
        lambda: gallery.add([NewItem("a\udcff")], {"a": units(1, 5)}),
    ):
        with pytest.raises(InputError, match=r"^'a\\udcff': must be valid Unicode") as error:
            touch()
        assert "\n" not in str(error.value)
    assert gallery.status()["items"] == 60


def test_models_that_cannot_be_compared_are_refused(gallery):
    for changes in ({"width": 16}, {"num_slots": 64}, {"normalisation": "none"}):
        with pytest.raises(Refused, match=next(iter(changes))):
            gallery.register(info("b", **changes), "b")
    with pytest.raises(InputError, match="another model has this name"):
        gallery.register(info("b"), "a")
    assert gallery.register(info("a")).name == "a"
    with pytest.raises(InputError, match="registered already, as a"):
        gallery.register(info("a"), "other")
    assert [model["name"] for model in gallery.status()["models"]] == ["a"]


def test_no_search_without_a_verdict_that_allows_it(gallery):
    gallery.register(info("b"), "b")
    with pytest.raises(Refused, match=r"has not passed the gate; run `gallery\.py gate`"):
        gallery.search(units(1, 1), model="b")
    gallery.record_gate("b", compatible=False, details={"gain": -0.1})
    with pytest.raises(Refused, match="failed the gate"):
        gallery.search(units(1, 1), model="b")
    with pytest.raises(Refused, match="refused"):
        gallery.canary(0.1)
    gallery.record_gate("b", compatible=False, details={"gain": -0.1}, accept=True)
    gallery.search(units(1, 1), model="b")
    event = gallery.events(1)[0]
    assert (event["action"], event["compatible"], event["accepted"]) == ("gate", False, True)
    assert gallery.status()["upgrade"]["verdict"]["details"] == {"gain": -0.1}


def test_a_verdict_is_of_the_vectors_that_were_compared(gallery):
    gallery.register(info("b"), "b")
    with pytest.raises(Refused, match="were replaced while the gate ran"):
        gallery.record_gate("b", compatible=True, details={}, base=2)
    assert gallery.status()["upgrade"] is None


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_gate_is_refused_before_it_embeds_anything(gallery, name):
    """Of the model that the canary is of, and of another one."""
    pass_gate(gallery)
    gallery.canary(0.1)
    gallery.register(info(name), name)
    split = Split("folder:nowhere", "gallery")
    with pytest.raises(Refused, match=r"gate: the upgrade is canary|upgrade to model b is canary"):
        gate.run(gallery, embedders(), name, split, split)


def test_the_old_model_may_not_search_new_vectors(gallery):
    promoted(gallery)
    gallery.add(entries(0, 60), {"a": units(60, 0), "b": units(60, 9)})
    # Every item has its vector already.
    assert backfill.run(gallery, embedders()).state == "complete"
    gallery.retire()
    with pytest.raises(Refused, match="model a may not search the vectors of model b"):
        gallery.search(units(1, 1), model="a")
    assert keys(gallery.search(units(60, 9)[7:8], model="b", k=1)) == [["item7"]]


def test_the_canary_gets_its_share_of_requests_always_the_same(gallery):
    pass_gate(gallery)
    requests = [f"request {n}" for n in range(2000)]
    assert {gallery.route(request).name for request in requests} == {"a"}
    gallery.canary(0.25)
    chosen = [request for request in requests if gallery.route(request).name == "b"]
    assert len(chosen) == pytest.approx(500, abs=80)
    gallery.canary(0.5)
    assert all(gallery.route(request).name == "b" for request in chosen)
    gallery.pause()
    assert {gallery.route(request).name for request in requests} == {"a"}
    gallery.resume()
    assert gallery.route(chosen[0]).name == "b"
    gallery.promote()
    assert {gallery.route(request).name for request in requests} == {"b"}
    gallery.rollback()
    assert {gallery.route(request).name for request in requests} == {"a"}
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="share"):
            gallery.canary(share)


def test_new_items_are_embedded_by_both_models_from_canary_to_retire(gallery):
    vectors = {"a": units(2, 3), "b": units(2, 4)}
    pass_gate(gallery)
    assert [model.name for model in gallery.writing_models()] == ["a"]
    gallery.canary(0.1)
    assert [model.name for model in gallery.writing_models()] == ["a", "b"]
    with pytest.raises(OutdatedError, match="embedded by b, too"):
        gallery.add(entries(60, 62), {"a": units(2, 3)})
    gallery.add(entries(60, 62), vectors)
    gallery.promote()
    gallery.rollback()
    # None is lost to the model that serves again.
    assert keys(gallery.search(vectors["a"][:1], model="a", k=1)) == [["item60"]]
    assert [model.name for model in gallery.writing_models()] == ["a"]


def test_what_changed_after_a_rollback_is_not_found_by_its_old_content(gallery):
    promoted(gallery)
    gallery.add(entries(60, 62), {"a": units(2, 3), "b": units(2, 4)})
    gallery.rollback()
    gallery.add([NewItem("item60")], {"a": units(1, 5)})
    target = gallery.status()["generations"][1]
    assert (target["model"], target["vectors"]) == ("b", 1)


@pytest.fixture
def pictured(tmp_path):
    """A gallery of twelve images, with model b promoted."""
    write_images(tmp_path / "images", 12)
    with new_gallery(tmp_path / "g") as made:
        added = indexing.add_files(
            made, embedders(), indexing.sources(str(tmp_path / "images")), batch=5
        )
        assert added.unreadable == []
        yield made


def stored_by(gallery, model, count=12):
    query = units(1, 1)
    return {hit.item.key: hit.model for hit in gallery.search(query, model=model, k=count)[0]}


def test_a_backfill_moves_items_one_by_one_and_each_is_found_once(pictured):
    promoted(pictured)
    seen = []

    def look(progress):
        found = stored_by(pictured, "b")
        assert len(found) == 12
        seen.append(sum(model == "b" for model in found.values()))
        assert progress.done == seen[-1]
        assert set(stored_by(pictured, "a").values()) == {"a"}

    done = backfill.run(pictured, embedders(), batch=5, report=look)
    assert seen == [5, 10, 12]
    assert (done.state, done.done, done.total, done.unreadable) == ("complete", 12, 12, 0)
    assert pictured.retire() == 12
    product = Product("b")
    for key in stored_by(pictured, "b"):
        item = pictured.item(key)
        query = product(read(pictured.image_path(item)).at(8)[np.newaxis])
        assert keys(pictured.search(query, model="b", k=1)) == [[key]]


def test_the_backfill_takes_the_classes_in_turn(pictured):
    promoted(pictured)
    labels = []

    def look(progress):
        found = stored_by(pictured, "b")
        labels.append([pictured.item(k).label for k, model in found.items() if model == "b"])

    backfill.run(pictured, embedders(), batch=3, report=look)
    for step, moved in enumerate(labels, start=1):
        assert sorted(moved) == sorted([f"class{c}" for c in range(3)] * step)


def test_the_backfill_takes_cells_in_turn_where_there_are_no_labels(tmp_path):
    """Two heaps of images that look alike: after each batch as many are done of each."""
    for n in range(12):
        pixels = np.full((8, 8, 3), 40 if n < 6 else 215, np.uint8)
        pixels[0, n % 8] = n
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n:02}.png")
    with new_gallery(tmp_path / "g") as made:
        indexing.add_files(made, embedders(), indexing.sources(str(tmp_path / "images")))
        assert {made.item(f"{n:02}.png").label for n in range(12)} == {None}
        promoted(made)
        counts = []

        def look(progress):
            done = [key for key, model in stored_by(made, "b").items() if model == "b"]
            counts.append(sum(key < "06" for key in done))

        backfill.run(made, embedders(), batch=6, report=look)
    assert 1 <= counts[0] <= 5
    assert counts[1] == 6


def test_pause_and_rollback_stop_a_backfill_which_goes_on_where_it_was(pictured):
    promoted(pictured)

    def pausing(progress):
        if progress.done >= 4:
            pictured.pause()

    stopped = backfill.run(pictured, embedders(), batch=2, report=pausing)
    assert (stopped.done, stopped.paused) == (4, True)
    with pytest.raises(Refused, match="paused"):
        backfill.run(pictured, embedders())
    pictured.resume()
    before = pictured.status()["upgrade"]["watermark"]
    backfill.run(pictured, embedders(), batch=2, report=lambda progress: pictured.rollback())
    assert pictured.status()["upgrade"]["state"] == "rolled_back"
    assert set(stored_by(pictured, "a").values()) == {"a"}
    with pytest.raises(Refused, match="rolled_back"):
        backfill.run(pictured, embedders())
    # The vectors are kept: a second attempt embeds only what is missing.
    assert pictured.status()["upgrade"]["watermark"] > before
    pictured.canary(1)
    pictured.promote()
    embedded = []

    class Counting(Product):
        def __call__(self, images):
            embedded.append(len(images))
            return super().__call__(images)

    assert backfill.run(pictured, Embedders(Counting), batch=2).state == "complete"
    assert sum(embedded) == 6
    assert set(stored_by(pictured, "b").values()) == {"b"}


def test_unreadable_images_stay_with_the_old_model_until_they_are_mended(tmp_path, pictured):
    promoted(pictured)
    broken, gone = tmp_path / "images/class0/0.png", tmp_path / "images/class1/1.png"
    broken.write_bytes(b"none")
    gone.unlink()
    first = backfill.run(pictured, embedders(), batch=5)
    assert (first.state, first.done, first.unreadable) == ("complete", 10, 2)
    listed = {image["key"] for image in pictured.status()["unreadable"]}
    assert listed == {"class0/0.png", "class1/1.png"}
    found = stored_by(pictured, "b")
    assert len(found) == 12
    assert {key for key, model in found.items() if model == "a"} == listed
    with pytest.raises(Refused, match="2 items are only in the old generation"):
        pictured.retire()
    write_image(broken, 0)
    write_image(gone, 77)  # another picture: the old model embeds it again, too
    assert backfill.run(pictured, embedders()).unreadable == 0
    assert set(stored_by(pictured, "b").values()) == {"b"}
    pixels = read(str(gone)).at(8)[np.newaxis]
    for model in "ab":
        hit = pictured.search(Product(model)(pixels), model=model, k=1)[0][0]
        assert (hit.item.key, hit.model) == ("class1/1.png", model)
        assert hit.score == pytest.approx(1, abs=1e-6)
    pictured.retire()


def test_scores_of_a_mixed_gallery_are_merged_as_the_gate_recommends(pictured):
    promoted(pictured, merge="zscore", scaling={1: (0.1, 0.2), 0: (0.5, 2.0)})
    query = units(1, 1)
    old = {hit.item.key: hit.score for hit in pictured.search(query, model="a", k=12)[0]}
    looks = []

    def look(progress):
        if progress.state == "backfilling":
            looks.append(pictured.search(query, model="b", k=12)[0])

    backfill.run(pictured, embedders(), batch=6, report=look)
    new = {hit.item.key: hit.score for hit in pictured.search(query, model="b", k=12)[0]}
    (hits,) = looks
    for hit in hits:
        raw, (mean, std) = (
            (old[hit.item.key], (0.1, 0.2)) if hit.model == "a" else (new[hit.item.key], (0.5, 2.0))
        )
        assert hit.score == pytest.approx((raw - mean) / std, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("scaling", [{}, {1: (0, 1)}, {1: (0, 1), 0: (0, 0)}, {0: (np.nan, 1)}])
def test_scores_are_not_scaled_by_what_is_missing_or_nothing(gallery, scaling):
    with pytest.raises(InputError, match="scaling"):
        pass_gate(gallery, merge="zscore", scaling=scaling)
    assert gallery.status()["upgrade"] is None
    pass_gate(gallery)
    gallery.canary(0.5)
    with pytest.raises(InputError, match="needs the scaling of both generations"):
        gallery.promote(merge="zscore")
    assert gallery.status()["upgrade"]["state"] == "canary"


def test_a_promotion_without_backfill_is_kept_and_followed_by_the_next_model(gallery):
    """Model c then searches the vectors of a, and a rollback leads to b."""
    promoted(gallery)
    assert gallery.retire() == 0
    assert gallery.status()["serving"] == "b"
    assert [g["model"] for g in gallery.status()["generations"]] == ["a"]
    assert keys(gallery.search(units(60, 0)[5:6], model="b", k=1)) == [["item5"]]
    promoted(gallery, "c")
    assert gallery.route("any").name == "c"
    gallery.rollback()
    assert gallery.route("any").name == "b"


def test_adding_while_an_upgrade_begins_embeds_again(tmp_path, pictured):
    """The canary begins after the images were embedded and before they are written."""
    pass_gate(pictured)
    write_image(tmp_path / "late.png", 99)
    begun = threading.Event()

    class Beginning(Product):
        def __call__(self, images):
            if not begun.is_set():
                begun.set()
                pictured.canary(0.1)
            return super().__call__(images)

    source = indexing.Source("late", str(tmp_path / "late.png"))
    added = indexing.add_files(pictured, Embedders(Beginning), [source])
    assert len(added.items) == 1
    assert [g["vectors"] for g in pictured.status()["generations"]] == [13, 1]


def test_what_is_no_image_is_listed_and_passed_over(tmp_path, pictured):
    """A pipe, a directory, a name that is not UTF-8, nothing at all."""
    images = tmp_path / "odd"
    write_images(images, 1)
    os.mkfifo(images / "pipe.png")
    (images / "directory.png").mkdir()
    shutil.copy(images / "class0" / "0.png", os.fsencode(images) + b"/\xff.png")
    (images / "empty.png").touch()
    (images / "link.png").symlink_to("nowhere")
    files = indexing.sources(str(images))
    assert len(files) == 5
    added = indexing.add_files(pictured, embedders(), files)
    assert len(added.items) == 1
    reasons = dict(added.unreadable)
    assert "is not a file" in reasons["pipe.png"]
    assert "is not an image" in reasons["empty.png"]
    assert "No such file" in reasons["link.png"]
    assert any("is not UTF-8" in reason for reason in reasons.values())
    assert all(reason.isprintable() for reason in reasons.values())


def test_a_checkpoint_that_was_replaced_is_refused(pictured):
    class Other(Product):
        def __init__(self, path):
            super().__init__(path)
            self.info = info("x")

    with pytest.raises(Refused, match="no longer the one registered as model a"):
        Embedders(Other)[pictured.model("a")]


def test_there_is_one_gallery_at_a_place(tmp_path, gallery):
    with pytest.raises(InputError, match="there is a gallery already"):
        new_gallery(tmp_path / "g")
    with pytest.raises(InputError, match="there is no gallery"):
        Gallery(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_closing_waits_for_what_reads(tmp_path):
    gallery = new_gallery(tmp_path / "g", 3)
    reads, may_end, found = threading.Event(), threading.Event(), []

    def read():
        with gallery.database.reading() as connection:
            reads.set()
            may_end.wait()
            found.append(connection.execute("SELECT count(*) FROM items").fetchone()[0])

    reader, closer = threading.Thread(target=read), threading.Thread(target=gallery.close)
    reader.start()
    reads.wait()
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    may_end.set()
    closer.join()
    reader.join()
    assert found == [3]
