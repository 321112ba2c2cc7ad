"""The pictures of a run's report: what each shows, and the same in words."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from iamcl2r_jax import simplex
from iamcl2r_jax.data.sources import Evaluation, ImageSet
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation.searches import draw
from iamcl2r_jax.reports import charts, projections
from iamcl2r_jax.reports.words import printable
from iamcl2r_jax.training.schedule import Schedule

_IMAGES_PER_CLASS = 40  # in the view of the features
_THUMBNAIL = 96  # pixels of the longer side, at most
# Of an epoch's metrics, see `training`; the others are the method's loss terms.
_NO_LOSS_TERMS = frozenset({"loss", "accuracy", "grad_norm", "learning_rate"})

Embed = Callable[[np.ndarray], np.ndarray]  # a model: images [N, H, W, 3] to features [N, D]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A chart, what it shows in words for who cannot see it, and what stands below it."""

    chart: charts.LineChart | charts.PlaneChart
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small image.

    Attributes:
      source: PNG as a data URI.
      name: of its class.
      right: whether that is the query's class; None for a query.
    """

    source: str
    name: str
    right: bool | None


@dataclasses.dataclass(frozen=True)
class Searches:
    """Queries with their nearest gallery images, a row each, the query first."""

    rows: list[list[Thumbnail]]
    caption: str


def over_tasks(results: Mapping[str, Any], schedule: Schedule) -> list[Picture]:
    """AA and AC of the models up to each task, a line for each evaluation."""
    return [
        _over_tasks(results, schedule, key, ylabel, what, digits)
        for key, ylabel, what, digits in (
            ("aa_per_task", "AA, %", "Average accuracy AA", ".1f"),
            ("ac_per_task", "AC", "Average compatibility AC", ".2f"),
        )
    ]


def _over_tasks(results, schedule, key, ylabel, what, digits) -> Picture:
    lines = {name: evaluation[key] for name, evaluation in results["evaluations"].items()}
    read = "; ".join(
        f"{name}: {', '.join(format(value, digits) for value in line)}"
        for name, line in lines.items()
    )
    return Picture(
        charts.line_chart(lines, xlabel="task τ", ylabel=ylabel, schedule=schedule),
        f"{what} as curves, after task 1 to {results['num_tasks']}. {read}.",
        f"{what} of the models so far, after each task τ. Dotted: the model was replaced"
        f"{'; dashed: it was retrained from scratch' if schedule.retrained else ''}.",
    )


def training(records: Sequence[Mapping[str, Any]], schedule: Schedule) -> list[Picture]:
    """Loss terms and training accuracy of every epoch, all tasks one after another."""
    starts = np.cumsum([0] + [len(record["history"]) for record in records[:-1]]).tolist()
    axis = {"xlabel": "epoch", "boundaries": starts[1:], "schedule": schedule.at(starts)}
    history = [metrics for record in records for metrics in record["history"]]
    accuracy = [100 * metrics["accuracy"] for metrics in history]
    terms = [name for name in history[0] if name not in _NO_LOSS_TERMS]
    lines = {name: [metrics[name] for metrics in history] for name in terms}
    total = [metrics["loss"] for metrics in history]
    if list(lines.values()) != [total]:  # a single term is the loss
        lines = {"loss": total, **lines}
    verticals = (
        "Epochs of all tasks, one after another. Grey verticals: a task begins; dotted: with a "
        f"replaced model{'; dashed: from scratch' if schedule.retrained else ''}."
    )
    at_the_end = ", ".join(f"{name} {line[-1]:.3f}" for name, line in lines.items())
    return [
        Picture(
            charts.line_chart(
                lines, ylabel="loss" if len(lines) > 1 else f"loss ({terms[0]})", **axis
            ),
            f"Loss over the {len(history)} epochs of all tasks; at the end {at_the_end}.",
            "The loss and its terms, these before they are weighted; mean over the batches of "
            f"an epoch. {verticals}",
        ),
        Picture(
            charts.line_chart({"accuracy": accuracy}, ylabel="accuracy, %", **axis),
            f"Training accuracy over the {len(history)} epochs; at the end {accuracy[-1]:.1f} %.",
            f"Accuracy of the classifier on the training batches, memory included. {verticals}",
        ),
    ]


def searches(
    name: str, evaluation: Evaluation, found: Mapping[str, Any], num_tasks: int, *, carried: bool
) -> Searches:
    """Queries of the newest model in the gallery as the oldest model embedded it.

    Args:
      name, evaluation: whose images these are.
      found: positions of "queries" [Q] and of the "nearest" gallery images of each [Q, N].
      num_tasks: number of the newest model.
      carried: whether maps brought the gallery to the newest model, without its images.
    """
    names = [printable(cls) for cls in evaluation.query.class_names]
    rows, right = [], 0
    for query, positions in zip(found["queries"], found["nearest"], strict=True):
        label = evaluation.query.labels[query]
        row = [Thumbnail(_png(evaluation.query.images[query]), names[label], None)]
        for position in positions:
            image, other = evaluation.gallery.images[position], evaluation.gallery.labels[position]
            row.append(Thumbnail(_png(image), names[other], bool(other == label)))
            right += bool(other == label)
        rows.append(row)
    carried_on = " and carried on by the maps of the later models" if carried else ""
    return Searches(
        rows,
        f"{name}: queries embedded by model {num_tasks}, and the nearest images of the whole "
        f"gallery as embedded by model 1{carried_on}. Green ✓: of the query's class; orange ✗: of "
        f"another. {right} of {sum(len(row) - 1 for row in rows)} are right. The queries were "
        "drawn at random, whatever they found.",
    )


def _png(image: np.ndarray) -> str:
    """The image as a data URI; a large one is made smaller."""
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def features(
    stream: Stream,
    models: Mapping[str, Embed],
    classifier: np.ndarray,
    *,
    fixed: bool,
    seed: int,
) -> Picture | None:
    """Held-out images of three classes, by models that know them.

    Args:
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
    classes = eligible[np.sort(draw(seed, 3, len(eligible)))]
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
    return Picture(
        charts.plane_chart(view, names),
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
