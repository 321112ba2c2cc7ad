"""The actions on an upgrade, each inside one transaction of the caller's."""

import json
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from iamcl2r_jax.gallery import contents, state, transitions
from iamcl2r_jax.gallery.database import record_event, vectors_table
from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.records import Upgrade, Verdict, View
from iamcl2r_jax.system.errors import InputError

MERGES = ("raw", "zscore")
_REPLACEABLE = frozenset({transitions.REGISTERED, transitions.REFUSED, transitions.GATED})


def current(view: View) -> Upgrade:
    """The upgrade in progress.

    Raises:
      Refused: if there is none.
    """
    if view.upgrade is None or view.upgrade.state == transitions.RETIRED:
        raise Refused("there is no upgrade in progress; run `gallery.py gate` with a new model")
    return view.upgrade


def require_gate_allowed(view: View, new_model: int) -> None:
    """Raises unless a gate of a model may write its verdict now.

    Raises:
      InputError: if the model serves already.
      Refused: if an upgrade to another model has to be ended first, or that to this one has gone
        further.
    """
    upgrade = view.upgrade
    if upgrade is not None and upgrade.state != transitions.RETIRED:
        if upgrade.new_model == new_model:
            transitions.after("pass", upgrade.state)
            return
        other = view.models[upgrade.new_model].name
        if upgrade.state == transitions.ROLLED_BACK:
            raise Refused(
                f"the vectors of the rolled-back model {other} are still there; run `gallery.py "
                "retire` to remove them first"
            )
        if upgrade.state not in _REPLACEABLE:
            raise Refused(
                f"the upgrade to model {other} is {upgrade.state}; finish it or roll it back, and "
                "retire it, before another begins"
            )
    if new_model == view.serving:
        raise InputError(f"model={view.models[new_model].name}: it serves already")


def begin(connection: sqlite3.Connection, view: View, new_model: int) -> Upgrade:
    """The upgrade to a model: the one in progress, or a new one in state `registered`.

    Raises:
      InputError, Refused: see `require_gate_allowed`.
    """
    require_gate_allowed(view, new_model)
    upgrade = view.upgrade
    if upgrade is not None and upgrade.state != transitions.RETIRED:
        if upgrade.new_model == new_model:
            return upgrade
        contents.drop_generation(connection, upgrade.target)
        _act(connection, upgrade, "replace", transitions.RETIRED, {"by": new_model})
    target = contents.new_generation(connection, new_model)
    number = connection.execute(
        "INSERT INTO upgrades (state, paused, old_model, new_model, base, target, share, merge, "
        "scaling, watermark, updated) VALUES (?, 0, ?, ?, ?, ?, 0, 'raw', '{}', 0, ?)",
        (transitions.REGISTERED, view.serving, new_model, view.base, target, time.time()),
    ).lastrowid
    record_event(connection, "begin", number, {"model": new_model})
    _clear_backfill(connection)
    return state.latest_upgrade(connection)


def record_gate(
    connection: sqlite3.Connection,
    upgrade: Upgrade,
    verdict: Verdict,
    merge: str,
    scaling: Mapping[int, tuple[float, float]],
) -> None:
    """Writes what the gate found and moves the upgrade to `gated` or `refused`."""
    after = transitions.after("pass" if verdict.allows else "fail", upgrade.state)
    _check_merge(upgrade, merge, scaling)
    connection.execute(
        "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)",
        (
            verdict.model,
            verdict.generation,
            verdict.compatible,
            verdict.accepted,
            json.dumps(dict(verdict.details)),
            verdict.at,
        ),
    )
    connection.execute(
        "UPDATE upgrades SET merge = ?, scaling = ? WHERE id = ?",
        (merge, json.dumps(dict(scaling)), upgrade.id),
    )
    found = {"compatible": verdict.compatible, "accepted": verdict.accepted, "merge": merge}
    _act(connection, upgrade, "gate", after, found)


