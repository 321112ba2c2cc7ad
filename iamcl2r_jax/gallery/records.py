"""What a gallery holds, as plain records."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What identifies a model, and what decides whether its features can be compared at all.

    Attributes:
      digest: SHA-256 of its checkpoint, in hexadecimal.
      num_slots: K, the rows of its classifier.
      width: D of its features.
      slots: the range of the simplex that it was trained on, (first, last + 1).
      image: {"size": pixels, "mean": [3], "std": [3]} of the images that it takes.
      path: directory of its checkpoint.
      normalisation: of its features as stored; "l2".
    """

    digest: str
    num_slots: int
    width: int
    slots: tuple[int, int]
    image: Mapping[str, Any]
    path: str
    normalisation: str = "l2"


@dataclasses.dataclass(frozen=True)
class Model:
    """A registered model.

    Attributes:
      id: its number in this gallery.
      name: chosen by the user, or the first twelve digits of its digest.
    """

    id: int
    name: str
    info: ModelInfo


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a model may search the vectors of a generation, and why.

    Attributes:
      model: id of the searching model.
      generation: id of the generation searched.
      compatible: what the gate found.
      accepted: whether a person has allowed the pair although the gate found it incompatible.
      details: the gate's figures.
      at: when, in seconds since 1970.
    """

    model: int
    generation: int
    compatible: bool
    accepted: bool
    details: Mapping[str, Any]
    at: float

    @property
    def allows(self) -> bool:
        """Whether the pair may be used."""
        return self.compatible or self.accepted


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """The replacement of the serving model by another one.

    Attributes:
      id: its number; the latest is the one in progress, if any is.
      state: a key of `transitions.STATES`.
      paused: a paused canary gets no queries, and a paused backfill embeds nothing.
      old_model: id of the model that serves until the promotion.
      new_model: id of the one that replaces it.
      base: id of the generation that held all items when the upgrade began.
      target: id of the new model's generation.
      share: of the queries that the canary gets, in [0, 1].
      merge: how scores of the two generations are merged: "raw" or "zscore".
      scaling: for "zscore" the mean and std of the scores of each generation, by its id.
      watermark: items of a rank below it have been through the backfill.
      updated: when its state changed last, in seconds since 1970.
    """

    id: int
    state: str
    paused: bool
    old_model: int
    new_model: int
    base: int
    target: int
    share: float
    merge: str
    scaling: Mapping[int, tuple[float, float]]
    watermark: int
    updated: float


@dataclasses.dataclass(frozen=True)
class NewItem:
    """An item to be added.

    Attributes:
      key: unique name chosen by the user, e.g. the image's relative path. A known key replaces.
      digest: SHA-256 of the image file, in hexadecimal; "" where there is none.
      path: where the image lies, absolute or relative to the gallery; None if it is not kept.
      label: class of the item, if it is known.
    """

    key: str
    digest: str = ""
    path: str | None = None
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    """A stored item: `id` is its number in this gallery, for the rest see `NewItem`."""

    id: int
    key: str
    digest: str
    path: str | None
    label: str | None


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
      score: cosine similarity; with merged z-scores the scaled one. Higher is nearer.
      model: name of the model whose vector was found.
      generation: id of the generation of that vector.
    """

    item: Item
    score: float
    model: str
    generation: int


@dataclasses.dataclass(frozen=True)
class View:
    """The state of a gallery at one commit; everything a query is decided by.

    Attributes:
      models: by id.
      generations: {generation id: model id} of those that hold vectors.
      verdicts: by (model id, generation id).
      serving: id of the model that serves.
      base: id of the generation that holds every item.
      upgrade: the one in progress, or the latest one; None before the first.
      renewed: bool [largest item id + 1], whether an item is served from the upgrade's target; None
        where no item is.
      all_renewed: whether every item is.
      sequence: number of the last change of vectors that the view includes.
    """

    models: Mapping[int, Model]
    generations: Mapping[int, int]
    verdicts: Mapping[tuple[int, int], Verdict]
    serving: int
    base: int
    upgrade: Upgrade | None
    renewed: np.ndarray | None
    all_renewed: bool
    sequence: int
