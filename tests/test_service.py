"""The service of a gallery in this process: what each endpoint answers, and to whom."""

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import service_world
from PIL import Image
from service_world import BEARER, Embedder, gated, pictures, png
from starlette.testclient import TestClient

from iamcl2r_jax.gallery import upkeep
from iamcl2r_jax.gallery.store import StoreError
from iamcl2r_jax.system.errors import WriteError

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def world(tmp_path):
    made, embedders = service_world.gallery(tmp_path / "gallery")
    with made:
        yield made, embedders


@pytest.fixture
def client(world):
    with TestClient(service_world.service(*world)) as client:
        yield client


def upgrade(client, action, **body):
    return client.post(f"/v1/upgrade/{action}", json=body, headers=BEARER)


def search(client, content=None, item=None, k=3, **headers):
    if item is not None:
        return client.post("/v1/search", json={"item": item, "k": k}, headers=headers)
    return client.post("/v1/search", files={"image": content}, data={"k": str(k)}, headers=headers)


def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_image_finds_itself_and_its_class(client):
    content, label = pictures()["class1/2.png"]
    found = search(client, content, k=4).json()
    assert found["hits"][0]["key"] == "class1/2.png"
    assert {hit["label"] for hit in found["hits"]} == {label}
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert {hit["stored_by"] for hit in found["hits"]} == {found["model"]} == {"old"}
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_an_item_is_searched_by_its_key_as_by_its_image(client):
    content, _ = pictures()["class0/0.png"]
    by_image, by_item = search(client, content, k=5), search(client, item="class0/0.png", k=5)
    assert [hit["key"] for hit in by_image.json()["hits"]] == [
        hit["key"] for hit in by_item.json()["hits"]
    ]


def test_the_answers_are_those_of_the_library(world, client):
    made, embedders = world
    content, _ = pictures(seed=1)["class2/1.png"]
    features = embedders[made.model("old")](_pixels(content)[np.newaxis])
    (hits,) = made.search(features, model="old", k=12)
    found = search(client, content, k=12).json()["hits"]
    assert [(hit.item.key, hit.score) for hit in hits] == [(f["key"], f["score"]) for f in found]


def _pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_added_images_are_found_shown_and_removed(world, client):
    made, _ = world
    content = png(np.full((40, 40, 3), (200, 30, 30), np.uint8))
    answer = client.post(
        "/v1/items",
        files={"image": ("../../x.png", content)},
        data={"key": "../up", "label": "red"},
        headers=BEARER,
    )
    assert answer.status_code == 201
    hit = search(client, content).json()["hits"][0]
    assert (hit["key"], hit["label"], hit["id"]) == ("../up", "red", answer.json()["id"])
    shown = client.get(hit["image"])
    assert shown.headers["content-type"] == "image/png"
    assert (_pixels(shown.content)[..., :3] == (200, 30, 30)).all()
    path = made.image_path(made.item("../up"))
    assert path.startswith(made.directory)

    assert client.delete("/v1/items", params={"key": "../up"}, headers=BEARER).json() == {
        "removed": 1
    }
    assert "../up" not in [h["key"] for h in search(client, content, k=20).json()["hits"]]
    assert not os.path.exists(path)
    assert client.get(hit["image"]).status_code == 404
    assert client.delete("/v1/items", params={"key": "../up"}, headers=BEARER).status_code == 404


def test_an_image_of_two_items_stays_until_both_are_gone(world, client):
    made, _ = world
    content = png(np.full((8, 8, 3), 77, np.uint8))
    for key in ("one", "two"):
        client.post("/v1/items", files={"image": content}, data={"key": key}, headers=BEARER)
    client.delete("/v1/items", params={"key": "one"}, headers=BEARER)
    assert search(client, item="two").status_code == 200
    assert not upkeep.verify(made, files=True)


