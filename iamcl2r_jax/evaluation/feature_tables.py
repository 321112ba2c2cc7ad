"""Tables of features: one row an image, read a block at a time.

A table has four columns, whose names are a contract:
  features  [N, D], float16, float32 or float64
  ids       [N], integers or text, each once
  labels    [N], integers or text
  split     [N], the text "gallery" or "query"
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from iamcl2r_jax.system.errors import InputError

COLUMNS = ("features", "ids", "labels", "split")
GALLERY, QUERY = "gallery", "query"
ROWS_AT_ONCE = 2**15  # 128 MiB of 1,023 features in float32

# Maps the first and last row (exclusive) to their features [n, D], of any floating type.
Reader = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FeatureTable:
    """Features of some images by one model.

    Attributes:
      name: of the file or the model, for messages.
      ids: [N], integers or text, each once.
      labels: [N], integers or text.
      is_query: bool [N]; the others are of the gallery.
      width: D.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    is_query: np.ndarray
    width: int
    reader: Reader = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str) -> np.ndarray:
        """Positions of the rows of a split, ascending."""
        return np.flatnonzero(self.is_query if split == QUERY else ~self.is_query)

    def blocks(self, rows: np.ndarray, size: int = ROWS_AT_ONCE) -> Iterator[np.ndarray]:
        """The features of some rows, float32 [n, D] at a time, in the order of the file.

        Args:
          rows: ascending positions.
          size: rows of the file in a block, of which those in `rows` are given.

        Raises:
          InputError: if one of them is not finite.
        """
        for start in range(0, len(self), size):
            first, last = np.searchsorted(rows, (start, start + size))
            if first == last:
                continue
            low, high = rows[first], rows[last - 1] + 1
            block = self.reader(low, high)
            wanted = rows[first:last] - low
            block = block if len(wanted) == len(block) else block[wanted]
            block = np.ascontiguousarray(block, np.float32)
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{self.name}: the features of id {self.ids[rows[first:last][bad][0]]} are not "
                    "finite"
                )
            yield block

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The features of some rows, in any order, float32 [n, D]."""
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), self.width), np.float32)
        start = 0
        for block in self.blocks(rows[order]):
            found[order[start : start + len(block)]] = block
            start += len(block)
        return found


def make_table(name: str, features: Any, ids: Any, labels: Any, split: Any) -> FeatureTable:
    """A table of arrays in memory; of the columns see the module.

    Raises:
      InputError: for columns that are not as they must be; the message is one line.
    """
    features = np.asarray(features)
    return checked(name, features.shape, features.dtype, reader_of(features), ids, labels, split)


def match(old: FeatureTable, new: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two tables that belong to the same ids: positions in `old` and in `new`, [N].

    Raises:
      InputError: if an id is missing in one of them, or has another label or split there.
    """
    for column in ("ids", "labels"):
        kinds = [is_text(getattr(table, column)) for table in (old, new)]
        if kinds[0] != kinds[1]:
            text, other = (old, new) if kinds[0] else (new, old)
            raise InputError(f"{column}: text in {text.name} but integers in {other.name}")
    in_old, in_new = np.argsort(old.ids, kind="stable"), np.argsort(new.ids, kind="stable")
    if len(old) != len(new) or (old.ids[in_old] != new.ids[in_new]).any():
        for some, others in ((old, new), (new, old)):
            missing = np.setdiff1d(some.ids, others.ids)
            if missing.size:
                raise InputError(
                    f"{others.name}: {len(missing):,} ids of {some.name} are missing, the first is "
                    f"{missing[0]}"
                )
    for what, ours, theirs in (
        ("labels", old.labels, new.labels),
        ("split", old.is_query, new.is_query),
    ):
        differ = np.flatnonzero(ours[in_old] != theirs[in_new])
        if differ.size:
            raise InputError(
                f"{what}: id {old.ids[in_old[differ[0]]]} has another one in {new.name} than in "
                f"{old.name}"
            )
    order = np.argsort(in_old)
    return in_old[order], in_new[order]


def checked(
    name: str, shape: tuple[int, ...], dtype: Any, reader: Reader, ids: Any, labels: Any, split: Any
) -> FeatureTable:
    """The table of features of this shape and dtype that `reader` reads, and its other columns.

    Raises:
      InputError: for columns that are not as they must be; the message is one line.
    """
    if len(shape) != 2 or not all(shape):
        raise InputError(f"{name}: features must be [N, D] and not empty, got {list(shape)}")
    if not np.issubdtype(dtype, np.floating):
        raise InputError(f"{name}: features must be floating-point numbers, got {dtype}")
    ids, labels, split = (
        _column(name, column, values, shape[0])
        for column, values in (("ids", ids), ("labels", labels), ("split", split))
    )
    other = np.flatnonzero((split != GALLERY) & (split != QUERY)) if is_text(split) else [0]
    if len(other):
        raise InputError(
            f"{name}: split of id {ids[other[0]]} is {split[other[0]]!s}; it must be "
            f"{GALLERY} or {QUERY}"
        )
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        doubled = unique[counts > 1]
        raise InputError(f"{name}: {len(doubled):,} ids are doubled, the first is {doubled[0]}")
    return FeatureTable(name, ids, labels, split == QUERY, shape[1], reader)


def _column(name: str, column: str, values: Any, count: int) -> np.ndarray:
    """A column as integers or text [N]."""
    values = np.asarray(values)
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "iuU":
        raise InputError(f"{name}: {column} must be integers or text, got {values.dtype}")
    if values.shape != (count,):
        raise InputError(
            f"{name}: {column} must be [{count}], one for each row of features, got "
            f"{list(values.shape)}"
        )
    return values


def is_text(values: np.ndarray) -> bool:
    """Whether a column holds text, not integers."""
    return values.dtype.kind == "U"


def reader_of(features: np.ndarray) -> Reader:
    """Reads an array."""
    return lambda low, high: features[low:high]
