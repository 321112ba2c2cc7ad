"""What the figures of an upgrade say: deploy as is, with a map, re-embed, or train."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.evaluation.intervals import paired_intervals
from iamcl2r_jax.evaluation.ways import (
    AS_IS,
    MAP,
    RE_EMBED,
    Models,
    Upgrade,
    Way,
    described,
    hash_order,
)

DEPLOY, TRAIN = "deploy", "train"


@dataclasses.dataclass(frozen=True)
class Difference:
    """What one way gains over another on the same queries, in [-1, 1], with its interval."""

    gain: float
    interval: tuple[float, float]

    @property
    def settled(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def sure(self) -> bool:
        """Whether it is a gain, and the interval says so."""
        return self.interval[0] > 0

    def __str__(self):
        low, high = (100 * end for end in self.interval)
        return f"{100 * self.gain:+.1f} points [{low:+.1f}, {high:+.1f}]"


def advise(
    upgrade: Upgrade, query_ids: np.ndarray, names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """The advice for one upgrade.

    If there are maps, one half of the queries chooses the best of those with the most pairs, and
    the other half judges it and everything else: what is chosen is not judged on what chose it.

    Args:
      upgrade: every way.
      query_ids: [Q]; their hash halves the queries.
      names: of the models, oldest first, for the text.
      seed: of the bootstrap.

    Returns:
      `verdict` ("deploy", "map", "re-embed" or "train"), the `map` and its `direction`, the `start`
      to train from, `compatible` (whether what may be deployed beats the old model), `settled`
      (whether the interval of the gain it rests on excludes zero), `text` (a list of sentences),
      and `queries`, how many judged.
    """
    as_is = next((way for way in upgrade.ways if way.kind == AS_IS), None)
    mapped = [way for way in upgrade.ways if way.kind == MAP]
    order = hash_order(query_ids)
    choose, judge = np.split(order, [len(order) // 2]) if mapped else (order, order)
    best = None
    if mapped:
        most = max(way.pairs for way in mapped)
        mapped = [way for way in mapped if way.pairs == most]
        best = max(mapped, key=lambda way: way.values[choose].mean())

    def difference(new: np.ndarray, old: np.ndarray) -> Difference:
        gap = np.subtract(new[judge], old[judge], dtype=np.float32)
        ((low, high),) = paired_intervals(gap[np.newaxis], seed)
        return Difference(float(gap.mean(dtype=np.float64)), (float(low), float(high)))

    gains = {id(w): difference(w.values, upgrade.before) for w in (as_is, best) if w is not None}
    new_own = upgrade.ways[-1].values
    own = difference(new_own, upgrade.before)
    way = _deployable(as_is, best, gains, difference)
    found = {"map": None, "direction": None, "start": None, "queries": len(judge)}
    if way is not None:
        gain, rest = gains[id(way)], difference(new_own, way.values)
        found |= {"map": way.map, "direction": way.direction, "settled": gain.settled}
        verdict = DEPLOY if way.kind == AS_IS else MAP
        text = [f"{_named(way)}: {gain} over the old model on its own gallery."]
        text += _unsettled(gain)
        doubt = "" if rest.sure else ", which is not above zero for sure"
        text.append(f"Re-embedding the gallery would add {rest}{doubt}.")
    elif own.gain > 0:
        verdict, found["start"] = RE_EMBED, names[upgrade.new]
        found["settled"] = own.settled
        text = [
            f"Re-embed the gallery: {own} for the new model on its own gallery over the old one on "
            "its own."
        ]
        text += _unsettled(own)
        for tried in (as_is, best):
            if tried is not None:
                deployed = _named(tried).replace("Deploy", "Deployed", 1)
                text.append(f"{deployed}, it gains {gains[id(tried)]}.")
        text.append(
            "If re-embedding is out of the question, train a compatible model from "
            f"{found['start']}, the better of the two; nothing here measures what that would reach."
        )
    else:
        verdict, found["start"] = TRAIN, names[upgrade.old if own.gain < 0 else upgrade.new]
        found["settled"] = own.settled
        text = [
            f"Keep the old model, and train from {found['start']} on images like these: even on a "
            f"gallery of its own the new model gains {own}, so that neither a map nor re-embedding "
            "helps."
        ]
        text += _unsettled(own)
    return {"verdict": verdict, "compatible": way is not None, "text": text} | found


def advise_all(models: Models, names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Of each upgrade `old`, `new`, the accuracy `before` it, its `ways` and the `advice`."""
    titles, found = [table.name for table in models.tables], []
    for new in range(len(titles)):
        for old in range(new):
            upgrade = models.upgrade(old, new, names, seed)
            found.append(
                {
                    "old": old,
                    "new": new,
                    "before": float(upgrade.before.mean()),
                    "ways": described(upgrade, seed),
                    "advice": advise(upgrade, models.query_ids, titles, seed),
                }
            )
    return found


def _deployable(as_is, best, gains, difference) -> Way | None:
    """The way to deploy: as is, unless only a map gains, or a map surely gains more."""
    candidates = [w for w in (as_is, best) if w is not None and gains[id(w)].gain > 0]
    if len(candidates) == 2:
        surer = gains[id(best)].sure and not gains[id(as_is)].sure
        return best if surer or difference(best.values, as_is.values).sure else as_is
    return candidates[0] if candidates else None


def _named(way: Way) -> str:
    if way.kind == AS_IS:
        return "Deploy as is"
    what = "the queries" if way.direction == maps.QUERIES else "the stored gallery"
    title = maps.MAPS[way.map].title
    return f"Deploy with a map on {what}, {way.map} ({title}), fitted on {way.pairs:,} pairs"


def _unsettled(gain: Difference) -> list[str]:
    if gain.settled:
        return []
    return ["The interval holds zero: these queries do not settle the sign. Bring more of them."]
