"""Maps after the fact on the models of finished runs, beside training for compatibility.

Of each run two chains of models are compared, those that it trained and the external models alone,
by every way: as they are, each map in both directions, everything re-embedded. Of the trained ones
there is one for each external model: the one that the next replacement ends, or the last. Maps are
fitted on images of the stream, by both models of a pair; the evaluations hold none of these.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from iamcl2r_jax import compatibility
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.data.sources import Evaluation, ImageSet
from iamcl2r_jax.evaluation import gate, maps, ways
from iamcl2r_jax.evaluation.feature_tables import make_table
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.evaluation.pairs import lower_triangle
from iamcl2r_jax.evaluation.ways import Models
from iamcl2r_jax.models.stored import load_metadata, load_model
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, runs

FILE = "maps.json"
TRAINED, EXTERNAL = "trained", "external models"
MOST_PAIRS = 10000
_PAIRS = "pairs"  # beside the evaluations
_TIMED = 256  # images whose embedding is timed


def evaluate_run(
    workdir: str,
    names: Sequence[str],
    reporter: Reporter,
    external: dict[tuple[str, ...], Any] | None = None,
) -> dict[str, Any]:
    """Every way on both chains of a finished run; kept in workdir/maps.json, and read from there.

    Args:
      workdir, names: of the run, and keys of `maps.MAPS`.
      reporter: shows the progress.
      external: chains of external models by their paths, which several runs share; added to.

    Returns:
      `maps`, `metric`, `pairs` (how many images maps are fitted on) and `chains`: by name
      `head` and, under `evaluations`, by evaluation a list of ways. Of each way `map`, `direction`,
      `matrix` and the figures of `_figures`.

    Raises:
      InputError: if the run is not finished, or a model of it is not there.
      DamagedError: if what it left is not as it was written.
    """
    path = os.path.join(workdir, FILE)
    known, external = files.read_json(path), {} if external is None else external
    if known is not None and known["maps"] == list(names):
        external[tuple(known["external_models"])] = known["chains"].get(EXTERNAL)
        return known
    results, config = files.read_json(os.path.join(workdir, "results.json")), None
    if results is not None:
        config = runs.read_config(workdir)
    if config is None:
        raise InputError(f"workdir={workdir} holds no finished run")
    evaluations, metric = inputs.load_evaluations(config), config.metrics[0]
    images = _pair_images(inputs.load_stream(config).train)
    ends = [task - 1 for task in results["replacements"] if task] + [results["num_tasks"] - 1]
    trained = [runs.task_path(workdir, task) for task in ends]
    models = tuple(dict.fromkeys(results["external_models"].values()))

    def chain(paths, train_seconds):
        if len(paths) < 2:
            return None
        return _chain(paths, evaluations, images, metric, names, train_seconds, reporter)

    if models not in external:
        external[models] = chain(models, 0.0)
    chains = {TRAINED: chain(trained, results["seconds"]["train"] / len(ends))}
    chains[EXTERNAL] = external[models]
    written = {
        "maps": list(names),
        "metric": metric,
        "pairs": len(images),
        "external_models": models,
        "chains": {name: of_chain for name, of_chain in chains.items() if of_chain is not None},
    }
    files.write_json(path, written)
    return files.as_json(written)


def _pair_images(train: ImageSet) -> ImageSet:
    """Images of the stream to fit on, a fixed random choice if there are many."""
    rows = np.random.default_rng(0).permutation(len(train))[:MOST_PAIRS]
    return ImageSet(train.images[rows], train.labels[rows], train.class_names)


def _chain(paths, evaluations, images, metric, names, train_seconds, reporter):
    """Head and ways of one chain of checkpoints, oldest first."""
    metadata = [load_metadata(path) for path in paths]
    gate.check_comparable(paths, metadata)
    first = ImageSet(images.images[:1], images.labels[:1], images.class_names)
    asked = evaluations | {_PAIRS: Evaluation(query=images, gallery=first)}
    by_size = {name: {metadata[0].image.size: of} for name, of in asked.items()}
    embedded = {name: [] for name in asked}
    for name, features in gate.embeddings(paths, metadata, by_size, reporter):
        embedded[name].append(features)
    ids = [f"{_PAIRS}/{n}" for n in range(len(images))]
    pairs = [
        make_table(f"pairs of {path}", features.query, ids, ids, ["gallery"] * len(ids))
        for path, features in zip(paths, embedded[_PAIRS], strict=True)
    ]
    image_seconds = _seconds_per_image(paths[-1], images)
    fits: dict[tuple, maps.Fitted] = {}
    found = {}
    with reporter.stage("maps", len(evaluations)) as stage:
        for name, evaluation in evaluations.items():
            tables = [
                gate.features_table(path, features, evaluation)
                for path, features in zip(paths, embedded[name], strict=True)
            ]
            models = Models(tables, metric, pairs, fits=fits)
            found[name] = _ways(models, names, train_seconds, image_seconds)
            stage.advance()
    return {"head": metadata[0].head, "evaluations": found}


def _seconds_per_image(path: str, images: ImageSet) -> float:
    """What a model takes to embed an image, in large batches, once it is compiled."""
    model = load_model(path)
    image = model.metadata.image
    extract = FeatureExtractor(model.architecture.module(), ImageOptions(image.mean, image.std))
    batch = np.resize(images.images, (_TIMED, *images.images.shape[1:]))
    extract(model.variables, batch)
    start = time.perf_counter()
    extract(model.variables, batch)
    return (time.perf_counter() - start) / _TIMED


def _ways(models: Models, names, train_seconds, image_seconds) -> list[dict[str, Any]]:
    """By way, the matrix of all pairs of models and its figures."""
    size = len(models.tables)
    by_way: dict[tuple, list[tuple[int, int, ways.Way]]] = {}
    for new in range(size):
        for old in range(new):
            for way in models.upgrade(old, new, names, num_pairs=[MOST_PAIRS]).ways:
                key = way.kind, way.map, way.direction
                by_way.setdefault(key, []).append((new, old, way))
    found = []
    for (kind, name, direction), cells in by_way.items():
        matrix = np.full((size, size), np.nan)
        for model in range(size):
            matrix[model, model] = models.values(model, model).mean()
        for new, old, way in cells:
            matrix[new, old] = way.values.mean()
        costs = _costs([way for *_, way in cells], kind, models, train_seconds, image_seconds)
        found.append(
            {
                "kind": kind,
                "map": name,
                "direction": direction,
                "matrix": lower_triangle(matrix),
                "figures": _figures(matrix) | costs,
            }
        )
    return found


def _figures(matrix: np.ndarray) -> dict[str, float | None]:
    """AC; in percent AA, on old galleries, and of the last on its own."""
    return {
        "ac": compatibility.average_compatibility(matrix),
        "aa": compatibility.average_accuracy(matrix),
        "old_galleries": compatibility.accuracy_on_old_galleries(matrix),
        "own": compatibility.accuracy_on_own_gallery(matrix),
    }


def _costs(of_pairs: Sequence[ways.Way], kind, models, train_seconds, image_seconds):
    """Means over the upgrades: seconds to get there, and of a fit and a query; bytes."""
    means = {
        field: float(np.mean([getattr(way, field) for way in of_pairs]))
        for field in ("fit_seconds", "query_seconds", "map_bytes", "gallery_bytes")
    }
    embedding = image_seconds * models.num_gallery if kind == ways.RE_EMBED else 0.0
    return {"seconds": train_seconds + means["fit_seconds"] + embedding} | means
