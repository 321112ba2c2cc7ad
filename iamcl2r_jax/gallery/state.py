"""Reads the state of a gallery from its database, and what follows from it for a query."""

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from iamcl2r_jax.gallery import transitions
from iamcl2r_jax.gallery.database import select_in, vectors_table
from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.records import Item, Model, ModelInfo, Upgrade, Verdict, View
from iamcl2r_jax.system.errors import InputError

SERVING, BASE, ENGINE, INDEX = "serving", "base", "engine", "index"


def setting(connection: sqlite3.Connection, name: str) -> str:
    """The value of a setting."""
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return row[0]


def put_setting(connection: sqlite3.Connection, name: str, value: object) -> None:
    """Writes a setting."""
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, str(value)))


def read_view(connection: sqlite3.Connection) -> View:
    """The state at this commit, without what is renewed; see `with_renewed`."""
    return View(
        models={model.id: model for model in read_models(connection)},
        generations=dict(
            connection.execute("SELECT id, model FROM generations WHERE live ORDER BY id")
        ),
        verdicts=_verdicts(connection),
        serving=int(setting(connection, SERVING)),
        base=int(setting(connection, BASE)),
        upgrade=latest_upgrade(connection),
        renewed=None,
        all_renewed=False,
        sequence=last_sequence(connection),
    )


def read_models(connection: sqlite3.Connection) -> list[Model]:
    """All registered models, in the order of registration."""
    rows = connection.execute(
        "SELECT id, name, digest, num_slots, width, slots, image, path, normalisation "
        "FROM models ORDER BY id"
    )
    return [
        Model(
            number,
            name,
            ModelInfo(
                digest=digest,
                num_slots=num_slots,
                width=width,
                slots=tuple(json.loads(slots)),
                image=json.loads(image),
                path=path,
                normalisation=normalisation,
            ),
        )
        for number, name, digest, num_slots, width, slots, image, path, normalisation in rows
    ]


def find_model(models: Iterable[Model], name: str) -> Model:
    """The model of that name, digest, or beginning of a digest of at least 6 digits.

    Raises:
      InputError: if there is none.
    """
    models = list(models)
    for model in models:
        beginning = len(name) >= 6 and model.info.digest.startswith(name)
        if name in (model.name, model.info.digest) or beginning:
            return model
    known = ", ".join(model.name for model in models)
    raise InputError(f"model={name!r}: this gallery has no such model; it has {known}")


def _verdicts(connection: sqlite3.Connection) -> dict[tuple[int, int], Verdict]:
    rows = connection.execute(
        "SELECT model, generation, compatible, accepted, details, at FROM verdicts"
    )
    return {
        (model, generation): Verdict(
            model, generation, bool(compatible), bool(accepted), json.loads(details), at
        )
        for model, generation, compatible, accepted, details, at in rows
    }


