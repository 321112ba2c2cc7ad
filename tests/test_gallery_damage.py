"""Full disks, read-only places, several processes and damage: one line each, nothing lost."""

import contextlib
import os
import random
import resource
import sqlite3
import threading

import numpy as np
import pytest
from gallery_world import (
    embedders,
    entries,
    keys,
    new_gallery,
    pass_gate,
    promoted,
    units,
    write_images,
)

from iamcl2r_jax.gallery import Gallery, NewItem, Refused, backfill, indexing, upkeep
from iamcl2r_jax.gallery.database import FILE
from iamcl2r_jax.system.errors import DamagedError, InputError, LockedError, WriteError


@pytest.fixture
def gallery(tmp_path):
    with new_gallery(tmp_path / "g", 60) as made:
        yield made


@contextlib.contextmanager
def largest_file(size):
    """Files of this process cannot grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(gallery):
    for n in range(60, 10_000, 100):
        gallery.add(entries(n, n + 100), {"a": units(100, n)})


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_file_that_cannot_grow(tmp_path, gallery):
    size = os.path.getsize(tmp_path / "g" / f"{FILE}-wal")
    with largest_file(size), pytest.raises(WriteError) as error:
        fill(gallery)
    assert "what was acknowledged before is whole" in one_line(error)
    assert gallery.status()["items"] % 100 == 60
    assert upkeep.verify(gallery) == []
    gallery.add([NewItem("later")], {"a": units(1, 5)})  # once there is room
    assert keys(gallery.search(units(1, 5), model="a", k=1)) == [["later"]]


def test_a_full_database(gallery):
    with gallery.database.writing() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(WriteError, match="full"):
        fill(gallery)
    count = gallery.status()["items"]
    assert count % 100 == 60
    assert upkeep.verify(gallery) == []
    assert gallery.remove(["item0"]) == 1
    assert gallery.status()["items"] == count - 1


def test_a_disk_that_fills_during_a_backfill(tmp_path, pictured):
    with pictured.database.writing() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        backfill.run(pictured, embedders(), batch=1)
    except WriteError as error:
        assert "full" in str(error)  # noqa: PT017
    before = pictured.status()["upgrade"]["watermark"]
    with pictured.database.writing() as connection:
        connection.execute("PRAGMA max_page_count = 100000")
    assert backfill.run(pictured, embedders()).state == "complete"
    assert pictured.status()["upgrade"]["watermark"] >= before


def in_a_child_without_rights(action):
    """Calls a function as nobody, if we are root; returns what it returned, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writing, str(action()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as text:
        found = text.read()
    os.waitpid(child, 0)
    return found


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_directory_that_cannot_be_written(tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    place = tmp_path / "g"
    new_gallery(place, 3).close()

    def attempt():
        try:
            with Gallery(str(place)) as gallery:
                gallery.add([NewItem("new")], {"a": units(1, 5)})
        except (InputError, WriteError) as error:
            return f"{type(error).__name__}: {error}"
        return "written"

    place.chmod(0o555)
    (place / FILE).chmod(0o444)
    found = in_a_child_without_rights(attempt)
    place.chmod(0o755)
    (place / FILE).chmod(0o644)
    assert found.startswith(("InputError: gallery", "WriteError: gallery"))
    assert "\n" not in found
    with Gallery(str(place)) as again:
        assert again.status()["items"] == 3


@pytest.fixture
def pictured(tmp_path):
    write_images(tmp_path / "images", 12)
    with new_gallery(tmp_path / "p") as made:
        indexing.add_files(made, embedders(), indexing.sources(str(tmp_path / "images")))
        promoted(made)
        yield made


def test_two_coordinators(tmp_path, pictured):
    """The second backfill is told of the first; the second promotion of the state."""
    with Gallery(pictured.directory) as other:

        def meet(progress):
            with pytest.raises(LockedError, match="another process does its backfill"):
                backfill.run(other, embedders())
            with pytest.raises(Refused, match=f"promote: the upgrade is {progress.state}"):
                other.promote()
            met.append(progress.done)

        met = []
        backfill.run(pictured, embedders(), batch=7, report=meet)
        assert met == [7, 12]
        pictured.retire()
        with pytest.raises(Refused, match="there is no upgrade in progress"):
            other.rollback()


def test_one_of_two_simultaneous_promotions_is_refused(tmp_path):
    new_gallery(tmp_path / "g", 3).close()
    galleries = [Gallery(str(tmp_path / "g")) for _ in range(2)]
    pass_gate(galleries[0])
    galleries[0].canary(0.5)
    together, outcomes = threading.Barrier(2), []

    def promote(gallery):
        together.wait()
        try:
            gallery.promote()
            outcomes.append("promoted")
        except Refused:
            outcomes.append("refused")

    threads = [threading.Thread(target=promote, args=(gallery,)) for gallery in galleries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["promoted", "refused"]
    for gallery in galleries:
        gallery.close()


PAGE = 32768  # of the database


def overwrite(path, where, content):
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(content)


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 10, b"SQLite format 3\0" * 99])
def test_a_file_that_is_no_gallery(tmp_path, content):
    place = tmp_path / "g"
    place.mkdir()
    (place / FILE).write_bytes(content)
    with pytest.raises(DamagedError) as error:
        Gallery(str(place))
    assert str(place) in one_line(error)
    assert (place / FILE).read_bytes() == content


def test_a_gallery_of_another_version(tmp_path):
    new_gallery(tmp_path / "g").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "g" / FILE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="schema version 99, this program reads 1"):
        Gallery(str(tmp_path / "g"))


