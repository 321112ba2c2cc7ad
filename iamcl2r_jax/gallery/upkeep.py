"""Checks a gallery for damage, and copies it while it is in use."""

import itertools
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress

import numpy as np

from iamcl2r_jax.gallery import feed, images, state
from iamcl2r_jax.gallery.database import (
    FILE,
    SEALED,
    row_crc,
    sync_directory,
    table_crc,
    vectors_table,
)
from iamcl2r_jax.gallery.gallery import Gallery
from iamcl2r_jax.gallery.records import View
from iamcl2r_jax.gallery.store import MEMORY
from iamcl2r_jax.system.errors import DamagedError, InputError, WriteError

_LISTED = 20  # findings of one kind


def verify(gallery: Gallery, *, files: bool = False) -> list[str]:
    """What is wrong with a gallery, a line each; nothing is changed.

    SQLite's own check comes first. Then every row is compared with its checksum, every vector must
    be finite, of unit length and of its model's width, and every item must be in the base
    generation.

    Queries and writes may go on. With `files` every image file is compared with its digest, too.
    """
    with gallery.database.reading() as connection:
        try:
            rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
            findings = [f"database: {row[0]}" for row in rows if row[0] != "ok"]
            findings += [
                f"database: a row of {row[0]} refers to a missing row of {row[2]}"
                for row in connection.execute("PRAGMA foreign_key_check")
            ]
            view = state.read_view(connection)
            for kind in (
                _seals(connection),
                _items(connection),
                _vectors(connection, view),
                _upgrade(connection, view),
            ):
                findings += _first(kind)
        except sqlite3.DatabaseError as error:
            return [*findings, f"database: {' '.join(str(error).split())}"]
        except (ValueError, TypeError, KeyError, DamagedError) as error:
            return [*findings, f"database: its records cannot be read ({error})"]
        paths = (
            connection.execute("SELECT key, path, digest FROM items").fetchall() if files else []
        )
    return findings + _first(_files(gallery, paths))


def _first(findings: Iterator[str]) -> list[str]:
    listed = list(itertools.islice(findings, _LISTED))
    more = sum(1 for _ in findings)
    return listed + ([f"... and {more} more of this kind"] if more else [])


def _seals(connection: sqlite3.Connection) -> Iterator[str]:
    seals = dict(connection.execute("SELECT name, crc FROM seals"))
    for table in SEALED:
        if seals.get(table) != table_crc(connection, table):
            yield f"table {table}: is not as it was written"
    for number, *row, crc in connection.execute(
        "SELECT id, at, action, upgrade, details, crc FROM events"
    ):
        if row_crc(row) != crc:
            yield f"event {number}: is not as it was written"
    for number, items, crc in connection.execute("SELECT sequence, items, crc FROM changes"):
        if zlib.crc32(items) != crc:
            yield f"change {number}: is not as it was written"
    last = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    for table, column in (("items", "id"), ("changes", "sequence"), ("generations", "id")):
        (largest,) = connection.execute(f"SELECT max({column}) FROM {table}").fetchone()
        if last.get(table, 0) < (largest or 0):
            yield f"table {table}: its numbers would be given again"


def _items(connection: sqlite3.Connection) -> Iterator[str]:
    for number, key, digest, path, label, crc in connection.execute(
        "SELECT id, key, digest, path, label, crc FROM items"
    ):
        if row_crc((key, digest, path, label)) != crc:
            yield f"item {number} ({key!r}): its row is not as it was written"


def _vectors(connection: sqlite3.Connection, view: View) -> Iterator[str]:
    for generation, model in view.generations.items():
        width = view.models[model].info.width
        where = f"generation {generation} (model {view.models[model].name})"
        table = vectors_table(generation)
        for item, crc, vector in connection.execute(f"SELECT item, crc, vector FROM {table}"):
            if zlib.crc32(vector) != crc:
                yield f"{where}: the vector of item {item} is not as it was written"
            elif len(vector) != 4 * width:
                yield f"{where}: the vector of item {item} has not width {width}"
            elif not abs(np.linalg.norm(np.frombuffer(vector, np.float32)) - 1) <= 1e-3:
                yield f"{where}: the vector of item {item} is not finite and of unit length"
        for (item,) in connection.execute(
            f"SELECT item FROM {table} WHERE item NOT IN (SELECT id FROM items)"
        ):
            yield f"{where}: holds a vector of item {item}, which does not exist"
        if generation == view.base:
            for (item,) in connection.execute(
                f"SELECT id FROM items WHERE id NOT IN (SELECT item FROM {table})"
            ):
                yield f"{where}: lacks item {item}, though it must hold all"


