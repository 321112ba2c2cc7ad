"""Decides on labelled images whether a model may search the vectors of a gallery."""

import time
from typing import Any

import numpy as np

from iamcl2r_jax.gallery import images, indexing, labelled, simulation, state, upgrades
from iamcl2r_jax.gallery.embedder import Embedder, Embedders
from iamcl2r_jax.gallery.gallery import Gallery
from iamcl2r_jax.gallery.labelled import Split
from iamcl2r_jax.gallery.records import Model, View
from iamcl2r_jax.system.errors import InputError

DEFAULT_METRIC = "recall_at_1"
_SAMPLE = 64  # items whose embedding is timed


def run(
    gallery: Gallery,
    embedders: Embedders,
    model: str,
    searched: Split,
    asked: Split,
    *,
    metric: str = DEFAULT_METRIC,
    data_dir: str | None = None,
    seed: int = 0,
    accept: bool = False,
    cost_per_hour: float | None = None,
) -> dict[str, Any]:
    """Compares a registered model with the one whose vectors are stored, and writes the verdict.

    Compatible is M(new queries, old gallery) > M(old queries, old gallery), as launch/evaluate.py
    has it. The labelled images are embedded here; the gallery's own vectors are not touched.

    Args:
      gallery: whose base generation would be searched.
      embedders: of its models.
      model: name of the new model.
      searched: labelled images to search in.
      asked: labelled images to search for.
      metric: of `labelled.metrics`; decides. The curve is of it, too, but for `identification`,
        which looks at means of classes instead of images: there it is of `recall_at_1`.
      data_dir: TFDS directory; None for TFDS's default.
      seed: of the intervals, of the order and of the halves of the queries.
      accept: allow the model although it is not compatible; recorded in the event log.
      cost_per_hour: of the machine that embeds, in any currency.

    Returns:
      The figures, which are stored with the verdict: `compatible`, `accepted`, `values` (M of
      new/old, old/old, new/new, and serving/old where another model than the old one serves),
      `gain`, `reindexing_gain` and their intervals, `curve` and `backfill`.

    Raises:
      InputError: for bad input.
      Refused: another upgrade is in progress.
    """
    if metric not in labelled.metrics():
        raise InputError(f"metric={metric!r}: must be one of {', '.join(labelled.metrics())}")
    view = gallery.view()
    new = gallery.model(model)
    upgrades.require_gate_allowed(view, new.id)
    old, serving = view.models[view.generations[view.base]], view.models[view.serving]
    sets = {
        size: labelled.load(searched, asked, size, data_dir)
        for size in {m.info.image["size"] for m in (old, serving, new)}
    }
    features = {
        m.id: _features(embedders[m], sets[m.info.image["size"]]) for m in (old, serving, new)
    }
    details = _compared(view, features, sets[new.info.image["size"]], new, metric, seed)
    curve = details.pop("simulated")
    details |= {
        "gallery": f"{searched.dataset}, {searched.split}",
        "query": f"{asked.dataset}, {asked.split}",
        "backfill": predicted(gallery, embedders[new], cost_per_hour),
    }
    verdict = gallery.record_gate(
        new.name,
        compatible=details["compatible"],
        details=details,
        base=view.base,
        accept=accept,
        merge=curve.recommended,
        scaling={view.base: curve.old_scaling, 0: curve.new_scaling},
    )
    return {"accepted": verdict.accepted, **details}


def _features(embedder: Embedder, sets: labelled.Images) -> tuple[np.ndarray, np.ndarray]:
    return embedder(sets.gallery), embedder(sets.query)


def _compared(
    view: View,
    features: dict[int, tuple[np.ndarray, np.ndarray]],
    sets: labelled.Images,
    new: Model,
    metric: str,
    seed: int,
) -> dict[str, Any]:
    old, serving = view.generations[view.base], view.serving
    found = labelled.compare(features[old], features[new.id], sets, metric, seed)
    if serving != old:
        values = labelled.values(metric)(
            features[old][0], sets.gallery_labels, features[serving][1], sets.query_labels
        )
        found["values"]["serving/old"] = float(values.mean())
    curve_metric = DEFAULT_METRIC if metric == "identification" else metric
    curve = simulation.simulate(
        labelled.values(curve_metric),
        features[old][0],
        features[new.id][0],
        sets.gallery_labels,
        features[new.id][1],
        sets.query_labels,
        seed,
    )
    return {
        **found,
        "metric": metric,
        "confidence": labelled.CONFIDENCE,
        "queries": len(sets.query_labels),
        "images": len(sets.gallery_labels),
        "seed": seed,
        "curve": {"metric": curve_metric, **curve.described()},
        "simulated": curve,
    }


def predicted(
    gallery: Gallery, embedder: Embedder, cost_per_hour: float | None = None
) -> dict[str, Any]:
    """Time and cost of a full backfill, from reading and embedding some of the items.

    Returns:
      items, rate (items a second; None if no item has a readable image), seconds, bytes of the new
      vectors, cost (None without a price).
    """
    with gallery.database.reading() as connection:
        (count,) = connection.execute("SELECT count(*) FROM items").fetchone()
        rows = connection.execute(
            "SELECT id FROM items WHERE path IS NOT NULL ORDER BY id LIMIT ?", (_SAMPLE,)
        ).fetchall()
        sample = state.read_items(connection, [row[0] for row in rows])
    rate = None
    for timed in (False, True):  # the first time compiles
        start, pictures = time.perf_counter(), []
        for item in sample.values():
            try:
                picture = images.read(gallery.image_path(item))
                picture.at(embedder.info.image["size"])
                pictures.append(picture)
            except images.ImageError:
                continue  # the backfill lists it
        if pictures:
            indexing.embed(embedder, pictures)
            rate = len(pictures) / (time.perf_counter() - start) if timed else None
    seconds = count / rate if rate else None
    return {
        "items": count,
        "rate": rate,
        "seconds": seconds,
        "bytes": 4 * embedder.info.width * count,
        "cost": None if None in (seconds, cost_per_hour) else seconds / 3600 * cost_per_hour,
    }