def damage(kind, connection):
    """One row of a gallery changed behind its back; what verify must say of it."""
    (vector,) = connection.execute("SELECT vector FROM vectors_1 WHERE item = 7").fetchone()
    flipped = bytes([vector[0] ^ 1]) + vector[1:]
    statement, value, says = {
        "bit": (
            "UPDATE vectors_1 SET vector = ? WHERE item = 7",
            flipped,
            "vector of item 7 is not",
        ),
        "short": ("UPDATE vectors_1 SET vector = ? WHERE item = 7", vector[:-4], "item 7"),
        "lost": ("DELETE FROM vectors_1 WHERE item = ?", 7, "lacks item 7"),
        "stray": (
            "INSERT INTO vectors_1 SELECT ?, crc, vector FROM vectors_1 WHERE item = 7",
            999,
            "item 999, which does not exist",
        ),
        "label": ("UPDATE items SET label = ? WHERE id = 7", "other", "item 7 ('item6'): its row"),
        "item": ("DELETE FROM items WHERE id = ?", 7, "item 7, which does not exist"),
        "setting": ("UPDATE settings SET value = ? WHERE name = 'serving'", 55, "serving model"),
    }[kind]
    connection.execute(statement, (value,))
    connection.commit()
    return says


@pytest.mark.parametrize("kind", ["bit", "short", "lost", "stray", "label", "item", "setting"])
def test_verify_finds_damage(tmp_path, gallery, kind):
    assert upkeep.verify(gallery) == []
    with contextlib.closing(sqlite3.connect(tmp_path / "g" / FILE)) as connection:
        says = damage(kind, connection)
    findings = upkeep.verify(gallery)
    assert any(says in finding for finding in findings), findings
    assert all("\n" not in finding for finding in findings)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_damaged_anywhere_are_found(tmp_path, seed):
    """64 bytes somewhere in the file are overwritten."""
    with new_gallery(tmp_path / "g", 60) as made:
        upkeep.backup(made, str(tmp_path / "copy"))  # one file, all pages in use
    path, rng = tmp_path / "copy" / FILE, random.Random(seed)
    content = path.read_bytes()
    # Rows are at the ends of pages; what is zero may be free.
    pages = [page for page in range(0, len(content), PAGE) if content[page + PAGE - 64]]
    where = rng.choice(pages) + PAGE - 64
    overwrite(path, where, bytes(255 - byte for byte in content[where : where + 64]))
    try:
        with Gallery(str(tmp_path / "copy")) as gallery:
            findings = upkeep.verify(gallery)
    except (DamagedError, InputError) as error:
        findings = [str(error)]
    assert findings


def test_verify_finds_what_an_engine_lacks(gallery):
    gallery.feed()
    assert upkeep.verify_store(gallery) == []
    gallery.store.delete(1, np.array([7]))
    gallery.store.write(1, np.array([8]), units(1, 99))
    assert upkeep.verify_store(gallery) == ["engine, generation 1: lacks item 7"]


def test_backup_of_a_live_gallery_gives_the_same_answers(tmp_path, pictured):
    stop, queries = threading.Event(), units(5, 3)

    def write():
        n = 0
        while not stop.is_set():
            pictured.add([NewItem(f"new{n}")], {m: units(1, n) for m in "ab"})
            n += 1

    writer = threading.Thread(target=write)
    writer.start()
    upkeep.backup(pictured, str(tmp_path / "live"))
    stop.set()
    writer.join()
    with Gallery(str(tmp_path / "live")) as copy:
        assert upkeep.verify(copy) == []
        assert copy.status()["items"] >= 12
    backfill.run(pictured, embedders(), batch=5, report=lambda p: pictured.pause())
    upkeep.backup(pictured, str(tmp_path / "mixed"))
    with Gallery(str(tmp_path / "mixed")) as copy:
        for model in "ab":
            expected = pictured.search(queries, model=model)
            assert copy.search(queries, model=model) == expected
        copy.resume()
        assert copy.status()["upgrade"]["watermark"] == pictured.status()["upgrade"]["watermark"]
    with pytest.raises(InputError, match="there is a gallery already"):
        upkeep.backup(pictured, str(tmp_path / "mixed"))


def test_a_backup_takes_the_images_inside_the_gallery_with_it(tmp_path, pictured):
    inside = os.path.join(pictured.directory, "images", "one.png")
    write_images(os.path.dirname(inside), 1)
    os.rename(os.path.join(os.path.dirname(inside), "class0", "0.png"), inside)
    indexing.add_files(pictured, embedders(), [indexing.Source("one", inside)])
    assert pictured.item("one").path == os.path.join("images", "one.png")
    upkeep.backup(pictured, str(tmp_path / "copy"))
    with Gallery(str(tmp_path / "copy")) as copy:
        assert copy.image_path(copy.item("one")) == str(tmp_path / "copy" / "images" / "one.png")
        assert upkeep.verify(copy, files=True) == []
