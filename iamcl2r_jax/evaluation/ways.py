"""The ways to put a new model before a stored gallery: as it is, through a map, re-embedded.

A map is fitted on pairs, images that both models have embedded, and never on what is evaluated:
either on tables of pairs, or on one half of the gallery, and then only the other half is searched.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.evaluation.feature_tables import GALLERY, QUERY, FeatureTable, match
from iamcl2r_jax.evaluation.intervals import paired_intervals
from iamcl2r_jax.evaluation.searched import Gallery
from iamcl2r_jax.system.errors import InputError

AS_IS, MAP, RE_EMBED = "as is", "map", "re-embed"
NUM_PAIRS = (100, 1000, 10000)  # that maps are fitted on, where there are so many


@dataclasses.dataclass(frozen=True)
class Way:
    """What one way reaches.

    Attributes:
      kind: `AS_IS`, `MAP` or `RE_EMBED`.
      values: the metric of each query, [Q].
      map: key of `maps.MAPS`; None without one.
      direction: what it is applied to, see `maps`.
      pairs: how many it is fitted on.
      fit_seconds: of the fit, its compilation aside.
      query_seconds: added to each query.
      map_bytes: of its parameters.
      gallery_bytes: of the gallery's features that are written again, in float32.
    """

    kind: str
    values: np.ndarray
    map: str | None = None
    direction: str | None = None
    pairs: int | None = None
    fit_seconds: float = 0.0
    query_seconds: float = 0.0
    map_bytes: int = 0
    gallery_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """Every way from one model to a later one.

    Attributes:
      old, new: positions of the models, oldest first.
      before: the metric of each query by the old model on its own gallery, [Q].
      ways: as they are, if the widths allow; each map; re-embedded, last.
    """

    old: int
    new: int
    before: np.ndarray
    ways: list[Way]


class Models:
    """Features of the same images by two or more models, oldest first.

    Attributes:
      tables: of each model.
      metric: key of `retrieval.METRICS`.
      query_ids, query_labels: [Q].
      holds_out: whether half of the gallery is for fitting and not searched.
    """

    def __init__(
        self,
        tables: Sequence[FeatureTable],
        metric: str,
        pairs: Sequence[FeatureTable] | None = None,
        *,
        holds_out: bool = False,
        fits: dict[tuple, maps.Fitted] | None = None,
    ):
        """Matches the rows.

        Args:
          tables, metric, holds_out: see the attributes.
          pairs: tables of further images that maps are fitted on, whatever their split.
          fits: shared by those with the same pairs, so that each map is fitted once.

        Raises:
          InputError: if rows do not match, a pair is also a query, or there is nothing to search
            in or for.
        """
        self.tables, self.metric, self.holds_out = tables, metric, holds_out
        first = tables[0]
        self._rows = _matched(tables)  # [T, N]: row n of each is of the same image
        queries, stored = first.rows(QUERY), first.rows(GALLERY)
        if len(queries) < 2 or not len(stored):
            raise InputError(
                f"{first.name}: {len(stored):,} rows of the gallery and {len(queries):,} queries; "
                "there must be two queries and something to search in"
            )
        self.query_ids, self.query_labels = first.ids[queries], first.labels[queries]
        if not np.isin(self.query_labels, first.labels[stored]).any():
            raise InputError(f"{first.name}: no query has a label that is in the gallery")
        self._pair_tables, self._pair_rows = tables, self._rows[:, stored[:0]]
        if pairs is not None:
            self._pair_tables = pairs
            self._pair_rows = _matched(pairs)[:, hash_order(pairs[0].ids)]
            again = np.intersect1d(pairs[0].ids.astype(str), first.ids.astype(str))
            if again.size:
                raise InputError(
                    f"pairs: {len(again):,} ids are also in {first.name}, the first is {again[0]}; "
                    "a map must not be fitted on what is evaluated"
                )
        elif holds_out:
            order = stored[hash_order(first.ids[stored])]
            half = len(order) // 2
            self._pair_rows, stored = self._rows[:, order[:half]], np.sort(order[half:])
            if not half:
                raise InputError(f"{first.name}: a gallery of one row leaves none to fit a map on")
        self.num_gallery = len(stored)
        self._galleries = [
            Gallery(table, np.sort(rows[stored]))
            for table, rows in zip(tables, self._rows, strict=True)
        ]
        self._queries = [
            table.read(rows[queries]) for table, rows in zip(tables, self._rows, strict=True)
        ]
        self._own = {}
        self._fits = {} if fits is None else fits

    @property
    def num_pairs(self) -> int:
        """How many pairs there are to fit on."""
        return self._pair_rows.shape[1]

    @property
    def gallery_labels(self) -> np.ndarray:
        """Of the rows that are searched, [N]."""
        return self._galleries[0].labels

    def values(self, new: int, old: int) -> np.ndarray:
        """The metric of queries by one model against the gallery of another, as it is: [Q]."""
        if (new, old) not in self._own:
            gallery, query = self._galleries[old], self._queries[new]
            self._own[new, old] = gallery.values(self.metric, query, self.query_labels)
        return self._own[new, old]

    def rows(self) -> list[list[np.ndarray]]:
        """Of each model the metric of its queries, [Q], against its own and each older gallery."""
        return [
            [self.values(new, old) for old in range(new + 1)] for new in range(len(self.tables))
        ]

    def upgrade(
        self,
        old: int,
        new: int,
        names: Sequence[str] = (),
        seed: int = 0,
        num_pairs: Sequence[int] | None = None,
    ) -> Upgrade:
        """Every way from one model to a later one, by their positions.

        Args:
          names: keys of `maps.MAPS`; those that cannot join the widths are left out.
          seed: of the fits.
          num_pairs: how many to fit on, by default `NUM_PAIRS`; see `counts`.
        """
        ways = []
        if self.tables[old].width == self.tables[new].width:
            ways.append(Way(AS_IS, self.values(new, old)))
        for name in names:
            ways.extend(self._mapped(name, old, new, seed, num_pairs))
        rewritten = 4 * self.num_gallery * self.tables[new].width
        ways.append(Way(RE_EMBED, self.values(new, new), gallery_bytes=rewritten))
        return Upgrade(old, new, self.values(old, old), ways)

    def _mapped(self, name, old: int, new: int, seed: int, num_pairs) -> Iterator[Way]:
        chosen = maps.MAPS[name]
        if chosen.equal_widths and self.tables[old].width != self.tables[new].width:
            return
        for count in counts(self.num_pairs, num_pairs):
            for direction in chosen.directions():
                source, target = (new, old) if direction == maps.QUERIES else (old, new)
                key = name, source, target, count
                if key not in self._fits:
                    pairs = (
                        self._pair_tables[model].read(self._pair_rows[model, :count])
                        for model in (source, target)
                    )
                    self._fits[key] = maps.fit(name, *pairs, seed=seed)
                fitted = self._fits[key]
                query, own = self._queries[new], self._queries[old]
                gallery, labels = self._galleries[old], self.query_labels
                query_seconds, gallery_bytes = 0.0, 0
                if direction == maps.QUERIES:
                    values = gallery.values(self.metric, fitted(query, own), labels)
                    query_seconds = fitted.seconds_per_query(query, own)
                else:
                    width = self.tables[new].width
                    carried = Gallery(gallery.table, gallery.rows, fitted, width)
                    values = carried.values(self.metric, query, labels)
                    gallery_bytes = 4 * self.num_gallery * width
                yield Way(
                    MAP,
                    values,
                    map=name,
                    direction=direction,
                    pairs=count,
                    fit_seconds=fitted.fit_seconds,
                    query_seconds=query_seconds,
                    map_bytes=fitted.nbytes,
                    gallery_bytes=gallery_bytes,
                )


def counts(available: int, wanted: Sequence[int] | None = None) -> list[int]:
    """The numbers of pairs to fit on: those wanted, or all where there are fewer."""
    return sorted({min(available, count) for count in wanted or NUM_PAIRS})


def hash_order(ids: np.ndarray) -> np.ndarray:
    """A fixed random order of rows, by a hash of their ids: [N].

    It depends on nothing else, so that the same image is always on the same side of a cut.
    """
    digests = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids.tolist()]
    return np.argsort(np.frombuffer(b"".join(digests), ">u8"), kind="stable")


def _matched(tables: Sequence[FeatureTable]) -> np.ndarray:
    """Rows of each table, [T, N], in the order of the first."""
    rows = [np.arange(len(tables[0]))]
    for table in tables[1:]:
        rows.append(match(tables[0], table)[1])
    return np.stack(rows)


def described(upgrade: Upgrade, seed: int = 0) -> list[dict[str, Any]]:
    """The ways of an upgrade as they stand in evaluation.json.

    Of each: what it is and costs, see `Way`; its `value`; `gain` over the old model on its own
    gallery and `reindexing_gain`, what re-embedding would add, with their intervals; and whether it
    is `compatible`, which is a gain above zero.
    """
    best = upgrade.ways[-1].values
    differences = np.stack(
        [np.subtract(way.values, upgrade.before, dtype=np.float32) for way in upgrade.ways]
        + [np.subtract(best, way.values, dtype=np.float32) for way in upgrade.ways]
    )
    intervals = paired_intervals(differences, seed).reshape(2, len(upgrade.ways), 2).tolist()
    found = []
    for number, way in enumerate(upgrade.ways):
        fields = {f.name: getattr(way, f.name) for f in dataclasses.fields(way)}
        del fields["values"]
        value = float(way.values.mean())
        gain = value - float(upgrade.before.mean())
        found.append(
            fields
            | {
                "value": value,
                "gain": gain,
                "gain_interval": intervals[0][number],
                "reindexing_gain": float(best.mean()) - value,
                "reindexing_interval": intervals[1][number],
                "compatible": gain > 0,
            }
        )
    return found