def latest_upgrade(connection: sqlite3.Connection) -> Upgrade | None:
    """The upgrade in progress, or the last one; None before the first."""
    row = connection.execute(
        "SELECT id, state, paused, old_model, new_model, base, target, share, merge, scaling, "
        "watermark, updated FROM upgrades ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    scaling = {int(key): tuple(value) for key, value in json.loads(row[9]).items()}
    return Upgrade(row[0], row[1], bool(row[2]), *row[3:9], scaling, *row[10:])


def last_sequence(connection: sqlite3.Connection) -> int:
    """Number of the last change of vectors; it never goes back."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return row[0] if row else 0


def read_items(connection: sqlite3.Connection, items: Sequence[int]) -> dict[int, Item]:
    """Stored items by number; those that are not there are left out."""
    statement = "SELECT id, key, digest, path, label FROM items WHERE id IN"
    rows = select_in(connection, statement, list(map(int, items)))
    return {row[0]: Item(*row) for row in rows}


def read_vectors(
    connection: sqlite3.Connection, generation: int, items: Sequence[int], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of those of some items that a generation holds: (items int64 [N], float32 [N, D])."""
    statement = f"SELECT item, vector FROM {vectors_table(generation)} WHERE item IN"
    rows = list(select_in(connection, statement, list(map(int, items))))
    vectors = np.frombuffer(b"".join([row[1] for row in rows]), np.float32)
    return np.array([row[0] for row in rows], np.int64), vectors.reshape(-1, width)


def with_renewed(
    connection: sqlite3.Connection,
    view: View,
    before: View | None,
    changed: Mapping[int, set[int]],
) -> View:
    """The view with `renewed` and `all_renewed`.

    Args:
      connection, view: a transaction, and the state in it.
      before: an earlier view, to start from; None to read all ranks.
      changed: {generation id: items whose vectors changed since then}.
    """
    upgrade = view.upgrade
    if upgrade is None or upgrade.state not in transitions.MIXED:
        return view
    largest = connection.execute("SELECT coalesce(max(id), 0) FROM items").fetchone()[0]
    renewed = np.zeros(largest + 1, bool)
    first = 0
    same = before is not None and before.upgrade is not None and before.upgrade.id == upgrade.id
    if same and before.renewed is not None:
        kept = min(len(before.renewed), len(renewed))
        renewed[:kept] = before.renewed[:kept]
        first = before.upgrade.watermark
    table = vectors_table(upgrade.target)
    rows = connection.execute(
        f"SELECT ranks.item FROM ranks JOIN {table} AS v ON v.item = ranks.item "
        "WHERE rank >= ? AND rank < ?",
        (first, upgrade.watermark),
    )
    renewed[[row[0] for row in rows]] = True
    for item in changed.get(upgrade.target, ()) if first else ():
        row = connection.execute(
            f"SELECT 1 FROM ranks JOIN {table} AS v ON v.item = ranks.item "
            "WHERE ranks.item = ? AND rank < ?",
            (item, upgrade.watermark),
        ).fetchone()
        if item < len(renewed):
            renewed[item] = row is not None
    (count,) = connection.execute("SELECT count(*) FROM items").fetchone()
    all_renewed = int(np.count_nonzero(renewed)) == count
    return dataclasses.replace(view, renewed=renewed, all_renewed=all_renewed)


def writing_generations(view: View) -> dict[int, int]:
    """{generation id: model id} that a new item gets a vector in, the base first."""
    generations = [view.base]
    if view.upgrade is not None and view.upgrade.state in transitions.BOTH:
        generations.append(view.upgrade.target)
    return {generation: view.generations[generation] for generation in generations}


def route(view: View, request: str) -> int:
    """Id of the model that answers a request: the serving one, or the canary.

    The choice depends on the request's id alone, so that a repeated one gets the same model.
    """
    upgrade = view.upgrade
    if upgrade is not None and upgrade.state == transitions.CANARY and not upgrade.paused:
        digest = hashlib.sha256(f"{upgrade.id}/{request}".encode()).digest()
        if int.from_bytes(digest[:8], "big") < upgrade.share * 2**64:
            return upgrade.new_model
    return view.serving


def require_allowed(view: View, model: int, generation: int) -> None:
    """Raises `Refused` unless a model may search a generation."""
    owner = view.generations.get(generation)
    if owner == model:
        return
    verdict = view.verdicts.get((model, generation))
    if verdict is not None and verdict.allows:
        return
    name, other = view.models[model].name, view.models[owner].name if owner else "?"
    why = "has not passed the gate" if verdict is None else "failed the gate"
    raise Refused(
        f"model {name} may not search the vectors of model {other}, since it {why}; run "
        f"`gallery.py gate` with --model={name}, or search with {view.models[view.serving].name}"
    )


def plan(view: View, model: int) -> list[tuple[int, np.ndarray | None]]:
    """Where a model searches: [(generation, items that count there or None for all)].

    Every item counts in exactly one of them.

    Raises:
      Refused: if the model may not search one of them.
    """
    parts: list[tuple[int, np.ndarray | None]] = [(view.base, None)]
    upgrade, renewed = view.upgrade, view.renewed
    if renewed is not None and upgrade.new_model == model and renewed.any():
        parts = [(upgrade.target, renewed), (view.base, ~renewed)]
        if view.all_renewed:
            parts = [(upgrade.target, None)]
    for generation, _ in parts:
        require_allowed(view, model, generation)
    return parts