def _upgrade(connection: sqlite3.Connection, view: View) -> Iterator[str]:
    if view.serving not in view.models or view.base not in view.generations:
        yield "settings: the serving model or the base generation does not exist"
    (end,) = connection.execute("SELECT max(rank) + 1 FROM ranks").fetchone()
    if end is not None:
        for (item,) in connection.execute(
            "SELECT id FROM items WHERE id NOT IN (SELECT item FROM ranks)"
        ):
            yield f"backfill: item {item} is not in its order"


def _files(gallery: Gallery, rows) -> Iterator[str]:
    for key, path, digest in rows:
        if path is None:
            continue
        try:
            picture = images.read(os.path.join(gallery.directory, path))
            if picture.digest != digest:
                yield f"image of {key!r} is not the one that was added; add it again"
        except images.ImageError as error:
            yield f"item {key!r}: {error}"


def verify_store(gallery: Gallery) -> list[str]:
    """Compares what the engine holds with the database, a line for each difference."""
    gallery.feed()
    findings = []
    with gallery.database.reading() as connection:
        view = state.read_view(connection)
        for generation, model in view.generations.items():
            width = view.models[model].info.width
            items, vectors = gallery.store.read(generation)
            parts = list(feed.stored_vectors(connection, generation, width))
            stored = np.concatenate([part[0] for part in parts] or [np.empty(0, np.int64)])
            where = f"engine, generation {generation}"
            for item in np.setdiff1d(stored, items):
                findings.append(f"{where}: lacks item {item}")
            for item in np.setdiff1d(items, stored):
                findings.append(f"{where}: holds item {item}, which was removed")
            if len(items) == len(stored) and len(stored) and (items == stored).all():
                there = np.concatenate([part[1] for part in parts])
                for row in np.flatnonzero((there != vectors).any(axis=1)):
                    findings.append(f"{where}: the vector of item {items[row]} differs")
    return findings


def refill(gallery: Gallery) -> None:
    """Gives an engine that keeps its vectors all of them again, as after it has lost some.

    Searches that come meanwhile may find less, or raise `StoreError`.

    Raises:
      InputError: if the engine keeps nothing, so that there is nothing to be mended.
      StoreError: if it does not answer.
    """
    with gallery.database.writing() as connection:
        if (engine := state.setting(connection, state.ENGINE)) == MEMORY:
            raise InputError(
                f"engine={engine}: it keeps nothing, every process fills its own from the database"
            )
        feed.forget_position(connection)
    gallery.feed()


def backup(gallery: Gallery, target: str) -> None:
    """Copies a gallery, as of one commit, while it is in use.

    Image files inside the gallery's directory are copied with it, others stay where they are.

    Raises:
      InputError: if there is a gallery already.
      WriteError: if the place cannot be written.
    """
    path = os.path.join(target, FILE)
    if os.path.exists(path):
        raise InputError(f"backup={target}: there is a gallery already; choose another place")
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(target, exist_ok=True)
        gallery.database.backup(draft)
        _copy_images(gallery.directory, draft, target)
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.link(draft, path)
        sync_directory(target)
    except OSError as error:
        raise WriteError(f"backup={target} cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            os.unlink(draft)


def _copy_images(directory: str, database: str, target: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        with connection:  # the copy has fed no server
            feed.forget_position(connection)
        paths = connection.execute("SELECT path FROM items WHERE path IS NOT NULL").fetchall()
    for (path,) in paths:
        copy = os.path.join(target, path)
        if not os.path.isabs(path) and not os.path.exists(copy):
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copy2(os.path.join(directory, path), copy)
