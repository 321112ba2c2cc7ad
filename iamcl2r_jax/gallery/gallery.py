"""The gallery: what programs and services call."""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iamcl2r_jax.gallery import contents, database, feed, state, status, upgrades
from iamcl2r_jax.gallery.database import Database, record_event
from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.merging import merged
from iamcl2r_jax.gallery.records import Hit, Item, Model, ModelInfo, NewItem, Verdict, View
from iamcl2r_jax.gallery.store import EXACT, MEMORY, StoreError, VectorStore, open_store
from iamcl2r_jax.system.errors import InputError


class Gallery:
    """A persistent collection of items, searched by one model and upgraded to the next.

    Threads and processes may share a gallery: every write is a transaction that is on disk when
    the call returns, every query sees the last commit, whoever made it.

    Attributes:
      directory: where it lies.
      database: its connections, for the modules of this package.
      store: what searches; None before the first search.
    """

    def __init__(self, directory: str, *, store: VectorStore | None = None):
        """Opens a gallery; vectors are read at the first search.

        Args:
          directory: of the gallery.
          store: searches; by default the engine that the gallery was made with.

        Raises:
          InputError: if there is none, or it is of another version.
          DamagedError: if its database is damaged.
        """
        self.directory = directory
        self.database = Database(directory)
        self.store, self._own_store = store, store is None
        self._lock = threading.RLock()  # of the view and of feeding the store
        self._version: int | None = None
        self._view: View | None = None
        self._fed: int | None = None

    @classmethod
    def create(
        cls,
        directory: str,
        model: ModelInfo,
        *,
        name: str | None = None,
        engine: str = MEMORY,
        index: str = EXACT,
    ) -> "Gallery":
        """Makes an empty gallery that is served by a model.

        Args:
          directory: made if it is missing; must hold no gallery.
          model, name: the first one; by default named by the beginning of its digest.
          engine, index: what searches, see `store.open_store`.

        Raises:
          InputError: if there is a gallery already, or no such engine.
          WriteError: if the place cannot be written.
        """
        store = open_store(engine, index)
        _require_empty(store, engine)

        def fill(connection):
            number = contents.register(connection, model, name)
            generation = contents.new_generation(connection, number)
            for setting, value in (
                (state.SERVING, number),
                (state.BASE, generation),
                (state.ENGINE, engine),
                (state.INDEX, index),
            ):
                state.put_setting(connection, setting, value)
            record_event(connection, "init", None, {"engine": engine, "index": index})

        database.create(directory, fill)
        gallery = cls(directory)
        if store.persistent:
            gallery.feed()  # takes possession of the place
        return gallery

    def close(self) -> None:
        """Closes files and connections; nothing is left to be written."""
        with self._lock:
            if self.store is not None and self._own_store:
                self.store.close()
            self.database.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- State --------------------------------------------------------------------------------

    def view(self) -> View:
        """The state as of the last commit, without `renewed`; cheap enough for every query."""
        return self._refreshed(feeds=False)

    def model(self, name: str) -> Model:
        """The registered model of that name or digest.

        Raises:
          InputError: if there is none.
        """
        return state.find_model(self.view().models.values(), name)

    def route(self, request: str) -> Model:
        """The model that is to embed and answer a request: the serving one, or the canary."""
        view = self.view()
        return view.models[state.route(view, request)]

    def writing_models(self) -> list[Model]:
        """The models by which a new item must be embedded now."""
        view = self.view()
        return [view.models[model] for model in state.writing_generations(view).values()]

    def status(self) -> dict[str, Any]:
        """What an operator wants to know, as JSON values."""
        with self.database.reading() as connection:
            found = status.describe(connection)
        return {"directory": os.path.abspath(self.directory)} | found

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest lines of the event log, newest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT id, at, action, upgrade, details FROM events ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            {"id": n, "at": at, "action": action, "upgrade": upgrade, **json.loads(details)}
            for n, at, action, upgrade, details in rows
        ]

    # --- Items --------------------------------------------------------------------------------

    def add(self, items: Sequence[NewItem], vectors: Mapping[str, np.ndarray]) -> list[int]:
        """Adds items, or replaces those of the same keys, in one transaction.

        Args:
          items: with keys that differ.
          vectors: {model name: float32 [N, D] of unit length} of all `writing_models`.

        Returns:
          The numbers of the items, once all are on disk.

        Raises:
          InputError: a vector is not finite, not of unit length or of another width; two keys are
            the same; nothing is written.
          OutdatedError: vectors of a model are missing, since an upgrade began meanwhile.
        """
        keys = {item.key for item in items}
        if len(keys) != len(items) or "" in keys:
            raise InputError("key: every item needs one of its own, and none may be empty")
        models = self.view().models.values()
        checked = {}
        for name, rows in vectors.items():
            model = state.find_model(models, name)
            checked[model.id] = contents.checked_vectors(rows, len(items), model)
        with self.database.writing() as connection:
            view = state.read_view(connection)
            return contents.write_items(connection, view, items, checked)

    def remove(self, keys: Sequence[str]) -> int:
        """Removes items with all their vectors; returns how many there were.

        Raises:
          InputError: if a key is unknown; then none is removed.
        """
        with self.database.writing() as connection:
            count = contents.remove_items(connection, state.read_view(connection), keys)
            record_event(connection, "remove", None, {"items": count})
            return count

    def items(self, numbers: Sequence[int]) -> dict[int, Item]:
        """Stored items by number; those that are not there are left out."""
        with self.database.reading() as connection:
            return state.read_items(connection, numbers)

    def item(self, key: str) -> Item | None:
        """The stored item of that key."""
        with self.database.reading() as connection:
            row = connection.execute(
                "SELECT id, key, digest, path, label FROM items WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Item(*row)

    def image_path(self, item: Item) -> str | None:
        """Where an item's image lies, absolute; None if it is not kept."""
        return None if item.path is None else os.path.join(self.directory, item.path)

    # --- Search -------------------------------------------------------------------------------

    def search(self, vectors: np.ndarray, *, model: str, k: int = 10) -> list[list[Hit]]:
        """The k nearest items to each query, best first.

        Args:
          vectors: queries embedded by the model, float32 [Q, D] of unit length.
          model: its name, as of `route`.

        Raises:
          InputError: the vectors are not as they must be, or there is no such model.
          Refused: the model may not search the vectors that are stored.
          StoreError: the engine does not answer, or has lost its vectors.
        """
        found = self.search_arrays(vectors, model=model, k=k)
        items = self.items(np.unique(found[0]).tolist())
        view = self.view()
        names = {generation: view.models[m].name for generation, m in view.generations.items()}
        return [
            [
                Hit(items[item], score, names.get(generation, ""), generation)
                for item, score, generation in zip(*of_query, strict=True)
                if item in items
            ]
            for of_query in zip(*(array.tolist() for array in found), strict=True)
        ]

    def search_arrays(
        self, vectors: np.ndarray, *, model: str, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `search`: numbers of items (-1: none), scores and generations, each [Q, k]."""
        if k < 1:
            raise InputError(f"k={k}: must be at least 1")
        for _ in range(3):
            view = self.feed()
            asking = state.find_model(view.models.values(), model)
            queries = contents.checked_vectors(vectors, len(vectors), asking)
            parts = state.plan(view, asking.id)
            try:
                found = [
                    (generation, *self.store.search(generation, queries, k, keep))
                    for generation, keep in parts
                ]
            except KeyError as error:  # retired between the view and the search
                lost = error
                continue
            return merged(found, view, k)
        raise StoreError(
            f"the engine has lost the vectors of generation {lost}; run `gallery.py refill`"
        ) from lost

    def feed(self) -> View:
        """Brings the store into step with the last commit, as every search does; returns it."""
        return self._refreshed(feeds=True)

    def _refreshed(self, *, feeds: bool) -> View:
        with self._lock:
            version = self.database.data_version()
            if version != self._version or (feeds and self._fed is None):
                self._refresh(feeds)
                self._version = version
            return self._view

    def _refresh(self, feeds: bool) -> None:
        if self._fed is None and not feeds:
            with self.database.reading() as connection:
                self._view = state.read_view(connection)
            return
        if self.store is None:
            with self.database.reading() as connection:
                engine, index = (state.setting(connection, s) for s in (state.ENGINE, state.INDEX))
            self.store = open_store(engine, index)
        before = None if self._fed is None else self._view
        with feed.turn(self.directory, self.store), self.database.reading() as connection:
            view = state.read_view(connection)
            since = feed.position(connection) if self.store.persistent else self._fed
            if since is None:
                changed = feed.fill(connection, self.store, view)
            else:
                changed = feed.follow(connection, self.store, view, since)
            view = state.with_renewed(connection, view, before, changed)
        if self.store.persistent and since != view.sequence:
            with self.database.writing() as connection:
                feed.set_position(connection, view.sequence)
        self._view = view
        self._fed = view.sequence

    # --- Upgrades -----------------------------------------------------------------------------

    def register(self, info: ModelInfo, name: str | None = None) -> Model:
        """Registers a model; one that is known already is returned as it is.

        Raises:
          InputError: if the name is taken.
          Refused: if its features cannot be compared with those stored, whatever a gate finds.
        """
        with self.database.writing() as connection:
            number = contents.register(connection, info, name)
            models = state.read_models(connection)
        return next(model for model in models if model.id == number)

    def record_gate(
        self,
        model: str,
        *,
        compatible: bool,
        details: Mapping[str, Any],
        base: int | None = None,
        accept: bool = False,
        merge: str = "raw",
        scaling: Mapping[int, tuple[float, float]] | None = None,
    ) -> Verdict:
        """Begins the upgrade to a model, unless it has begun, and writes what the gate found.

        Args:
          model: name of the new model.
          compatible: whether it may search the gallery's base generation.
          details: the gate's figures, JSON values.
          base: id of the generation that the gate looked at; None for the base as it is now.
          accept: allow it although it is not compatible; recorded in the event log.
          merge: how scores of both generations are best merged, "raw" or "zscore".
          scaling: {generation id: (mean, std)} of scores, for "zscore"; the key of the target may
            be given as 0, since it is only made here.

        Raises:
          InputError: the model serves already or is not registered.
          Refused: another upgrade is in progress, or the base is another generation by now.
        """
        with self.database.writing() as connection:
            view = state.read_view(connection)
            if base not in (None, view.base):
                raise Refused("the stored vectors were replaced while the gate ran; run it again")
            number = state.find_model(view.models.values(), model).id
            upgrade = upgrades.begin(connection, view, number)
            scaling = {(key or upgrade.target): of for key, of in (scaling or {}).items()}
            verdict = Verdict(
                number, upgrade.base, compatible, accept and not compatible, details, time.time()
            )
            upgrades.record_gate(connection, upgrade, verdict, merge, scaling)
            return verdict

    def canary(self, share: float) -> None:
        """See `upgrades.canary`."""
        self._transition(upgrades.canary, share)

    def promote(self, merge: str | None = None) -> None:
        """See `upgrades.promote`."""
        self._transition(upgrades.promote, merge)

    def pause(self) -> None:
        """Stops the canary or the backfill where it is; see `upgrades.set_paused`."""
        self._transition(upgrades.set_paused, True)

    def resume(self) -> None:
        """Lets a paused canary or backfill go on; see `upgrades.set_paused`."""
        self._transition(upgrades.set_paused, False)

    def rollback(self) -> None:
        """See `upgrades.rollback`."""
        self._transition(upgrades.rollback)

    def retire(self) -> int:
        """See `upgrades.retire`."""
        return self._transition(upgrades.retire)

    def _transition(self, action, *arguments):
        with self.database.writing() as connection:
            return action(connection, state.read_view(connection), *arguments)


def _require_empty(store: VectorStore, engine: str) -> None:
    """Raises `InputError` if a store that is meant for a new gallery holds another's vectors."""
    try:
        store.read(1)
    except KeyError:
        return
    finally:
        store.close()
    raise InputError(f"engine={engine}: holds vectors of another gallery; choose another name")