def test_nothing_outside_the_gallery_is_shown(world, tmp_path):
    from iamcl2r_jax.gallery import NewItem, indexing
    from iamcl2r_jax.gallery.images import Picture

    made, embedders = world
    content = png(np.full((8, 8, 3), 9, np.uint8))
    outside = tmp_path / "elsewhere" / "secret.png"
    outside.parent.mkdir()
    outside.write_bytes(content)
    link = tmp_path / "gallery" / "link.png"
    link.symlink_to(outside)
    paths = {
        "absolute": str(outside),
        "upwards": "../elsewhere/secret.png",
        "link": "link.png",
        "database": "gallery.db",
    }
    items = [NewItem(key, "", path) for key, path in paths.items()]
    indexing.add_pictures(made, embedders, items, [Picture(content)] * len(items))

    def codes(**settings):
        with TestClient(service_world.service(made, embedders, **settings)) as client:
            return {
                key: client.get(f"/v1/items/{made.item(key).id}/image").status_code for key in paths
            }

    assert codes() == {"absolute": 404, "upwards": 404, "link": 404, "database": 400}
    roots = codes(image_roots=(str(outside.parent),))
    assert roots == {"absolute": 200, "upwards": 200, "link": 200, "database": 400}


def test_changes_need_the_token(client):
    content, _ = pictures()["class0/0.png"]
    requests = [
        ("POST", "/v1/items", {"files": {"image": content}}),
        ("DELETE", "/v1/items?key=class0/0.png", {}),
        *(
            ("POST", f"/v1/upgrade/{action}", {"json": {}})
            for action in ["gate", "canary", "promote", "backfill", "pause", "rollback", "retire"]
        ),
    ]
    for method, address, body in requests:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic " + "x"}):
            answer = client.request(method, address, headers=wrong, **body)
            assert answer.status_code == 401, address
            assert answer.json()["status"] == 401
    assert client.get("/v1/status").json()["items"] == 12


def test_a_page_under_another_name_cannot_reach_it(client):
    answer = client.get("/v1/status", headers={"Host": "attacker.example"})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"files": {"image": b"x" * 3000}}, 413, "at most 2000 bytes"),
        ({"files": {"image": b""}}, 400, "not an image"),
        ({"files": {"image": png(np.zeros((60, 60, 3), np.uint8))}}, 400, "60 x 60 pixels"),
        ({"files": {"image": pictures()["class0/0.png"][0][:150]}}, 400, "not a readable image"),
        ({"files": {"other": b"x"}}, 400, "must be named 'image'"),
        ({"json": {"item": "nobody"}}, 404, "none of this key"),
        ({"json": {"item": "class0/0.png", "k": 0}}, 400, "from 1 to 1000"),
        ({"json": {"item": "class0/0.png", "k": True}}, 400, "from 1 to 1000"),
        ({"json": {"item": "class0/0.png", "n": 1}}, 400, "unknown field 'n'"),
        ({"content": b'{"item": "\\ud800"}', "headers": JSON}, 400, "control"),
        ({"json": ["item"]}, 400, "JSON object"),
        ({"content": b"[" * 1500, "headers": JSON}, 400, "JSON"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain"),
        ({"json": {}}, 400, "image or item"),
    ],
)
def test_bad_searches_get_one_line(world, body, code, says):
    app = service_world.service(*world, max_upload=2000, max_pixels=2000)
    with TestClient(app) as client:
        answer = client.post("/v1/search", **body)
        assert (answer.status_code, answer.json()["status"]) == (code, code)
        assert says in answer.json()["error"]
        assert "\n" not in answer.json()["error"]


def test_concurrent_queries_are_embedded_together(world):
    made, embedders = world
    with TestClient(service_world.service(made, embedders, batch=8, wait=0.2)) as client:
        contents = [content for content, _ in pictures().values()]
        eventually(lambda: client.get("/readyz").status_code == 200)
        embedder = embedders[made.model("old")]
        embedder.batches.clear()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda content: search(client, content), contents[:8]))
    assert [answer.json()["hits"][0]["key"] for answer in answers] == list(pictures())[:8]
    assert len(embedder.batches) < 4
    assert sum(embedder.batches) == 8


