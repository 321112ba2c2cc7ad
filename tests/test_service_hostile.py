"""Hostile requests: whatever arrives is answered by one line and changes nothing it should not."""

import io
import json
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import service_world
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from service_world import BEARER
from starlette.testclient import TestClient

from iamcl2r_jax.gallery import upkeep

LIMIT, PIXELS = 100_000, 10_000


def cases(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service beside a file that nobody may reach, and what lies around it before and after."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "secret.png").write_bytes(service_world.png(np.zeros((8, 8, 3), np.uint8)))
    made, embedders = service_world.gallery(root / "gallery")
    before = set(os.listdir(root))
    app = service_world.service(made, embedders, max_upload=LIMIT, max_pixels=PIXELS)
    with made, TestClient(app) as client:
        yield made, client
        assert set(os.listdir(root)) == before
        assert not upkeep.verify(made, files=True)
        for key, (content, _) in service_world.pictures().items():
            answer = client.post("/v1/search", files={"image": content}, data={"k": "1"})
            assert answer.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-6), key


def saved(kind, size=(9, 7)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


KINDS = {kind: saved(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width, height, *chunks):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(50_000_000), 9)  # 49 KB
BOMBS = {
    "many pixels": png_file(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"\0" * 99))),
    "just too many": png_file(101, 100, chunk(b"IDAT", zlib.compress(bytes(101 * 304)))),
    "more data than pixels": png_file(8, 8, chunk(b"IDAT", ZEROS)),
    "text": png_file(8, 8, chunk(b"zTXt", b"a\0\0" + ZEROS), chunk(b"IDAT", b"")),
    "profile": png_file(8, 8, chunk(b"iCCP", b"a\0\0" + ZEROS), chunk(b"IDAT", b"")),
    "no pixels": png_file(0, 0, chunk(b"IDAT", b"")),
    "wide": png_file(9999, 1, chunk(b"IDAT", zlib.compress(bytes(9999 * 3 + 1)))),
    "gif": b"GIF89a"
    b"\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02L\x01\x00;",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "too long": b"\xff" * (LIMIT + 1),
}


@st.composite
def damaged(draw):
    content = bytearray(KINDS[draw(st.sampled_from(sorted(KINDS)))])
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


CONTENTS = st.one_of(
    st.sampled_from(sorted(KINDS.values())),
    damaged(),
    st.binary(max_size=64),
    st.sampled_from(sorted(BOMBS.values())),
)
TRICKS = st.one_of(
    st.sampled_from(
        [
            "a plain name",
            "über/東京.png",
            "../secret.png",
            "../../../../etc/passwd",
            "/etc/passwd",
            "gallery.db",
            "images/../../secret.png",
            "%2e%2e%2fsecret.png",
            "..\\secret.png",
            "a\0b",
            "a\r\nX-Evil: 1",
            "CON",
            "",
            ".",
            "'; DROP TABLE items; --",
            "<script>alert(1)</script>",
            "a" * 5000,
            "\u202etxt.png",
            "\udcff",
        ]
    ),
    st.text(max_size=40),
)


def checked(answer, *allowed):
    """One line of JSON with the same status, or what was asked for."""
    assert answer.status_code in {*allowed, 400, 401, 404, 405, 413, 415}, answer.text
    if answer.status_code >= 400:
        found = answer.json()
        assert found["status"] == answer.status_code
        assert found["error"].strip()
        assert "\n" not in found["error"]
        assert "Traceback" not in found["error"]
        assert len(found["error"]) < 1000
    return answer


def plain(text):
    """What an HTTP client can send of it in a form."""
    return text.encode("utf-8", "replace").decode()


@cases(200)
@given(CONTENTS, TRICKS, TRICKS, st.booleans())
def test_uploads(world, content, name, key, store):
    made, client = world
    files = {"image": (plain(name), content)}
    if not store:
        checked(client.post("/v1/search", files=files), 200)
        return
    form = {"key": plain(key), "label": plain(name)}
    answer = checked(client.post("/v1/items", files=files, data=form, headers=BEARER), 201)
    if answer.status_code == 201:
        item = made.item(answer.json()["key"])
        assert os.path.dirname(item.path) == "images"
        assert item.key == plain(key)
        gone = client.delete("/v1/items", params={"key": item.key}, headers=BEARER)
        assert gone.status_code == 200
    assert len(made.status()["unreadable"]) == 0
    assert made.status()["items"] == 12


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_bombs_are_refused(world, bomb):
    _, client = world
    answer = checked(client.post("/v1/search", files={"image": BOMBS[bomb]}), 200)
    assert answer.status_code in (
        (200,) if bomb in ("wide", "more data than pixels") else (400, 413)
    )


@cases(150)
@given(TRICKS)
def test_ids(world, key):
    _, client = world
    sent = plain(key)
    checked(client.post("/v1/search", json={"item": sent}))
    checked(client.delete("/v1/items", params={"key": sent}, headers=BEARER))
    path = "".join(f"%{byte:02x}" for byte in sent.encode())
    checked(client.get(f"/v1/items/{path}/image"), 200)
    checked(client.get(f"/v1/items/{path}"))


@pytest.mark.parametrize("number", ["0", "-1", "1e3", "9" * 18, "9" * 19, "9" * 5000, "١", "1.0"])
def test_numbers_of_items(world, number):
    _, client = world
    assert checked(client.get(f"/v1/items/{number}/image")).status_code == 404


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), TRICKS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["item", "k", "share", "merge", "rate", "batch", "resume", "model", "gallery", "seed"]
)
ACTIONS = ["canary", "promote", "backfill", "pause", "rollback", "retire", "gate"]


@cases(150)
@given(
    st.sampled_from(["search", *(f"upgrade/{action}" for action in ACTIONS)]),
    st.one_of(JSON, st.dictionaries(FIELDS, JSON, max_size=3)),
)
@example("search", {"item": "x", "k": 10**400})
@example("upgrade/canary", {"share": float("nan")})
@example("upgrade/backfill", {"rate": 1e308})
def test_fields(world, address, body):
    made, client = world
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **BEARER}
    checked(client.post(f"/v1/{address}", content=content, headers=headers), 409)
    assert made.status()["upgrade"] is None


@cases(150)
@given(
    st.sampled_from(["/v1/search", "/v1/items", "/v1/upgrade/canary"]),
    st.one_of(
        st.sampled_from(
            [
                "multipart/form-data",
                "multipart/form-data; boundary=b",
                "multipart/form-data; boundary=b; charset=nothing",
                "multipart/form-data; boundary=" + "b" * 300,
                "application/json",
                "application/json; charset=utf-7",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    ),
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"--b\r\n",
                    b"--b--\r\n",
                    b"\r\n",
                    b'Content-Disposition: form-data; name="image"; filename="x"\r\n',
                    b'Content-Disposition: form-data; name="k"\r\n',
                    b"Content-Disposition: form-data\r\n",
                    b"Content-Type: image/png\r\n",
                    KINDS["PNG"],
                    b"\xff\xfe\x00",
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
)
@example("/v1/search", "application/json", b"[" * 60_000)
@example("/v1/search", "application/json", b'{"k": ' + b"9" * 9_000 + b"}")
@example("/v1/search", "application/json", b'{"item": "' + b"x" * 70_000 + b'"}')
def test_bodies(world, address, kind, content):
    _, client = world
    checked(
        client.post(address, content=content, headers={"Content-Type": kind, **BEARER}),
        200,
        201,
        409,
    )


def test_a_body_without_a_length_is_cut_off(world):
    _, client = world
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield b"x" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/search", content=endless(), headers=headers).status_code in (400, 413)
