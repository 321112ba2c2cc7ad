"""What a gallery holds, as plain records."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What identifies a model, and what decides whether its features can be compared at all."""

    digest: str  # SHA-256 of its checkpoint, in hexadecimal
    num_slots: int  # K, the rows of its classifier
    width: int  # D of its features
    slots: tuple[int, int]  # the range of the simplex that it was trained on, (first, last + 1)
    # {"size": pixels, "mean": [3], "std": [3]} of the images that it takes.
    image: Mapping[str, Any]
    path: str  # directory of its checkpoint
    normalisation: str = "l2"  # of its features as stored; "l2"


@dataclasses.dataclass(frozen=True)
class Model:
    """A registered model."""

    id: int  # its number in this gallery
    name: str  # chosen by the user, or the first twelve digits of its digest
    info: ModelInfo


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a model may search the vectors of a generation, and why."""

    model: int  # id of the searching model
    generation: int  # id of the generation searched
    compatible: bool  # what the gate found
    accepted: bool  # whether a person has allowed the pair although the gate found it incompatible
    details: Mapping[str, Any]  # the gate's figures
    at: float  # when, in seconds since 1970

    @property
    def allows(self) -> bool:
        """Whether the pair may be used."""
        return self.compatible or self.accepted


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """The replacement of the serving model by another one."""

    id: int  # its number; the latest is the one in progress, if any is
    state: str  # a key of `transitions.STATES`
    paused: bool  # a paused canary gets no queries, and a paused backfill embeds nothing
    old_model: int  # id of the model that serves until the promotion
    new_model: int  # id of the one that replaces it
    base: int  # id of the generation that held all items when the upgrade began
    target: int  # id of the new model's generation
    share: float  # of the queries that the canary gets, in [0, 1]
    merge: str  # how scores of the two generations are merged: "raw" or "zscore"
    # For "zscore" the mean and std of the scores of each generation, by its id.
    scaling: Mapping[int, tuple[float, float]]
    watermark: int  # items of a rank below it have been through the backfill
    updated: float  # when its state changed last, in seconds since 1970


@dataclasses.dataclass(frozen=True)
class NewItem:
    """An item to be added."""

    # Unique name chosen by the user, e.g. the image's relative path. A known key replaces.
    key: str
    digest: str = ""  # SHA-256 of the image file, in hexadecimal; "" where there is none
    # Where the image lies, absolute or relative to the gallery; None if it is not kept.
    path: str | None = None
    label: str | None = None  # class of the item, if it is known


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
    """One result of a search."""

    item: Item
    score: float  # cosine similarity; with merged z-scores the scaled one. Higher is nearer.
    model: str  # name of the model whose vector was found
    generation: int  # id of the generation of that vector


@dataclasses.dataclass(frozen=True)
class View:
    """The state of a gallery at one commit; everything a query is decided by."""

    models: Mapping[int, Model]  # by id
    generations: Mapping[int, int]  # {generation id: model id} of those that hold vectors
    verdicts: Mapping[tuple[int, int], Verdict]  # by (model id, generation id)
    serving: int  # id of the model that serves
    base: int  # id of the generation that holds every item
    upgrade: Upgrade | None  # the one in progress, or the latest one; None before the first
    # bool [largest item id + 1], whether an item is served from the upgrade's target; None where no
    # item is.
    renewed: np.ndarray | None
    all_renewed: bool  # whether every item is
    sequence: int  # number of the last change of vectors that the view includes
