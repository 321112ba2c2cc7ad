"""May a new model replace the old one before a gallery that stays as it is?

Checkpoints, tasks of a run and external models alike, are compared on labelled images: every pair,
with intervals. Also re-evaluates what a run left.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from iamcl2r_jax import compatibility, retrieval
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.evaluation.adapters import carrier
from iamcl2r_jax.evaluation.evaluation import (
    Embedded,
    Evaluation,
    FeatureExtractor,
    embed,
    measured,
    summarize,
)
from iamcl2r_jax.models.stored import Architecture, ImageInput, Metadata, load_metadata, load_model
from iamcl2r_jax.reports import html_report, report
from iamcl2r_jax.system import files, runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, runs

COMPATIBLE, INCOMPATIBLE = 0, 3  # exit statuses; bad input is 2, a crash 1
CONFIDENCE = 0.95
_RESAMPLES = 9999
_DRAWN_AT_ONCE = 2**22  # positions of queries held in memory, 32 MiB

# The value of each query whose mean is the measure of that name in `retrieval.MEASURES`.
PER_QUERY: dict[str, Callable[..., np.ndarray]] = {
    "identification": retrieval.identification_hits,
    "recall_at_1": lambda *sets: retrieval.recall_hits(*sets, ks=(1,))[:, 0],
    "mean_average_precision": retrieval.average_precisions,
}


@dataclasses.dataclass(frozen=True)
class Split:
    """A labelled set of images: a data set (TFDS name or folder:DIR) and its split."""

    dataset: str
    split: str


def main(
    workdir: str | None,
    models: Sequence[str] | None,
    gallery: Split | None,
    query: Split | None,
    *,
    measure: str = "identification",
    data_dir: str | None = None,
    output: str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> int:
    """Does what launch/evaluate.py is asked for: evaluates, prints and saves.

    Args:
      workdir: a run to evaluate again; or None.
      models: checkpoints to compare, oldest first; or None.
      gallery: images searched in; for a run None, to take its own evaluation sets.
      query: images searched for; None if and only if `gallery` is.
      measure, seed: see `compare`.
      data_dir: TFDS directory; None for TFDS's default, for a run its own.
      output: file to write; by default evaluation.json, in the workdir if there is one.
        The report of a finished run is made anew from its results.json besides.
      reporter: shows the progress; by default on the terminal.

    Returns:
      The exit status: `INCOMPATIBLE` if models were compared and any upgrade is not compatible.

    Raises:
      InputError: for bad input; the message is one line.
    """
    reporter = reporter or Reporter()
    if bool(workdir) == bool(models):
        raise InputError("give either workdir=DIR, a run, or models=OLD,NEW, checkpoints")
    if (gallery is None) != (query is None):
        raise InputError("query: name the gallery too, the data set searched in")
    output = output or os.path.join(workdir or "", "evaluation.json")
    if os.path.basename(output) == "results.json":
        raise InputError(f"output={output}: results.json is what a run writes; choose another")
    if workdir:
        results = reevaluate(workdir, gallery, query, data_dir=data_dir, reporter=reporter)
        report.print_evaluations(
            results["evaluations"],
            results["replacements"],
            reporter.console,
            retrained=results["retrained"],
        )
    else:
        if gallery is None:
            raise InputError("gallery: name a data set to compare the models on, e.g. folder:DIR")
        results = compare(
            models, gallery, query, measure=measure, data_dir=data_dir, seed=seed, reporter=reporter
        )
        report.print_upgrades(results, reporter.console)
    files.write_json(output, results)
    reporter.message(f"results: {output}")
    if workdir:
        _write_report(workdir, data_dir, reporter)
    return COMPATIBLE if results.get("compatible", True) else INCOMPATIBLE


def _write_report(workdir: str, data_dir: str | None, reporter: Reporter) -> None:
    """The report of a run, if it is finished."""
    results = files.read_json(os.path.join(workdir, "results.json"))
    if results is not None:
        config = runs.read_config(workdir)
        config.data_dir = data_dir or config.data_dir
        html_report.write_or_tell(config, workdir, results, reporter)


def compare(
    models: Sequence[str],
    gallery: Split,
    query: Split,
    *,
    measure: str = "identification",
    data_dir: str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compares models by the compatibility criterion, C[t, k] > C[k, k] for every t > k.

    Each model gets images as it was trained on: of its size, with its mean and deviation. Galleries
    stay as they are: adapters that a run has trained are not used here.

    Args:
      models: directories of two or more checkpoints, oldest first.
      gallery: images searched in, embedded by the older model of a pair.
      query: images searched for, embedded by the newer one; classes are matched by name.
      measure: a key of `PER_QUERY`.
      data_dir: TFDS directory; None for TFDS's default.
      seed: of the bootstrap.
      reporter: shows the progress; by default on the terminal.

    Returns:
      What evaluation.json holds: the matrix with its figures as in results.json, `compatible`
      (every upgrade is), and of each upgrade `compatible`, `gain` = C[t, k] - C[k, k] and
      `reindexing_gain` = C[t, t] - C[t, k] with their intervals.

    Raises:
      InputError: for bad input; the message is one line.
    """
    if len(models) < 2:
        raise InputError(f"models={','.join(models)}: name two or more, oldest first")
    metadata = [load_metadata(path) for path in models]
    _check_comparable(models, metadata)
    evaluations = {
        size: load_evaluation(gallery, query, size, data_dir)
        for size in {of.image.size for of in metadata}
    }
    evaluation = next(iter(evaluations.values()))  # for what does not depend on the size
    embedded = _embeddings(models, metadata, {"": evaluations}, reporter or Reporter())
    values = _values_of_pairs(evaluation, (features for _, features in embedded), measure)
    matrix = np.full((len(models), len(models)), np.nan)
    for (new, old), per_query in values.items():
        matrix[new, old] = per_query.mean()
    compatible = compatibility.is_compatible(matrix)
    upgrades = [
        {
            "old": old,
            "new": new,
            "compatible": bool(compatible[new, old]),
            "gain": float(matrix[new, old] - matrix[old, old]),
            "gain_interval": paired_interval(values[new, old], values[old, old], seed),
            "reindexing_gain": float(matrix[new, new] - matrix[new, old]),
            "reindexing_interval": paired_interval(values[new, new], values[new, old], seed),
        }
        for new in range(len(models))
        for old in range(new)
    ]
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
        "measure": measure,
        **summarize(matrix),
        "upgrades": upgrades,
        "compatible": all(upgrade["compatible"] for upgrade in upgrades),
        "confidence": CONFIDENCE,
        "seed": seed,
        "feature_passes": len(models),
        "environment": runtime.environment(),
    }


