"""May a new model replace the old one, judged from features alone?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iamcl2r_jax import compatibility
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.evaluation.advice import advise_all
from iamcl2r_jax.evaluation.feature_tables import FeatureTable
from iamcl2r_jax.evaluation.intervals import CONFIDENCE
from iamcl2r_jax.evaluation.pairs import lower_triangle
from iamcl2r_jax.evaluation.ways import Models
from iamcl2r_jax.system import runtime
from iamcl2r_jax.system.errors import InputError


def compare(
    tables: Sequence[FeatureTable],
    names: Sequence[str] = (),
    pairs: Sequence[FeatureTable] | None = None,
    *,
    metric: str = "identification",
    seed: int = 0,
) -> dict[str, Any]:
    """Compares models by their features, with and without maps.

    Args:
      tables: of two or more models, oldest first; rows are matched by id.
      names: maps to try, keys of `maps.MAPS`, or "all".
      pairs: tables of further images by the same models, on which the maps are fitted; None to fit
        them on half of the gallery, chosen by a hash of the ids. The other half is then searched.
      metric: a key of `retrieval.METRICS`.
      seed: of the fits and the bootstrap.

    Returns:
      What evaluation.json holds: `features` (of each model), what was searched in and for, the
      `matrix` (null where widths differ), AC and AA if it is whole, and of each of `upgrades` what
      `ways.described` and `advice.advise` say; `compatible` if every advice says so.

    Raises:
      InputError: for bad input; the message is one line.
    """
    if len(tables) < 2:
        raise InputError(f"features={tables[0].name}: name two or more, oldest first")
    names = maps.check_names(names) if names else []
    if pairs is not None and not names:
        raise InputError("pairs: nothing to fit on them; name maps too, or all")
    for table in tables:
        if table.width != tables[0].width and not names:
            raise InputError(
                f"{table.name}: features of width {table.width}, but {tables[0].width} in "
                f"{tables[0].name}; widths may differ where maps are asked for, such as all"
            )
    if pairs is not None:
        _check_pairs(tables, pairs)
    models = Models(tables, metric, pairs, holds_out=bool(names))
    upgrades = advise_all(models, names, seed)
    labels = models.gallery_labels
    return {
        "features": [{"name": table.name, "width": table.width} for table in tables],
        "gallery": {"rows": models.num_gallery, "classes": len(np.unique(labels))},
        "query": {
            "rows": len(models.query_labels),
            "classes": len(np.unique(models.query_labels)),
        },
        "queries_without_class": int(np.sum(~np.isin(models.query_labels, labels))),
        "pairs": models.num_pairs,
        "metric": metric,
        **_matrix(models),
        "upgrades": upgrades,
        "compatible": all(upgrade["advice"]["compatible"] for upgrade in upgrades),
        "confidence": CONFIDENCE,
        "seed": seed,
        "environment": runtime.environment(),
    }


def _matrix(models: Models) -> dict[str, Any]:
    """The compatibility matrix, null where widths differ, and the figures of a whole one."""
    widths = [table.width for table in models.tables]
    matrix = np.full((len(widths), len(widths)), np.nan)
    for new in range(len(widths)):
        for old in range(new + 1):
            if widths[new] == widths[old]:
                matrix[new, old] = models.values(new, old).mean()
    if len(set(widths)) > 1:
        return {"matrix": lower_triangle(matrix)}
    return {
        "matrix": lower_triangle(matrix),
        "ac": compatibility.average_compatibility(matrix),
        "aa": compatibility.average_accuracy(matrix),
    }


def _check_pairs(tables, pairs) -> None:
    """Raises `InputError` if pairs are not of as many models, of the same widths."""
    if len(pairs) != len(tables):
        raise InputError(f"pairs: {len(pairs)} tables for {len(tables)} models")
    for table, of_pairs in zip(tables, pairs, strict=True):
        if table.width != of_pairs.width:
            raise InputError(
                f"{of_pairs.name}: features of width {of_pairs.width}, but {table.width} in "
                f"{table.name}; both must be by one model"
            )