def test_one_bad_query_does_not_take_the_others_with_it(world):
    made, embedders = world
    grey = png(np.full((8, 8, 3), 128, np.uint8))

    class Poisoned(Embedder):
        def __call__(self, images):
            if (images == 128).all(axis=(1, 2, 3)).any():
                images = np.where(images == 128, np.nan, images.astype(float))
            return super().__call__(images)

    embedders._load = Poisoned
    embedders._loaded.clear()
    with TestClient(service_world.service(made, embedders, batch=4, wait=0.2)) as client:
        contents = [content for content, _ in list(pictures().values())[:3]] + [grey]
        with ThreadPoolExecutor(4) as pool:
            codes = [a.status_code for a in pool.map(lambda c: search(client, c), contents)]
    assert codes == [200, 200, 200, 400]


def test_an_upgrade_from_gate_to_retirement(world, client):
    made, _ = world
    content, _ = pictures()["class1/0.png"]
    assert upgrade(client, "canary", share=1).status_code == 409  # no upgrade yet
    gated(made)
    assert upgrade(client, "promote").status_code == 409
    assert upgrade(client, "canary", share=2).status_code == 400
    assert upgrade(client, "canary", share=0.5).json()["upgrade"]["share"] == 0.5
    models = {
        search(client, content, **{"X-Request-Id": str(n)}).json()["model"] for n in range(40)
    }
    assert models == {"old", "new"}
    again = [search(client, content, **{"X-Request-Id": "7"}).json()["model"] for _ in range(5)]
    assert len(set(again)) == 1

    assert upgrade(client, "promote").json()["serving"] == "new"
    found = search(client, content).json()
    assert (found["model"], {hit["stored_by"] for hit in found["hits"]}) == ("new", {"old"})

    assert upgrade(client, "backfill", batch=2).status_code == 202
    eventually(lambda: client.get("/v1/status").json()["upgrade"]["state"] == "complete")
    assert {hit["stored_by"] for hit in search(client, content).json()["hits"]} == {"new"}

    assert upgrade(client, "rollback").json()["serving"] == "old"
    assert {hit["stored_by"] for hit in search(client, content).json()["hits"]} == {"old"}
    upgrade(client, "canary", share=1)
    upgrade(client, "promote")
    upgrade(client, "backfill")
    eventually(lambda: client.get("/v1/status").json()["upgrade"]["state"] == "complete")
    assert upgrade(client, "retire").json()["upgrade"]["state"] == "retired"
    assert upgrade(client, "rollback").status_code == 409
    assert not upkeep.verify(made, files=True)


def test_a_backfill_pauses_and_goes_on(world, client):
    made, _ = world
    gated(made)
    upgrade(client, "canary", share=1)
    upgrade(client, "promote")
    assert upgrade(client, "backfill", rate=0).status_code == 400
    assert upgrade(client, "backfill", batch=1, rate=20).status_code == 202
    assert upgrade(client, "backfill").status_code == 409  # it runs
    assert upgrade(client, "pause").json()["upgrade"]["paused"]
    eventually(lambda: not client.get("/v1/status").json()["work"]["running"])
    assert client.get("/v1/status").json()["upgrade"]["state"] == "backfilling"
    assert upgrade(client, "backfill").status_code == 409  # it is paused
    assert not upgrade(client, "pause", resume=True).json()["upgrade"]["paused"]
    assert upgrade(client, "backfill").status_code == 202
    eventually(lambda: client.get("/v1/status").json()["upgrade"]["state"] == "complete")