def reevaluate(
    workdir: str,
    gallery: Split | None = None,
    query: Split | None = None,
    *,
    data_dir: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluates again the models that a run left, finished or not.

    Args:
      workdir: directory of the run.
      gallery: images searched in; None for the evaluation sets of the run's configuration.
      query: images searched for; None if and only if `gallery` is.
      data_dir: TFDS directory; None for that of the run's configuration.
      reporter: shows the progress; by default on the terminal.

    Returns:
      What evaluation.json holds: `evaluations` and `feature_passes` as in results.json.

    Raises:
      InputError: for bad input; the message is one line.
    """
    config = runs.read_config(workdir)
    tasks = runs.task_records(workdir)
    if config is None or not tasks:
        raise InputError(f"workdir={workdir} holds no run (config.json) with a finished task")
    config.data_dir = data_dir or config.data_dir
    if gallery is None:
        evaluations = inputs.load_evaluations(config)
    else:
        loaded = load_evaluation(gallery, query, config.image.size, config.data_dir or None)
        evaluations = {query.dataset: loaded}
    paths = [runs.task_path(workdir, task) for task in range(len(tasks))]
    metadata = [load_metadata(path) for path in paths]
    _check_comparable(paths, metadata)
    by_size = {name: {config.image.size: of} for name, of in evaluations.items()}
    embedded = _embeddings(paths, metadata, by_size, reporter or Reporter())
    evaluated = measured(evaluations, embedded, config.measures)
    return {
        "workdir": workdir,
        "num_tasks": len(tasks),
        "replacements": [t for t, record in enumerate(tasks) if record["replaced_by"]],
        "retrained": [t for t, record in enumerate(tasks) if record.get("retrained")],
        "evaluations": evaluated,
        "feature_passes": len(tasks) * len(evaluations),
        "environment": runtime.environment(),
    }


def load_evaluation(
    gallery: Split, query: Split, image_size: int, data_dir: str | None
) -> Evaluation:
    """Loads gallery and queries; if they are of two data sets, classes are matched by name.

    Raises:
      InputError: if a set cannot be had, both are the same, or they share no class.
    """
    if gallery == query:
        raise InputError(
            f"query: split {query.split!r} of {query.dataset} is also the gallery, where every "
            "query would find itself; name another split"
        )
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


def paired_interval(first: np.ndarray, second: np.ndarray, seed: int) -> list[float]:
    """Percentile bootstrap interval of mean(first) - mean(second) over the same queries.

    Queries are drawn, each with both its values. How good the gallery's images are as a sample is
    not in it: those are the gallery in question.

    Args:
      first: value of each query, [Q].
      second: likewise.
      seed: of the draws.

    Returns:
      Its two ends; `CONFIDENCE` says what share of such intervals holds the true difference.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _DRAWN_AT_ONCE // len(differences)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def _check_comparable(paths: Sequence[str], metadata: Sequence[Metadata]) -> None:
    """Raises `InputError` unless all models have the same simplex, and so comparable features."""
    for path, of in zip(paths, metadata, strict=True):
        if of.num_slots != metadata[0].num_slots:
            raise InputError(
                f"checkpoint {path} has K={of.num_slots}, but {paths[0]} has "
                f"K={metadata[0].num_slots}; models that are compared must have the same simplex"
            )


def _embeddings(
    paths: Sequence[str],
    metadata: Sequence[Metadata],
    evaluations: Mapping[str, Mapping[int, Evaluation]],
    reporter: Reporter,
) -> Iterator[tuple[str, Embedded]]:
    """One feature pass per model and evaluation, named; these have the images of each size."""
    extractors: dict[tuple[Architecture, ImageInput], FeatureExtractor] = {}
    with reporter.stage("evaluation", len(paths) * len(evaluations)) as stage:
        for path, of in zip(paths, metadata, strict=True):
            key = of.architecture, of.image
            if key not in extractors:  # models of one architecture share a compiled program
                options = ImageOptions(of.image.mean, of.image.std, 0, False)
                extractors[key] = FeatureExtractor(of.architecture.module(), options)
            loaded = load_model(path)
            for name, of_size in evaluations.items():
                evaluation = of_size[of.image.size]
                embedded = embed(extractors[key], loaded.variables, evaluation, carrier(loaded))
                if not (np.isfinite(embedded.query).all() and np.isfinite(embedded.gallery).all()):
                    raise InputError(f"checkpoint {path}: its features are not all finite")
                yield name, embedded
                stage.advance()


def _values_of_pairs(
    evaluation: Evaluation, embeddings: Iterable[Embedded], measure: str
) -> dict[tuple[int, int], np.ndarray]:
    """The measure of each query, [Q], for each pair (t, k) of models, t >= k."""
    values, galleries = {}, []
    for new, embedded in enumerate(embeddings):
        galleries.append(embedded.gallery)
        for old, gallery in enumerate(galleries):
            values[new, old] = PER_QUERY[measure](
                gallery, evaluation.gallery.labels, embedded.query, evaluation.query.labels
            )
    return values


def _has_class(evaluation: Evaluation) -> np.ndarray:
    """Whether the gallery holds the class of each query, [Q]."""
    return np.isin(evaluation.query.labels, evaluation.gallery.labels)


def _description(split: Split, images: ImageSet) -> dict[str, Any]:
    classes = len(np.unique(images.labels))
    return dataclasses.asdict(split) | {"images": len(images), "classes": classes}
