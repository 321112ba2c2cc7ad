"""Writes items and vectors, each call inside a transaction of the caller's."""

import json
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from iamcl2r_jax.gallery import state, transitions
from iamcl2r_jax.gallery.database import (
    create_vectors,
    record_event,
    row_crc,
    select_in,
    vectors_table,
)
from iamcl2r_jax.gallery.errors import OutdatedError, Refused
from iamcl2r_jax.gallery.records import Item, Model, ModelInfo, NewItem, View
from iamcl2r_jax.system.errors import InputError

_CHANGES_KEPT = 100_000  # a day of changes would be gigabytes
_PRUNED_EVERY = 1000
_UNIT = 1e-3  # how far from 1 the length of a stored vector may be


def register(connection: sqlite3.Connection, info: ModelInfo, name: str | None) -> int:
    """Writes a model, unless its digest is known, and returns its id.

    Raises:
      InputError: if the name is another model's.
      Refused: if its features cannot be compared with those stored.
    """
    models = state.read_models(connection)
    for model in models:
        if model.info.digest == info.digest:
            if name not in (None, model.name):
                raise InputError(
                    f"name={name}: this checkpoint is registered already, as {model.name}"
                )
            return model.id
        if name == model.name:
            raise InputError(f"name={name}: another model has this name; choose another")
        for field in ("num_slots", "width", "normalisation"):
            ours, theirs = getattr(info, field), getattr(model.info, field)
            if ours != theirs:
                raise Refused(
                    f"checkpoint {info.path} has {field}={ours}, the models of this gallery "
                    f"{theirs}; their features cannot be compared, so make another gallery for it"
                )
    cursor = connection.execute(
        "INSERT INTO models (name, digest, num_slots, width, slots, image, path, normalisation, "
        "at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            name or info.digest[:12],
            info.digest,
            info.num_slots,
            info.width,
            json.dumps(list(info.slots)),
            json.dumps(dict(info.image)),
            info.path,
            info.normalisation,
            time.time(),
        ),
    )
    record_event(connection, "register", None, {"digest": info.digest})
    return cursor.lastrowid


def new_generation(connection: sqlite3.Connection, model: int) -> int:
    """Makes an empty generation of a model and returns its id."""
    generation = connection.execute(
        "INSERT INTO generations (model, live, at) VALUES (?, 1, ?)", (model, time.time())
    ).lastrowid
    create_vectors(connection, generation)
    return generation


def drop_generation(connection: sqlite3.Connection, generation: int) -> None:
    """Removes the vectors of a generation for good."""
    connection.execute(f"DROP TABLE {vectors_table(generation)}")
    connection.execute("UPDATE generations SET live = 0 WHERE id = ?", (generation,))


def checked_vectors(vectors: np.ndarray, count: int, model: Model) -> np.ndarray:
    """Vectors as they are stored, float32 [N, D].

    Raises:
      InputError: if their number or width is wrong, or one is not finite or not of unit length.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.shape != (count, model.info.width):
        raise InputError(
            f"vectors of model {model.name}: must have shape {[count, model.info.width]}, got "
            f"{list(vectors.shape)}"
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))  # NaN compares as false
    if wrong.size:
        raise InputError(
            f"vectors of model {model.name}: row {wrong[0]} has length {lengths[wrong[0]]:g}; must "
            "be finite and of unit length"
        )
    return vectors


def write_items(
    connection: sqlite3.Connection,
    view: View,
    items: Sequence[NewItem],
    vectors: Mapping[int, np.ndarray],
) -> list[int]:
    """Adds items, or replaces those of the same keys, and their vectors.

    Args:
      connection, view: a writing transaction, and the state in it.
      items: with keys that differ.
      vectors: {model id: float32 [N, D], checked}, of those of `state.writing_generations`.

    Returns:
      Their numbers.

    Raises:
      OutdatedError: if the vectors of a model are missing.
    """
    targets = state.writing_generations(view)
    missing = [view.models[model].name for model in targets.values() if model not in vectors]
    if missing:
        raise OutdatedError(f"new items must now be embedded by {', '.join(missing)}, too")
    number_of = _numbers(connection, [item.key for item in items])
    known = sorted(number_of.values())
    new = [item.key for item in items if item.key not in number_of]
    number_of |= {key: number for number, key in enumerate(new, start=_next_number(connection))}
    ids = [number_of[item.key] for item in items]
    connection.executemany(
        "INSERT INTO items (id, key, digest, path, label, crc) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, path = excluded.path, "
        "label = excluded.label, crc = excluded.crc",
        (
            (number, *row, row_crc(row))
            for number, row in zip(
                ids, ((i.key, i.digest, i.path, i.label) for i in items), strict=True
            )
        ),
    )
    for generation, model in targets.items():
        write_vectors(connection, generation, ids, vectors[model])
    for generation in view.generations.keys() - targets.keys():  # of a model that was rolled back
        delete_vectors(connection, generation, known)
    connection.executemany("DELETE FROM unreadable WHERE item = ?", [(item,) for item in known])
    _rank(connection, view, [number_of[key] for key in new])
    return ids


def _numbers(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, int]:
    """Numbers of those of some keys that are known."""
    return dict(select_in(connection, "SELECT key, id FROM items WHERE key IN", keys))


def _next_number(connection: sqlite3.Connection) -> int:
    """The number of the next new item: none is given twice, even after its item was removed."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
    return row[0] + 1 if row else 1


