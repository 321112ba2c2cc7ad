"""Brings a store into step with the database."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from iamcl2r_jax.gallery import locks, state
from iamcl2r_jax.gallery.database import vectors_table
from iamcl2r_jax.gallery.records import View
from iamcl2r_jax.gallery.store import StoreError, VectorStore

_ROWS = 512  # at a time; more than the cache holds is slower
_WAIT = 600.0  # seconds; a gallery of a million is fed in less
_FED = "fed"


@contextmanager
def turn(directory: str, store: VectorStore) -> Iterator[None]:
    """Waits until no other process feeds a persistent store.

    Raises:
      LockedError: if that takes too long.
    """
    if not store.persistent:
        yield
        return
    with locks.held(directory, "feed", wait=_WAIT):
        yield


def fill(connection: sqlite3.Connection, store: VectorStore, view: View) -> dict[int, set[int]]:
    """Gives an empty store, or one of unknown contents, every vector; for the rest see `follow`."""
    for (generation,) in connection.execute("SELECT id FROM generations WHERE NOT live"):
        store.drop(generation)
    for generation, model in view.generations.items():
        width = view.models[model].info.width
        if store.persistent:  # it may hold items that were removed meanwhile
            store.drop(generation)
        store.create(generation, width)
        for items, vectors in stored_vectors(connection, generation, width):
            store.write(generation, items, vectors)
    return {}


def stored_vectors(
    connection: sqlite3.Connection, generation: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All vectors of a generation in parts: (items int64 [N], vectors float32 [N, D])."""
    rows = connection.execute(f"SELECT item, vector FROM {vectors_table(generation)} ORDER BY item")
    while some := rows.fetchmany(_ROWS):
        vectors = np.frombuffer(b"".join([row[1] for row in some]), np.float32)
        yield np.array([row[0] for row in some], np.int64), vectors.reshape(-1, width)


def follow(
    connection: sqlite3.Connection, store: VectorStore, view: View, sequence: int
) -> dict[int, set[int]]:
    """Gives a store what changed since a sequence number.

    Args:
      connection, view: a transaction, and the state in it.
      store: in step with the database as of `sequence`.
      sequence: see `View.sequence`.

    Returns:
      {generation id: items whose vectors changed}.

    Raises:
      StoreError: if it lacks a generation that is older than that.
    """
    changed = _everything(connection, store, view) if _pruned(connection, sequence) else {}
    rows = connection.execute(
        "SELECT generation, items FROM changes WHERE sequence > ? ORDER BY sequence", (sequence,)
    )
    for generation, items in rows:
        changed.setdefault(generation, set()).update(np.frombuffer(items, np.int64).tolist())
    for (generation,) in connection.execute("SELECT id FROM generations WHERE NOT live"):
        store.drop(generation)
    for generation, model in view.generations.items():
        width = view.models[model].info.width
        known = changed.get(generation, set())
        if store.create(generation, width) and not _items(connection, generation) <= known:
            store.drop(generation)  # so that the next process is told, too
            raise StoreError(
                f"the engine has lost the vectors of generation {generation}; run `gallery.py "
                "refill`"
            )
        items = sorted(known)
        for start in range(0, len(items), _ROWS):
            some = items[start : start + _ROWS]
            there, vectors = state.read_vectors(connection, generation, some, width)
            gone = np.setdiff1d(some, there)
            if len(there):
                store.write(generation, there, vectors)
            if len(gone):
                store.delete(generation, gone)
    return changed


def position(connection: sqlite3.Connection) -> int | None:
    """Up to which change the persistent store was fed; None if it never was."""
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (_FED,)).fetchone()
    return None if row is None else int(row[0])


def _pruned(connection: sqlite3.Connection, sequence: int) -> bool:
    """Whether changes after a sequence number were forgotten."""
    (first,) = connection.execute("SELECT min(sequence) FROM changes").fetchone()
    return sequence + 1 < (state.last_sequence(connection) + 1 if first is None else first)


def _everything(
    connection: sqlite3.Connection, store: VectorStore, view: View
) -> dict[int, set[int]]:
    """All items that the database or a store holds in each generation."""
    changed = {}
    for generation, model in view.generations.items():
        store.create(generation, view.models[model].info.width)
        held = store.read(generation)[0].tolist()
        changed[generation] = _items(connection, generation) | set(held)
    return changed


def _items(connection: sqlite3.Connection, generation: int) -> set[int]:
    return {row[0] for row in connection.execute(f"SELECT item FROM {vectors_table(generation)}")}


def set_position(connection: sqlite3.Connection, sequence: int) -> None:
    """Notes up to which change the persistent store was fed."""
    state.put_setting(connection, _FED, sequence)


def forget_position(connection: sqlite3.Connection) -> None:
    """Lets the persistent store be filled from the beginning, the next time it is fed."""
    connection.execute("DELETE FROM settings WHERE name = ?", (_FED,))
