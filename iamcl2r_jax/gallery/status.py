"""What an operator wants to know of a gallery, as JSON values."""

import dataclasses
import sqlite3
from typing import Any

from iamcl2r_jax.gallery import state, transitions
from iamcl2r_jax.gallery.database import vectors_table
from iamcl2r_jax.gallery.records import Upgrade, View

_LISTED = 100  # unreadable images


def describe(connection: sqlite3.Connection) -> dict[str, Any]:
    """The state at one commit; `upgrade` is None before the first."""
    view = state.read_view(connection)
    return {
        "items": _count(connection, "items"),
        "serving": view.models[view.serving].name,
        "models": [
            {
                "id": model.id,
                "name": model.name,
                "serving": model.id == view.serving,
                **dataclasses.asdict(model.info),
            }
            for model in view.models.values()
        ],
        "generations": [
            {
                "id": generation,
                "model": view.models[model].name,
                "vectors": _count(connection, vectors_table(generation)),
                "base": generation == view.base,
            }
            for generation, model in view.generations.items()
        ],
        "upgrade": None if view.upgrade is None else _upgrade(connection, view, view.upgrade),
        "unreadable": [
            {"key": key, "reason": reason}
            for key, reason in connection.execute(
                "SELECT key, reason FROM unreadable JOIN items ON items.id = item "
                "ORDER BY item LIMIT ?",
                (_LISTED,),
            )
        ],
        "engine": state.setting(connection, state.ENGINE),
        "index": state.setting(connection, state.INDEX),
    }


def _upgrade(connection: sqlite3.Connection, view: View, upgrade: Upgrade) -> dict[str, Any]:
    found = dataclasses.asdict(upgrade)
    del found["scaling"]
    verdict = view.verdicts.get((upgrade.new_model, upgrade.base))
    if verdict is not None:
        names = ("compatible", "accepted", "details", "at")
        verdict = {name: getattr(verdict, name) for name in names}
    return found | {
        "old_model": view.models[upgrade.old_model].name,
        "new_model": view.models[upgrade.new_model].name,
        "verdict": verdict,
        "backfill": progress(connection, upgrade),
    }


def progress(connection: sqlite3.Connection, upgrade: Upgrade) -> dict[str, int] | None:
    """How far the backfill of an upgrade is; None before it begins and after it is retired.

    Returns:
      total, of items; done, those with a vector of the new model; passed, those that the watermark
      has passed; unreadable, those of them whose image could not be embedded.
    """
    if upgrade.state == transitions.RETIRED or not _count(connection, "ranks"):
        return None
    (passed,) = connection.execute(
        "SELECT count(*) FROM ranks WHERE rank < ?", (upgrade.watermark,)
    ).fetchone()
    return {
        "total": _count(connection, "items"),
        "done": _count(connection, vectors_table(upgrade.target)),
        "passed": passed,
        "unreadable": _count(connection, "unreadable"),
    }


def _count(connection: sqlite3.Connection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
