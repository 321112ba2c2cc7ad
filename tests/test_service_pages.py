"""The two pages of the service in a real browser: what they show, and that they fit."""

import threading
import time
from contextlib import contextmanager

import browser
import pytest
import service_world
import uvicorn
from service_world import TOKEN, gated, pictures

from iamcl2r_jax.gallery import backfill
from iamcl2r_jax.gallery.simulation import FRACTIONS

DETAILS = {
    "metric": "recall_at_1",
    "values": {"old/old": 0.81, "new/old": 0.84, "new/new": 0.9},
    "gain": 0.03,
    "gain_interval": [0.01, 0.05],
    "reindexing_gain": 0.06,
    "reindexing_interval": [0.03, 0.08],
    "confidence": 0.95,
    "queries": 300,
    "images": 600,
    "gallery": "folder:labelled, gallery",
    "query": "folder:labelled, query",
    "curve": {
        "metric": "recall_at_1",
        "fractions": list(FRACTIONS),
        "raw": [0.84 + 0.006 * n for n in range(11)],
        "zscore": [0.84 - 0.02 * (n % 3) + 0.006 * n for n in range(11)],
        "recommended": "raw",
        "dip": {"raw": 0.0, "zscore": 0.04},
    },
    "backfill": {"items": 12, "rate": 6.0, "seconds": 2.0, "bytes": 768, "cost": None},
}


@contextmanager
def served(app):
    """The address of the service, on a free port of loopback."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browser.started(tmp_path_factory.mktemp("browser")) as chrome:
        yield chrome


@pytest.fixture
def world(tmp_path):
    made, embedders = service_world.gallery(tmp_path / "gallery")
    with made:
        app = service_world.service(made, embedders, hosts=())
        with served(app) as address:
            yield made, embedders, address


def mixed(made, embedders):
    """Half of a gallery is embedded by a promoted model, whose backfill is paused."""
    gated(made, **DETAILS)
    made.canary(1)
    made.promote()

    def stop(progress):
        if progress.done >= 6:
            made.pause()

    backfill.run(made, embedders, batch=3, report=stop)


def until(chrome, script):
    """Waits for a script to return something true, and returns it."""
    end = time.monotonic() + 20
    while not (found := chrome.execute_script(f"return {script}")):
        assert time.monotonic() < end, chrome.get_log("browser")
        time.sleep(0.05)
    return found


def choose(chrome, path):
    chrome.find_element("id", "file").send_keys(str(path))


def fits(chrome, address, scheme):
    """Nothing on the console, nothing from elsewhere, no overflow, the colours asked for."""
    assert chrome.get_log("browser") == []
    assert [url for url in browser.requested(chrome) if not url.startswith(address)] == []
    assert browser.overflow(chrome) <= 0
    background, ink = browser.colours(chrome)
    assert (background < 60 and ink > 200) if scheme == "dark" else (background > 200 and ink < 60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_search_shows_hits_and_who_stored_them(world, chrome, tmp_path, width, scheme):
    made, embedders, address = world
    mixed(made, embedders)
    browser.open_page(chrome, f"{address}/", width, scheme)
    choose(chrome, tmp_path / "gallery" / "pictures" / "class1" / "2.png")
    texts = until(
        chrome,
        "(h => h.length && [...h].map(e => e.innerText))(document.querySelectorAll('#hits li'))",
    )
    assert len(texts) == 12
    assert "class1" in texts[0]
    assert {text.rpartition("stored by")[2].strip() for text in texts} == {"old", "new"}
    assert "by model new" in chrome.find_element("id", "detail").text
    until(chrome, "[...document.images].every(i => i.complete && i.naturalWidth)")
    fits(chrome, address, scheme)

    chrome.execute_script("document.querySelectorAll('#hits button')[5].click()")
    until(chrome, "document.getElementById('title').textContent.startsWith('class')")


def test_search_says_what_is_wrong_with_an_image(world, chrome, tmp_path):
    address = world[2]
    browser.open_page(chrome, f"{address}/", 1280, "light")
    (tmp_path / "broken.png").write_bytes(pictures()["class0/0.png"][0][:150])
    choose(chrome, tmp_path / "broken.png")
    assert "not a readable image" in until(chrome, "document.getElementById('message').textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_upgrade_shows_the_state_and_rolls_back(world, chrome, width, scheme):
    made, embedders, address = world
    mixed(made, embedders)
    browser.open_page(chrome, f"{address}/upgrade#token={TOKEN}", width, scheme)
    until(chrome, "document.querySelectorAll('#progress svg').length")
    shown = chrome.find_element("tag name", "main").text
    for text in ("old → new", "6 of 12", "84.0 %", "+3.0", "+1.0 to +5.0", "compatible"):
        assert text in shown, text
    current = "document.querySelector('#steps [aria-current]').textContent"
    assert chrome.execute_script(f"return {current}") == "backfilling"
    assert chrome.execute_script("return location.hash") == ""
    fits(chrome, address, scheme)

    chrome.find_element("id", "rollback").click()
    chrome.find_element("id", "ask-yes").click()
    until(chrome, "document.getElementById('serving').textContent === 'old'")
    assert made.status()["upgrade"]["state"] == "rolled_back"
    until(chrome, "document.getElementById('rollback').hidden")


def test_rollback_asks_for_the_token(world, chrome):
    made, _, address = world
    gated(made)
    made.canary(0.5)
    browser.open_page(chrome, f"{address}/upgrade", 1280, "light")
    for token, says in (("wrong-token", "needs the header"), (TOKEN, "")):
        chrome.find_element("id", "rollback").click()
        field = chrome.find_element("id", "token")
        field.clear()
        field.send_keys(token)
        chrome.find_element("id", "ask-yes").click()
        message = "document.getElementById('message').textContent"
        done = "rolled_back" if not says else "canary"
        until(chrome, f"{message}.includes('{says}') && ('{says}' || {message} === '') && true")
        if not says:
            until(chrome, "document.getElementById('rollback').hidden")
        assert made.status()["upgrade"]["state"] == done


def test_names_are_shown_as_text(tmp_path, chrome):
    made, embedders = service_world.gallery(tmp_path / "gallery")
    with made, served(service_world.service(made, embedders, hosts=())) as address:
        evil = "<img src=x onerror=document.title='owned'>"
        gated(made, evil, **DETAILS)
        made.canary(1)
        for page in ("upgrade", ""):
            browser.open_page(chrome, f"{address}/{page}", 1280, "light")
            if page == "":
                choose(chrome, tmp_path / "gallery" / "pictures" / "class0" / "0.png")
                until(chrome, "document.querySelectorAll('#hits li').length")
            assert evil in chrome.find_element("tag name", "body").text
            assert "owned" not in chrome.title
