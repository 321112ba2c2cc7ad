"""Decides on labelled images whether a model may search the vectors of a gallery."""

import time
from typing import Any

from iamcl2r_jax import retrieval
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.evaluation import pairs
from iamcl2r_jax.evaluation.features import Features
from iamcl2r_jax.evaluation.gate import Split, load_evaluation, upgrades_of
from iamcl2r_jax.evaluation.intervals import CONFIDENCE
from iamcl2r_jax.gallery import images, indexing, simulation, state, upgrades
from iamcl2r_jax.gallery.embedder import Embedder, Embedders
from iamcl2r_jax.gallery.gallery import Gallery
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
      gallery, embedders: whose base generation would be searched, and those of its models.
      model: name of the new model.
      searched, asked: labelled images to search in and for.
      metric: a key of `retrieval.METRICS`; decides. The curve is of it, too, but for
        `identification`, which looks at means of classes instead of images: there it is of
        `recall_at_1`.
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
    if metric not in retrieval.METRICS:
        raise InputError(f"metric={metric!r}: must be one of {', '.join(retrieval.METRICS)}")
    view = gallery.view()
    new = gallery.model(model)
    upgrades.require_gate_allowed(view, new.id)
    numbers = dict.fromkeys((view.generations[view.base], view.serving, new.id))
    models = [view.models[number] for number in numbers]
    sets = {
        size: load_evaluation(searched, asked, size, data_dir)
        for size in {model.info.image["size"] for model in models}
    }
    features = {
        model.id: _embedded(embedders[model], sets[model.info.image["size"]]) for model in models
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


def _embedded(embedder: Embedder, sets: Evaluation) -> Features:
    return Features(gallery=embedder(sets.gallery.images), query=embedder(sets.query.images))


def _compared(
    view: View,
    features: dict[int, Features],
    sets: Evaluation,
    model: Model,
    metric: str,
    seed: int,
) -> dict[str, Any]:
    """The figures of `run` but for the backfill, and as `simulated` the whole curve."""
    old, serving, new = (
        features[number] for number in (view.generations[view.base], view.serving, model.id)
    )
    labels, query_labels = sets.gallery.labels, sets.query.labels
    found = pairs.evaluate_pairs([old, new], query_labels, labels, [metric], seed=seed)[metric]
    (upgrade,) = upgrades_of(found)
    del upgrade["old"], upgrade["new"]
    values = {
        "new/old": float(found.matrix[1, 0]),
        "old/old": float(found.matrix[0, 0]),
        "new/new": float(found.matrix[1, 1]),
    }
    if serving is not old:
        of_serving = retrieval.METRICS[metric].values(
            old.gallery, labels, serving.query, query_labels
        )
        values["serving/old"] = float(of_serving.mean())
    curve_metric = DEFAULT_METRIC if metric == "identification" else metric
    curve = simulation.simulate(
        retrieval.METRICS[curve_metric].values,
        old.gallery,
        new.gallery,
        labels,
        new.query,
        query_labels,
        seed,
    )
    return {
        "values": values,
        **upgrade,
        "metric": metric,
        "confidence": CONFIDENCE,
        "queries": len(query_labels),
        "images": len(labels),
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