def _rank(connection: sqlite3.Connection, view: View, new: Sequence[int]) -> None:
    """Places new items behind all others in the order of a backfill that has one."""
    upgrade = view.upgrade
    if upgrade is None or upgrade.state == transitions.RETIRED:
        return
    (end,) = connection.execute("SELECT max(rank) + 1 FROM ranks").fetchone()
    if end is None and upgrade.state not in transitions.MIXED:
        return
    end = max(end or 0, upgrade.watermark)
    connection.executemany(
        "INSERT INTO ranks VALUES (?, ?)", [(end + n, item) for n, item in enumerate(new)]
    )
    if upgrade.state == transitions.COMPLETE:  # they have their vector already
        set_watermark(connection, upgrade.id, end + len(new))


def set_watermark(connection: sqlite3.Connection, upgrade: int, watermark: int) -> None:
    """Moves the watermark of an upgrade; it never goes back."""
    connection.execute(
        "UPDATE upgrades SET watermark = max(watermark, ?) WHERE id = ?", (watermark, upgrade)
    )


def write_vectors(
    connection: sqlite3.Connection, generation: int, items: Sequence[int], vectors: np.ndarray
) -> None:
    """Writes vectors, float32 [N, D] and contiguous, of items in one generation."""
    connection.executemany(
        f"INSERT OR REPLACE INTO {vectors_table(generation)} VALUES (?, ?, ?)",
        ((item, zlib.crc32(vector), vector) for item, vector in zip(items, vectors, strict=True)),
    )
    _note_change(connection, generation, items)


def delete_vectors(connection: sqlite3.Connection, generation: int, items: Sequence[int]) -> None:
    """Removes the vectors of items from one generation."""
    if not len(items):
        return
    connection.executemany(
        f"DELETE FROM {vectors_table(generation)} WHERE item = ?", [(item,) for item in items]
    )
    _note_change(connection, generation, items)


def _note_change(connection, generation, items) -> None:
    numbers = np.asarray(items, np.int64).tobytes()
    sequence = connection.execute(
        "INSERT INTO changes (generation, items, crc) VALUES (?, ?, ?)",
        (generation, numbers, zlib.crc32(numbers)),
    ).lastrowid
    if sequence % _PRUNED_EVERY == 0:
        prune_changes(connection, _CHANGES_KEPT)


def prune_changes(connection: sqlite3.Connection, kept: int) -> None:
    """Forgets all but the last changes; a store that is further behind compares everything."""
    last = state.last_sequence(connection)
    connection.execute("DELETE FROM changes WHERE sequence <= ?", (last - kept,))


def remove_items(connection: sqlite3.Connection, view: View, keys: Sequence[str]) -> int:
    """Removes items with their vectors in every generation; returns how many there were.

    Raises:
      InputError: if a key is unknown; then none is removed.
    """
    number_of = _numbers(connection, keys)
    for key in keys:
        if key not in number_of:
            raise InputError(f"key={key!r}: there is no such item; nothing was removed")
    ids = sorted(number_of.values())
    for generation in view.generations:
        delete_vectors(connection, generation, ids)
    gone = [(item,) for item in ids]
    for table, column in (("ranks", "item"), ("unreadable", "item"), ("items", "id")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", gone)
    return len(ids)


def update_digest(connection: sqlite3.Connection, item: Item, digest: str) -> None:
    """Notes that an item's image is another one now."""
    crc = row_crc((item.key, digest, item.path, item.label))
    connection.execute("UPDATE items SET digest = ?, crc = ? WHERE id = ?", (digest, crc, item.id))
