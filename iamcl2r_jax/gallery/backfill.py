"""Embeds the items of a gallery by the new model, while queries run.

All progress is in the database: the order of the items, the watermark and the vectors change in
one transaction a batch. A process that is killed loses the batch it was working on.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from iamcl2r_jax.gallery import (
    contents,
    feed,
    images,
    indexing,
    locks,
    orders,
    state,
    status,
    transitions,
    upgrades,
)
from iamcl2r_jax.gallery.embedder import Embedders
from iamcl2r_jax.gallery.gallery import Gallery
from iamcl2r_jax.gallery.records import Item, Model, View
from iamcl2r_jax.system.errors import InputError


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a backfill is.

    Attributes:
      total: items of the gallery.
      done: items with a vector of the new model.
      unreadable: items whose image could not be embedded; the old generation serves them.
      rate: items a second of this process; 0 before the first batch.
      seconds_left: at this rate; None before the first batch.
      state: of the upgrade.
      paused: whether it was paused.
    """

    total: int
    done: int
    unreadable: int
    rate: float
    seconds_left: float | None
    state: str
    paused: bool


def run(
    gallery: Gallery,
    embedders: Embedders,
    *,
    batch: int = 64,
    rate: float | None = None,
    seed: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Begins or continues the backfill of the upgrade, until it is complete, paused or undone.

    Unreadable images are noted and passed over; another call tries them again. An image that
    changed since it was added is embedded by the old model, too.

    Args:
      gallery, embedders: with a promoted upgrade, and those of its models.
      batch: items in a transaction.
      rate: most items a second; None for as fast as the model is.
      seed: of the order.
      report: called after each batch.

    Raises:
      Refused: in a state that does not allow it.
      LockedError: if another process does it.
      InputError: rate or batch is not positive.
    """
    if batch < 1 or (rate is not None and not rate > 0):
        raise InputError(f"batch={batch}, rate={rate}: must be positive")
    with locks.held(gallery.directory, "backfill"):
        again = _start(gallery, seed)
        start, count = time.monotonic(), 0
        while True:
            # Once those that were passed over before are through, on from the watermark.
            some, again = again[:batch], again[batch:]
            some, end = (some, None) if some else _next(gallery, batch)
            if not some or not _write(gallery, _embedded(gallery, embedders, some), end):
                break
            count += len(some)
            if rate is not None:
                time.sleep(max(0.0, start + count / rate - time.monotonic()))
            report(_progress(gallery, start, count))
        with gallery.database.writing() as connection:
            upgrades.finish_if_done(connection)
        return _progress(gallery, start, count)


def _start(gallery: Gallery, seed: int) -> list[int]:
    """Moves the upgrade to `backfilling`; returns the items that the watermark left behind."""
    with gallery.database.reading() as connection:
        view = state.read_view(connection)
        upgrades.current(view)
        begun = connection.execute("SELECT 1 FROM ranks LIMIT 1").fetchone()
        allowed = view.upgrade.state in transitions.TRANSITIONS["backfill"].sources
        order = [] if begun or not allowed else _order(connection, view, seed)
    with gallery.database.writing() as connection:
        view = state.read_view(connection)
        upgrades.start_backfill(connection, view, order)
        return upgrades.without_vector(connection, view.upgrade.target, view.upgrade.watermark)


def _order(connection, view: View, seed: int) -> list[int]:
    """Round robin over labels, or over cells of the stored vectors where most have none."""
    rows = connection.execute("SELECT id, label FROM items ORDER BY id").fetchall()
    ids = np.array([row[0] for row in rows], np.int64)
    labels = [row[1] for row in rows]
    if labels and labels.count(None) * 2 <= len(labels):
        groups = ["" if label is None else f"={label}" for label in labels]
    else:
        width = view.models[view.serving].info.width
        parts = list(feed.stored_vectors(connection, view.base, width))
        if not parts:
            return []
        ids = np.concatenate([part[0] for part in parts])
        groups = orders.cells(np.concatenate([part[1] for part in parts]), seed)
    return ids[orders.round_robin(groups, seed)].tolist()


def _next(gallery: Gallery, batch: int) -> tuple[list[int], int | None]:
    """The next items, none at the end, and the watermark once they are done."""
    with gallery.database.reading() as connection:
        upgrade = state.latest_upgrade(connection)
        rows = connection.execute(
            "SELECT rank, item FROM ranks WHERE rank >= ? ORDER BY rank LIMIT ?",
            (upgrade.watermark, batch),
        ).fetchall()
    return [row[1] for row in rows], rows[-1][0] + 1 if rows else None


@dataclasses.dataclass(frozen=True)
class _Work:
    """A batch after embedding.

    Attributes:
      upgrade: id of the upgrade that it was made for.
      items: as they were read, int [N].
      digests: of the files now.
      vectors: {model id: (positions in `items` [M], float32 [M, D])}.
      unreadable: {item id: reason}.
    """

    upgrade: int
    items: list[Item]
    digests: list[str]
    vectors: dict[int, tuple[list[int], np.ndarray]]
    unreadable: dict[int, str]


def _embedded(gallery: Gallery, embedders: Embedders, numbers: Sequence[int]) -> _Work:
    """Reads and embeds those of a batch that lack a vector of the new model."""
    with gallery.database.reading() as connection:
        view = state.read_view(connection)
        upgrade = view.upgrade
        width = view.models[upgrade.new_model].info.width
        there, _ = state.read_vectors(connection, upgrade.target, numbers, width)
        missing = [number for number in numbers if number not in set(there.tolist())]
        found = state.read_items(connection, missing)
    items, pictures, unreadable = [], [], {}
    new, old = view.models[upgrade.new_model], view.models[view.generations[upgrade.base]]
    for number in missing:
        if (item := found.get(number)) is None:  # removed meanwhile
            continue
        try:
            pictures.append(_read(gallery, item, new))
            items.append(item)
        except images.ImageError as error:
            unreadable[number] = str(error)
    digests = [picture.digest for picture in pictures]
    changed = [n for n, item in enumerate(items) if item.digest != digests[n]]
    vectors = {
        model.id: (positions, indexing.embed(embedders[model], [pictures[n] for n in positions]))
        for model, positions in ((new, list(range(len(items)))), (old, changed))
        if positions
    }
    return _Work(upgrade.id, items, digests, vectors, unreadable)


def _read(gallery: Gallery, item: Item, model: Model) -> images.Picture:
    """The image of an item, decoded as a model takes it."""
    path = gallery.image_path(item)
    if path is None:
        raise images.ImageError(f"item {item.key} was added without an image")
    picture = images.read(path)
    picture.at(model.info.image["size"])
    return picture


def _write(gallery: Gallery, work: _Work, end: int | None) -> bool:
    """One transaction: vectors, notes of unreadable images, watermark; False to stop."""
    with gallery.database.writing() as connection:
        view = state.read_view(connection)
        upgrade = view.upgrade
        going = upgrade.id == work.upgrade and upgrade.state == transitions.BACKFILLING
        if not going or upgrade.paused:
            return False
        stored = state.read_items(connection, [item.id for item in work.items])
        # What was replaced or removed while its image was embedded is not of these vectors.
        same = {n for n, item in enumerate(work.items) if stored.get(item.id) == item}
        generations = {view.generations[upgrade.base]: upgrade.base}
        generations[upgrade.new_model] = upgrade.target
        for model, (positions, vectors) in work.vectors.items():
            kept = [n for n, position in enumerate(positions) if position in same]
            numbers = [work.items[positions[n]].id for n in kept]
            checked = contents.checked_vectors(vectors[kept], len(kept), view.models[model])
            contents.write_vectors(connection, generations[model], numbers, checked)
        for n in same:
            item, digest = work.items[n], work.digests[n]
            if item.digest != digest:
                contents.update_digest(connection, item, digest)
        there = state.read_items(connection, list(work.unreadable))
        connection.executemany(
            "DELETE FROM unreadable WHERE item = ?", [(work.items[n].id,) for n in same]
        )
        connection.executemany(
            "INSERT OR REPLACE INTO unreadable VALUES (?, ?)",
            [(item, reason) for item, reason in work.unreadable.items() if item in there],
        )
        if end is not None:
            contents.set_watermark(connection, upgrade.id, end)
            upgrades.finish_if_done(connection)
        return True


def _progress(gallery: Gallery, start: float, count: int) -> Progress:
    """How far the backfill is, `count` items after `start` as of `time.monotonic`."""
    with gallery.database.reading() as connection:
        upgrade = state.latest_upgrade(connection)
        counts = status.progress(connection, upgrade)
    counts = counts or {"total": 0, "done": 0, "passed": 0, "unreadable": 0}
    left = max(0, counts["total"] - counts.pop("passed"))
    rate = count / max(time.monotonic() - start, 1e-9)
    return Progress(
        **counts,
        rate=rate,
        seconds_left=left / rate if rate else None,
        state=upgrade.state,
        paused=upgrade.paused,
    )