def canary(connection: sqlite3.Connection, view: View, share: float) -> None:
    """Gives the new model a share of the queries; from here on new items get both vectors.

    Raises:
      InputError: if the share is not in [0, 1].
      Refused: in a state that does not allow it.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share={share}: must be in [0, 1]")
    upgrade = _unpaused(view, "canary")
    after = transitions.after("canary", upgrade.state)
    state.require_allowed(view, upgrade.new_model, view.base)
    connection.execute("UPDATE upgrades SET share = ? WHERE id = ?", (share, upgrade.id))
    _act(connection, upgrade, "canary", after, {"share": share})


def promote(connection: sqlite3.Connection, view: View, merge: str | None = None) -> None:
    """The new model answers all queries, on the vectors that are there.

    Args:
      connection, view: a writing transaction, and the state in it.
      merge: how scores are merged during a backfill, of `MERGES`; None for what the gate found.
    """
    upgrade = _unpaused(view, "promote")
    after = transitions.after("promote", upgrade.state)
    state.require_allowed(view, upgrade.new_model, view.base)
    if merge is not None:
        _check_merge(upgrade, merge, upgrade.scaling)
        connection.execute("UPDATE upgrades SET merge = ? WHERE id = ?", (merge, upgrade.id))
    state.put_setting(connection, state.SERVING, upgrade.new_model)
    _act(connection, upgrade, "promote", after, {})


def start_backfill(connection: sqlite3.Connection, view: View, order: Sequence[int]) -> None:
    """Begins a backfill, or continues one that was interrupted.

    Args:
      connection, view: a writing transaction, and the state in it.
      order: items in the order of embedding; ignored if an order is kept from before. Items that
        it lacks follow behind.
    """
    upgrade = _unpaused(view, "backfill")
    after = transitions.after("backfill", upgrade.state)
    if connection.execute("SELECT 1 FROM ranks LIMIT 1").fetchone() is None:
        there = [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]
        known = set(there)
        ordered = (item for item in dict.fromkeys([*order, *there]) if item in known)
        connection.executemany(
            "INSERT INTO ranks VALUES (?, ?)", enumerate(ordered, start=upgrade.watermark)
        )
    if after != upgrade.state:
        _act(connection, upgrade, "backfill", after, {})


def finish_if_done(connection: sqlite3.Connection) -> None:
    """Completes a backfill that has passed every item."""
    upgrade = state.latest_upgrade(connection)
    (end,) = connection.execute("SELECT coalesce(max(rank) + 1, 0) FROM ranks").fetchone()
    if upgrade.state == transitions.BACKFILLING and upgrade.watermark >= end:
        _act(connection, upgrade, "finish", transitions.after("finish", upgrade.state), {})


def set_paused(connection: sqlite3.Connection, view: View, paused: bool) -> None:
    """Stops the canary or the backfill where it is, or lets it go on."""
    upgrade, action = current(view), "pause" if paused else "resume"
    transitions.after(action, upgrade.state)
    connection.execute("UPDATE upgrades SET paused = ? WHERE id = ?", (paused, upgrade.id))
    record_event(connection, action, upgrade.id, {})


def rollback(connection: sqlite3.Connection, view: View) -> None:
    """The old model answers all queries again; no vector is touched."""
    upgrade = current(view)
    after = transitions.after("rollback", upgrade.state)
    state.put_setting(connection, state.SERVING, upgrade.old_model)
    connection.execute("UPDATE upgrades SET paused = 0, share = 0 WHERE id = ?", (upgrade.id,))
    _act(connection, upgrade, "rollback", after, {"from": upgrade.state})


def retire(connection: sqlite3.Connection, view: View) -> int:
    """Ends an upgrade and removes the vectors that serve no longer.

    After a complete backfill those are the old model's; after a promotion that was never followed
    by a backfill, and after a rollback, the new model's.

    Returns:
      How many vectors were removed.

    Raises:
      Refused: if an item would be lost.
    """
    upgrade = current(view)
    after = transitions.after("retire", upgrade.state)
    removed = upgrade.target
    if upgrade.state == transitions.COMPLETE:
        left = len(without_vector(connection, upgrade.target))
        if left:
            raise Refused(
                f"retire: {left} items are only in the old generation and would be lost; mend the "
                "images that status lists and run backfill again, or remove these items"
            )
        removed = upgrade.base
        state.put_setting(connection, state.BASE, upgrade.target)
    (count,) = connection.execute(f"SELECT count(*) FROM {vectors_table(removed)}").fetchone()
    contents.drop_generation(connection, removed)
    _clear_backfill(connection)
    _act(connection, upgrade, "retire", after, {"generation": removed, "vectors": count})
    return count


def without_vector(
    connection: sqlite3.Connection, generation: int, below: int | None = None
) -> list[int]:
    """Items that a generation lacks, in their order; only those ranked below a number if given."""
    ranked = "" if below is None else f"AND ranks.rank < {int(below)}"
    rows = connection.execute(
        f"SELECT items.id FROM items LEFT JOIN ranks ON ranks.item = items.id "
        f"LEFT JOIN {vectors_table(generation)} AS v ON v.item = items.id "
        f"WHERE v.item IS NULL {ranked} ORDER BY ranks.rank, items.id"
    )
    return [row[0] for row in rows]


def _unpaused(view: View, action: str) -> Upgrade:
    upgrade = current(view)
    if upgrade.paused:
        raise Refused(f"{action}: the upgrade is paused; run `gallery.py pause --resume` first")
    return upgrade


def _check_merge(upgrade: Upgrade, merge: str, scaling: Mapping[int, tuple[float, float]]) -> None:
    if merge not in MERGES:
        raise InputError(f"merge={merge!r}: must be one of {', '.join(MERGES)}")
    missing = {upgrade.base, upgrade.target} - scaling.keys()
    if merge == "zscore" and missing:
        raise InputError("merge=zscore: needs the scaling of both generations")
    if not all(math.isfinite(mean) and 0 < std < math.inf for mean, std in scaling.values()):
        raise InputError(f"scaling={dict(scaling)}: must be finite means and positive stds")


def _clear_backfill(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM ranks")
    connection.execute("DELETE FROM unreadable")


def _act(connection, upgrade: Upgrade, action: str, after: str, details: dict[str, Any]) -> None:
    connection.execute(
        "UPDATE upgrades SET state = ?, updated = ? WHERE id = ?", (after, time.time(), upgrade.id)
    )
    record_event(connection, action, upgrade.id, details)
