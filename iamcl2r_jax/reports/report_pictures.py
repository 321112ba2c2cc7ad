"""The pictures of a run's report: each a plot in DIR/figures, and what it shows in words."""

import base64
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iamcl2r_jax import simplex
from iamcl2r_jax.data.sources import Evaluation, ImageSet
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.reports import image_plots, plots, projections, retrieval_strip
from iamcl2r_jax.reports.words import printable
from iamcl2r_jax.training.schedule import Schedule

_QUERIES, _NEAREST, _GALLERY = 8, 8, 1024  # of a retrieval strip
_IMAGES_PER_CLASS = 40  # in the view of the features
# Of an epoch's metrics, see `training`; the others are the method's loss terms.
_NO_LOSS_TERMS = frozenset({"loss", "accuracy", "grad_norm", "learning_rate"})

Embed = Callable[[np.ndarray], np.ndarray]  # a model: images [N, H, W, 3] to features [N, D]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot in the page.

    Attributes:
      stem: its name in DIR/figures, without suffix.
      source: the SVG as a data URI.
      alt: what it shows, in words.
      caption: what stands below it.
    """

    stem: str
    source: str
    alt: str
    caption: str


def matrix(directory: str, name: str, values: Any, schedule: Schedule) -> Picture:
    """The compatibility matrix of an evaluation."""
    return _picture(
        directory,
        f"matrix_{_file_name(name)}",
        plots.heat_map(values, schedule, name),
        f"Compatibility matrix of {name} as a heat map.",
        name,
    )


def over_tasks(directory: str, results: Mapping[str, Any], schedule: Schedule) -> list[Picture]:
    """AA and AC of the models up to each task, a line for each evaluation."""
    return [
        _over_tasks(directory, results, schedule, key, ylabel, what, digits)
        for key, ylabel, what, digits in (
            ("aa_per_task", "AA, %", "Average accuracy AA", ".1f"),
            ("ac_per_task", "AC", "Average compatibility AC", ".2f"),
        )
    ]


def _over_tasks(directory, results, schedule, key, ylabel, what, digits) -> Picture:
    lines = {name: evaluation[key] for name, evaluation in results["evaluations"].items()}
    read = "; ".join(
        f"{name}: {', '.join(format(value, digits) for value in line)}"
        for name, line in lines.items()
    )
    return _picture(
        directory,
        key,
        plots.curves(lines, xlabel="task τ", ylabel=ylabel, schedule=schedule),
        f"{what} as curves, after task 1 to {results['num_tasks']}. {read}.",
        f"{what} of the models so far, after each task τ. Dotted: the model was replaced"
        f"{'; dashed: it was retrained from scratch' if schedule.retrained else ''}.",
    )


def training(
    directory: str, records: Sequence[Mapping[str, Any]], schedule: Schedule
) -> list[Picture]:
    """Loss terms and training accuracy of every epoch, all tasks one after another."""
    starts = np.cumsum([0] + [len(record["history"]) for record in records[:-1]]).tolist()
    axis = {
        "xlabel": "epoch, over all tasks",
        "boundaries": starts[1:],
        "schedule": schedule.at(starts),
    }
    history = [metrics for record in records for metrics in record["history"]]
    accuracy = [100 * metrics["accuracy"] for metrics in history]
    terms = [name for name in history[0] if name not in _NO_LOSS_TERMS]
    lines = {name: [metrics[name] for metrics in history] for name in terms}
    total = [metrics["loss"] for metrics in history]
    if list(lines.values()) != [total]:  # a single term is the loss
        lines = {"loss": total, **lines}
    verticals = (
        "Grey verticals: a task begins; dotted: with a replaced model"
        f"{'; dashed: from scratch' if schedule.retrained else ''}."
    )
    at_the_end = ", ".join(f"{name} {line[-1]:.3f}" for name, line in lines.items())
    return [
        _picture(
            directory,
            "training_loss",
            plots.curves(lines, ylabel="loss" if len(lines) > 1 else f"loss ({terms[0]})", **axis),
            f"Loss over the {len(history)} epochs of all tasks; at the end {at_the_end}.",
            "The loss and its terms, these before they are weighted; mean over the batches of "
            f"an epoch. {verticals}",
        ),
        _picture(
            directory,
            "training_accuracy",
            plots.curves({"accuracy": accuracy}, ylabel="accuracy, %", **axis),
            f"Training accuracy over the {len(history)} epochs; at the end {accuracy[-1]:.1f} %.",
            f"Accuracy of the classifier on the training batches, memory included. {verticals}",
        ),
    ]


def searches(
    directory: str,
    name: str,
    evaluation: Evaluation,
    oldest: Embed,
    newest: Embed,
    num_tasks: int,
    seed: int,
    *,
    carried: bool = False,
) -> Picture:
    """Queries of the newest model in the gallery as the oldest model embedded it.

    With `carried`, as that has since been brought to the newest model without its images.
    """
    query, gallery = (
        _some(images, retrieval_strip.draw(seed, count, len(images)))
        for images, count in ((evaluation.query, _QUERIES), (evaluation.gallery, _GALLERY))
    )
    strip = retrieval_strip.build(
        gallery, oldest(gallery.images), query, newest(query.images), _NEAREST
    )
    carried_on = " and carried on by the maps of the later models" if carried else ""
    searched = f"all {len(gallery):,} images of the gallery"
    if len(gallery) < len(evaluation.gallery):
        searched = (
            f"{len(gallery):,} images of the gallery, drawn at random from "
            f"{len(evaluation.gallery):,}"
        )
    return _picture(
        directory,
        f"retrieval_{_file_name(name)}",
        image_plots.retrieval_strip(strip),
        f"Queries of {name} with their nearest gallery images. {_read(strip)}.",
        f"{name}: queries embedded by model {num_tasks}, and the nearest gallery images as "
        f"embedded by model 1{carried_on}. Green ✓: of the query's class; orange ✗: of another. "
        f"{strip.right.sum()} of {strip.right.size} are right. The queries were drawn at random "
        f"(seed {seed}), whatever they found; each searched {searched}.",
    )


def _read(strip: retrieval_strip.Strip) -> str:
    """A strip for who cannot see it."""
    rows = zip(strip.query_classes, strip.nearest_classes, strip.right, strict=True)
    return "; ".join(
        f"query {query}: "
        + ", ".join(
            "right" if is_right else f"wrong ({found})"
            for found, is_right in zip(classes, right, strict=True)
        )
        for query, classes, right in rows
    )


def features(
    directory: str,
    stream: Stream,
    models: Mapping[str, Embed],
    classifier: np.ndarray,
    *,
    fixed: bool,
    seed: int,
) -> Picture | None:
    """Held-out images of three classes, by models that know them.

    Args:
      directory: of the figures.
      stream: of the run.
      models: to show, by name; the last is the newest.
      classifier: rows of the newest model's classifier, [K, D].
      fixed: whether every model has the same.
      seed: of the choice of classes.

    Returns:
      None where there are not three classes with held-out images.
    """
    present = np.unique(stream.test.labels)
    of_first_task = present[present < stream.tasks[0].stop]
    eligible = of_first_task if len(of_first_task) >= 3 else present[:3]
    if len(eligible) < 3:
        return None
    classes = eligible[np.sort(retrieval_strip.draw(seed, 3, len(eligible)))]
    positions = [np.flatnonzero(stream.test.labels == cls)[:_IMAGES_PER_CLASS] for cls in classes]
    images = _some(stream.test, np.concatenate(positions))
    view = projections.view(
        classifier[simplex.downstream_slot(classes, len(classifier))],
        np.searchsorted(classes, images.labels),
        {name: embed(images.images) for name, embed in models.items()},
    )
    names = [printable(stream.test.class_names[cls]) for cls in classes]
    cosines = ", ".join(f"{name} {value:.2f}" for name, value in view.concentrations.items())
    vectors = "the d-Simplex vertices" if fixed else f"the classifier rows of {list(models)[-1]}"
    chosen = (
        f"drawn with seed {seed} from those of the first task"
        if len(of_first_task) >= 3
        else "the first of the stream"
    )
    return _picture(
        directory,
        "features",
        image_plots.feature_view(view, names),
        f"Features of classes {', '.join(names)} by {' and '.join(models)} in the plane through "
        f"{vectors} of these classes. Mean cosine with the own vector: {cosines}.",
        f"{len(images)} held-out images of three classes ({', '.join(names)}; {chosen}). Their "
        f"features at unit length, projected at right angles onto the plane through {vectors} of "
        "these classes (★, at unit length). On a star: equal to its vector; in the middle: "
        "nothing to do with the three. Hollow: the oldest model; filled: the newest. "
        f"Mean cosine with the own vector, κ: {cosines}.",
    )


def _some(images: ImageSet, positions: np.ndarray) -> ImageSet:
    return dataclasses.replace(
        images, images=images.images[positions], labels=images.labels[positions]
    )


def _picture(directory: str, stem: str, figure: Figure, alt: str, caption: str) -> Picture:
    svg = plots.save_svg(figure, os.path.join(directory, stem))
    encoded = base64.b64encode(svg).decode("ascii")
    return Picture(stem, f"data:image/svg+xml;base64,{encoded}", alt, caption)


def _file_name(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", name)