def test_the_gate_answers_with_its_figures(world, tmp_path, client):
    for split, seed in (("gallery", 0), ("query", 5)):
        for key, (content, _) in pictures(each=2, seed=0 if split == "gallery" else seed).items():
            path = tmp_path / "labelled" / split / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    world[0].register(Embedder("new").info, "new")
    answer = upgrade(client, "gate", model="new", gallery=f"folder:{tmp_path / 'labelled'}")
    found = answer.json()
    assert answer.status_code == (200 if found["compatible"] else 409)
    assert found["compatible"] == (found["values"]["new/old"] > found["values"]["old/old"])
    accepted = upgrade(
        client,
        "gate",
        model="new",
        gallery=f"folder:{tmp_path / 'labelled'}",
        accept_incompatible=True,
    )
    assert accepted.status_code == 200
    assert client.get("/v1/status").json()["upgrade"]["state"] == "gated"
    wrong = upgrade(client, "gate", model="new", gallery=f"folder:{tmp_path / 'nowhere'}")
    assert (wrong.status_code, wrong.json()["error"].count("\n")) == (400, 0)
    assert upgrade(client, "gate", model="nobody", gallery="x").status_code == 400
    assert upgrade(client, "gate", gallery="x").status_code == 400


def test_a_pair_that_the_gate_refused_is_409(world, client):
    gated(world[0], compatible=False)
    answer = upgrade(client, "canary", share=1)
    assert (answer.status_code, answer.json()["status"]) == (409, 409)


def test_an_engine_that_is_down_is_503_and_a_full_disk_507(world, client, monkeypatch):
    made, _ = world
    content, _ = pictures()["class0/0.png"]

    def down(*_, **__):
        raise StoreError("the engine at 127.0.0.1 does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(made, "search", down)
        answer = search(client, content)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")

    def full(*_, **__):
        raise WriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(made, "add", full)
        answer = client.post("/v1/items", files={"image": content}, headers=BEARER)
    assert (answer.status_code, answer.json()["error"]) == (507, "the disk is full")
    assert search(client, content).status_code == 200


def test_a_model_that_cannot_be_loaded_is_not_the_clients_fault(tmp_path):
    made, embedders = service_world.gallery(tmp_path / "gallery")
    embedders._loaded.clear()
    embedders._load = lambda path: Embedder("another")
    with made, TestClient(service_world.service(made, embedders)) as client:
        answer = search(client, pictures()["class0/0.png"][0])
        assert answer.status_code == 503
        assert "no longer the one registered" in answer.json()["error"]
        eventually(lambda: "no longer" in client.get("/readyz").json()["error"])
        assert client.get("/healthz").status_code == 200


def test_metrics_count_requests_queries_and_batches(world, client):
    gated(world[0])
    content, _ = pictures()["class0/0.png"]
    for _ in range(3):
        search(client, content)
    client.post("/v1/search", json={})
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['iamcl2r_requests_total{endpoint="search",status="200"}'] == "3.0"
    assert lines['iamcl2r_requests_total{endpoint="search",status="400"}'] == "1.0"
    assert lines['iamcl2r_queries_total{model="old"}'] == "3.0"
    assert lines["iamcl2r_batch_queries_sum"] == "3.0"
    assert lines["iamcl2r_items"] == "12.0"
    assert lines['iamcl2r_upgrade_state{state="gated"}'] == "1.0"


def test_waiting_queries_are_limited(world):
    made, embedders = world
    gate = threading.Event()

    class Slow(Embedder):
        def __call__(self, images):
            gate.wait(20)
            return super().__call__(images)

    embedders._load = Slow
    embedders._loaded.clear()
    content, _ = pictures()["class0/0.png"]
    app = service_world.service(made, embedders, batch=1, waiting=1)
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
        first = [pool.submit(search, client, content) for _ in range(4)]
        eventually(lambda: any(answer.done() for answer in first))
        gate.set()
        codes = sorted(answer.result().status_code for answer in first)
    assert codes[0] == 200
    assert codes[-1] == 503
