"""May a new model replace the old one before a gallery that stays as it is?

Checkpoints, tasks of a run and external models alike, are compared on labelled images: every pair,
with intervals.
"""

import dataclasses
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from iamcl2r_jax import compatibility
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.data.sources import Evaluation, ImageSet, refuse_equal_sets
from iamcl2r_jax.evaluation.advice import advise_all
from iamcl2r_jax.evaluation.feature_files import write_table
from iamcl2r_jax.evaluation.feature_tables import GALLERY, QUERY, FeatureTable, make_table
from iamcl2r_jax.evaluation.features import FeatureExtractor, Features, embed
from iamcl2r_jax.evaluation.intervals import CONFIDENCE
from iamcl2r_jax.evaluation.maps import check_names
from iamcl2r_jax.evaluation.pairs import PairValues, evaluate_models, pair_values, summarize
from iamcl2r_jax.evaluation.ways import Models
from iamcl2r_jax.models.stored import Architecture, ImageInput, Metadata, load_metadata, load_model
from iamcl2r_jax.system import runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Split:
    """A labelled set of images: a data set (TFDS name or folder:DIR) and its split."""

    dataset: str
    split: str


def compare(
    models: Sequence[str],
    gallery: Split,
    query: Split,
    *,
    maps: Sequence[str] = (),
    write_features: str | None = None,
    metric: str = "identification",
    data_dir: str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compares models by the compatibility criterion, C[t, k] > C[k, k] for every t > k.

    Each model gets images as it was trained on: of its size, with its mean and std. Galleries stay
    as they are: maps that a run has fitted are not used here.

    Args:
      models: directories of two or more checkpoints, oldest first.
      gallery: images searched in, embedded by the older model of a pair.
      query: images searched for, embedded by the newer one; classes are matched by name.
      maps: maps between the models to try, see `maps`; they are fitted on one half of the gallery,
        and the other half is searched.
      write_features: directory for files of the features, one a model; None for none.
      metric: a key of `retrieval.METRICS`.
      data_dir: TFDS directory; None for TFDS's default.
      seed: of the bootstrap.
      reporter: shows the progress; by default on the terminal.

    Returns:
      What evaluation.json holds: the matrix with its figures as in results.json, and of each
      upgrade `compatible`, `gain` = C[t, k] - C[k, k] and `reindexing_gain` = C[t, t] - C[t, k]
      with their intervals, its `ways` and the `advice`; `compatible` if every upgrade is, as it is
      or by its best map, see `advice`.

    Raises:
      InputError: for bad input; the message is one line.
    """
    if len(models) < 2:
        raise InputError(f"models={','.join(models)}: name two or more, oldest first")
    metadata = [load_metadata(path) for path in models]
    check_comparable(models, metadata)
    evaluations = {
        size: load_evaluation(gallery, query, size, data_dir)
        for size in {of.image.size for of in metadata}
    }
    evaluation = next(iter(evaluations.values()))  # for what does not depend on the size
    reporter = reporter or Reporter()
    for images in dict.fromkeys((gallery, query)):
        if line := sources.passed_over(images.dataset, images.split):
            reporter.message(line)
    names = check_names(maps) if maps else []
    embedded = embeddings(models, metadata, {"": evaluations}, reporter)
    # With the data sets in their ids, files of other images can be told from these.
    named = [f"{of.dataset}/{of.split}" for of in (query, gallery)]
    tables = [
        features_table(path, features, evaluation, named)
        for path, (_, features) in zip(models, embedded, strict=True)
    ]
    if write_features:
        _write(write_features, tables)
    found = Models(tables, metric, holds_out=bool(names))
    values = pair_values(found.rows(), seed)
    upgrades = list(map(operator.or_, upgrades_of(values), advise_all(found, names, seed)))
    return {
        "models": [
            {
                "path": path,
                "kind": of.kind,
                **of.architecture.to_json(),
                "image": of.image.to_json(),
            }
            for path, of in zip(models, metadata, strict=True)
        ],
        "num_slots": metadata[0].num_slots,
        "gallery": _description(gallery, evaluation.gallery),
        "query": _description(query, evaluation.query),
        "queries_without_class": int(np.sum(~_has_class(evaluation))),
        "queries_in_gallery": evaluation.queries_in_gallery,
        "pairs": found.num_pairs,
        "metric": metric,
        **summarize(values),
        "upgrades": upgrades,
        "compatible": all(upgrade["advice"]["compatible"] for upgrade in upgrades),
        "confidence": CONFIDENCE,
        "seed": seed,
        "feature_passes": len(models),
        "environment": runtime.environment(),
    }


def upgrades_of(values: PairValues) -> list[dict[str, Any]]:
    """What is to be said of each upgrade from a model k to a model t > k, see `compare`."""
    matrix, compatible = values.matrix, compatibility.is_compatible(values.matrix)
    return [
        {
            "old": old,
            "new": new,
            "compatible": bool(compatible[new, old]),
            "gain": float(matrix[new, old] - matrix[old, old]),
            "gain_interval": values.gain_intervals[new, old].tolist(),
            "reindexing_gain": float(matrix[new, new] - matrix[new, old]),
            "reindexing_interval": values.reindexing_intervals[new, old].tolist(),
        }
        for new in range(len(matrix))
        for old in range(new)
    ]


def load_evaluation(
    gallery: Split, query: Split, image_size: int, data_dir: str | None
) -> Evaluation:
    """Loads gallery and queries; if they are of two data sets, classes are matched by name.

    Raises:
      InputError: if a set cannot be had, every query is in the gallery, or they share no class.
    """
    options = {"image_size": image_size, "data_dir": data_dir}
    searched = sources.load(gallery.dataset, gallery.split, **options)
    asked = sources.load(query.dataset, query.split, **options)
    if gallery.dataset != query.dataset:
        names = tuple(dict.fromkeys(searched.class_names + asked.class_names))
        label = {name: i for i, name in enumerate(names)}
        labels = np.array([label[name] for name in asked.class_names], np.int32)[asked.labels]
        asked = ImageSet(asked.images, labels, names)
        searched = dataclasses.replace(searched, class_names=names)
    evaluation = Evaluation(query=asked, gallery=searched)
    refuse_equal_sets(f"query: split {query.split!r} of {query.dataset}", evaluation)
    if not _has_class(evaluation).any():
        raise InputError(
            f"query: no class of split {query.split!r} of {query.dataset} is in the gallery, split "
            f"{gallery.split!r} of {gallery.dataset}; classes are matched by name"
        )
    if len(asked) < 2:
        raise InputError(
            f"query: split {query.split!r} of {query.dataset} needs two or more images"
        )
    return evaluation


def check_comparable(paths: Sequence[str], metadata: Sequence[Metadata]) -> None:
    """Raises `InputError` unless all models have the same simplex, and so comparable features."""
    for path, of in zip(paths, metadata, strict=True):
        if of.num_slots != metadata[0].num_slots:
            raise InputError(
                f"checkpoint {path} has K={of.num_slots}, but {paths[0]} has "
                f"K={metadata[0].num_slots}; models that are compared must have the same simplex"
            )


def embeddings(
    paths: Sequence[str],
    metadata: Sequence[Metadata],
    evaluations: Mapping[str, Mapping[int, Evaluation]],
    reporter: Reporter,
) -> Iterator[tuple[str, Features]]:
    """One feature pass per model and evaluation, named; these have the images of each size."""
    extractors: dict[tuple[Architecture, ImageInput], FeatureExtractor] = {}
    with reporter.stage("evaluation", len(paths) * len(evaluations)) as stage:
        for path, of in zip(paths, metadata, strict=True):
            key = of.architecture, of.image
            if key not in extractors:  # models of one architecture share a compiled program
                options = ImageOptions(of.image.mean, of.image.std)
                extractors[key] = FeatureExtractor(of.architecture.module(), options)
            loaded = load_model(path)
            for name, of_size in evaluations.items():
                evaluation = of_size[of.image.size]
                embedded = embed(extractors[key], loaded, evaluation)
                if not (np.isfinite(embedded.query).all() and np.isfinite(embedded.gallery).all()):
                    raise InputError(f"checkpoint {path}: its features are not all finite")
                yield name, embedded
                stage.advance()


def evaluate_checkpoints(
    paths: Sequence[str],
    evaluations: Mapping[str, Evaluation],
    metrics: Sequence[str],
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Every pair of checkpoints with images of one size, oldest first, see `evaluate_models`.

    Raises:
      InputError: if a checkpoint cannot be used, or they are not of one simplex.
    """
    metadata = [load_metadata(path) for path in paths]
    check_comparable(paths, metadata)
    of_size = {name: {metadata[0].image.size: of} for name, of in evaluations.items()}
    return evaluate_models(evaluations, embeddings(paths, metadata, of_size, reporter), metrics)


def features_table(
    path: str,
    features: Features,
    evaluation: Evaluation,
    named: Sequence[str] = (QUERY, GALLERY),
) -> FeatureTable:
    """A model's features, with the names of the classes as labels.

    An image's id is its number after what queries and gallery are `named`.
    """
    parts = (features.query, evaluation.query), (features.gallery, evaluation.gallery)
    columns = [
        (rows, [f"{name}/{n}" for n in range(len(rows))], np.array(of.class_names)[of.labels])
        for name, (rows, of) in zip(named, parts, strict=True)
    ]
    split = np.repeat([QUERY, GALLERY], [len(rows) for rows, _ in parts])
    return make_table(path, *map(np.concatenate, zip(*columns, strict=True)), split)


def _write(directory: str, tables: Sequence[FeatureTable]) -> None:
    """Writes a file of features for each model, named by its number and path."""
    for number, table in enumerate(tables, start=1):
        name = os.path.basename(os.path.normpath(table.name))
        split = np.where(table.is_query, QUERY, GALLERY)
        features = table.read(np.arange(len(table)))
        path = os.path.join(directory, f"{number}-{name}.npz")
        write_table(path, features, table.ids, table.labels, split)


def _has_class(evaluation: Evaluation) -> np.ndarray:
    """Whether the gallery holds the class of each query, [Q]."""
    return np.isin(evaluation.query.labels, evaluation.gallery.labels)


def _description(split: Split, images: ImageSet) -> dict[str, Any]:
    classes = len(np.unique(images.labels))
    return dataclasses.asdict(split) | {"images": len(images), "classes": classes}
