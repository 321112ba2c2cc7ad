"""Theorem 1 on the models of a run: each update checked on held-out images, and summed up."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import simplex
from iamcl2r_jax.evaluation import theorem
from iamcl2r_jax.evaluation.intervals import CONFIDENCE
from iamcl2r_jax.models.stored import Model
from iamcl2r_jax.reports.tables import markdown
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, runs
from iamcl2r_jax.training.context import ProgramsByArchitecture

# Kinds of updates.
FINE_TUNED, REPLACED, RETRAINED = "fine-tuned", "across a replacement", "across a retraining"
_PARTS = {
    "same": "(a) same class",
    "other": "(b) other classes",
    "pairs": "(b) pairs of classes",
}
_MEASURED = [f.name for f in dataclasses.fields(theorem.Inequality) if f.name != "sign"]
_SHARES = ("holds", "holds_beyond", "violated_beyond", "caps_hold")


@dataclasses.dataclass(frozen=True)
class Update:
    """The check of Theorem 1 for two models of a run.

    Attributes:
      old: 0-based task of the old model.
      new: that of the new one.
      kind: what was done to the model after the old one, up to the new one; `RETRAINED` if it was
        ever retrained from scratch, or else `REPLACED` if it ever was.
      classes: names of the stream's classes that both were trained on.
      check: what was measured.
    """

    old: int
    new: int
    kind: str
    classes: Sequence[str]
    check: theorem.Check

    def as_json(self) -> dict[str, Any]:
        """Every number; those per class are in the order of `classes`."""
        check = self.check
        parts = ("same", "other", "mean_same", "mean_other")
        return {
            "old": self.old,
            "new": self.new,
            "kind": self.kind,
            "classes": list(self.classes),
            "kappa_old": check.kappa_old.tolist(),
            "kappa_new": check.kappa_new.tolist(),
            "pairs_of_classes": theorem.shares(check.pairs),
        } | {
            part: {name: array.tolist() for name, array in _arrays(getattr(check, part)).items()}
            for part in parts
        }


def _arrays(inequality: theorem.Inequality) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(inequality, name)) for name in (*_MEASURED, "margin")}


def check_run(
    config: ConfigDict,
    workdir: str,
    records: Sequence[dict[str, Any]],
    reporter: Reporter,
    *,
    resamples: int,
    seed: int,
) -> tuple[list[Update], list[dict[str, Any]]]:
    """Theorem 1 for each two models of a run and the stream's classes that both were trained on.

    Args:
      config, workdir, records: of the run and its finished tasks.
      reporter: shows the progress.
      resamples, seed: see `theorem.check`.

    Returns:
      Its updates, and of each model how its held-out features lie about its classifier's vectors:
      `task` (0-based); `classes`, how many of the stream it knows, all of them looked at; `kappa`,
      mean concentration of these; `shared`, E[cos(z, s)] with s the `theorem.shared_direction` of
      these; `caps_shared`, what that would be for symmetric caps.

    Raises:
      InputError: if there are no two models, the older ones know fewer than two classes, a class
        has fewer than two held-out images, or the run's data or models cannot be had.
    """
    stream = inputs.load_stream(config)
    known = [tasks.stop for tasks in stream.tasks[: len(records)]]
    pairs = [(k, t) for t in range(len(known)) for k in range(t) if known[k] >= 2]
    if not pairs:
        raise InputError(f"workdir={workdir}: no two models that know two or more classes")
    used = stream.test.labels < known[-1]
    images, labels = stream.test.images[used], stream.test.labels[used]
    names = stream.test.class_names
    few = np.bincount(labels, minlength=known[-1]) < 2
    if few.any():
        raise InputError(
            f"workdir={workdir}: class {names[int(np.argmax(few))]!r} has fewer than two held-out "
            "images, so no pair whose distance could be measured"
        )

    features, vectors, models = [], [], []
    programs = ProgramsByArchitecture(config)
    with reporter.stage("features", len(known)) as stage:
        for task in range(len(records)):
            model = runs.load_task(config, workdir, task)
            features.append(programs.features(model.architecture)(model.variables, images))
            vectors.append(_class_vectors(model, known[-1]))
            models.append(_state(task, features[-1], labels, vectors[-1][: known[task]]))
            stage.advance()

    updates = []
    with reporter.stage("intervals", len(pairs)) as stage:
        for old, new in pairs:
            both = labels < known[old]
            check = theorem.check(
                features[new][both],
                features[old][both],
                labels[both],
                vectors[new][: known[old]],
                vectors[old][: known[old]],
                resamples=resamples,
                confidence=CONFIDENCE,
                seed=seed,
            )
            kind = _kind(records[old + 1 : new + 1])
            updates.append(Update(old, new, kind, names[: known[old]], check))
            stage.advance()
    return updates, models


def _kind(between: Sequence[Mapping[str, Any]]) -> str:
    """The kind of an update, from the records of the tasks that it took."""
    if any(record["retrained"] for record in between):
        return RETRAINED
    return REPLACED if any(record["replaced_by"] for record in between) else FINE_TUNED


def _class_vectors(model: Model, num_stream_classes: int) -> np.ndarray:
    """Classifier vectors of the stream's classes in a model, [C, D]."""
    labels = np.arange(num_stream_classes)
    slots = simplex.downstream_slot(labels, model.metadata.num_slots)
    return np.asarray(model.classifier_rows())[slots]


def _state(task: int, features, labels, vectors) -> dict[str, Any]:
    known = labels < len(vectors)
    features, labels = features[known], labels[known]
    kappa = theorem.concentration(features, labels, vectors)
    shared = np.tile(theorem.shared_direction(vectors), (len(vectors), 1))
    each = np.arange(len(vectors))
    return {
        "task": task,
        "classes": len(vectors),
        "kappa": float(kappa.mean()),
        "shared": float(theorem.concentration(features, labels, shared).mean()),
        "caps_shared": float(np.mean(kappa * theorem.concentration(vectors, each, shared))),
    }


def by_kind(updates: Sequence[Update]) -> dict[str, list[theorem.Check]]:
    """The checks of each kind of update that there is."""
    found = {
        kind: [update.check for update in updates if update.kind == kind]
        for kind in (FINE_TUNED, REPLACED, RETRAINED)
    }
    return {kind: checks for kind, checks in found.items() if checks}


def summarize(updates: Sequence[Update]) -> dict[str, Any]:
    """How often the inequalities hold, over all updates, their kinds and their classes.

    Returns:
      For "all" and, if there are several, each kind of update: `updates`; `kappa_grew`, the share
      of classes whose concentration did not fall; and for "same", "other" and "pairs" as of
      `theorem.Check`: `cases`, `theorem.shares` of them, and the means of their arrays.
    """
    kinds = by_kind(updates)
    groups = {"all": [update.check for update in updates]} | (kinds if len(kinds) > 1 else {})
    summary = {}
    for group, checks in groups.items():
        grew = np.concatenate([check.kappa_new >= check.kappa_old for check in checks])
        summary[group] = {"updates": len(checks), "kappa_grew": float(grew.mean())}
        for part in _PARTS:
            pooled = _pooled([getattr(check, part) for check in checks])
            means = {name: array.mean() for name, array in _arrays(pooled).items()}
            del means["interval"]  # the mean of ends is the end of nothing
            summary[group][part] = {
                "cases": len(pooled.before),
                **theorem.shares(pooled),
                **{name: float(mean) for name, mean in means.items()},
            }
    return summary


def _pooled(inequalities: Sequence[theorem.Inequality]) -> theorem.Inequality:
    joined = {
        name: np.concatenate([getattr(inequality, name) for inequality in inequalities])
        for name in _MEASURED
    }
    return theorem.Inequality(inequalities[0].sign, **joined)


def tables(
    updates: Sequence[Update],
    models: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    name: str,
) -> list[str]:
    """What is to be said of a run, in Markdown: the summary of `summarize`, models and updates."""
    return [
        f"{name}: {title}\n\n{markdown(list(lines))}"
        for title, lines in (
            (
                "Theorem 1 on held-out images; beyond, violated: the "
                f"{CONFIDENCE:.0%} interval lies above, below zero; caps: what follows from κ "
                "alone",
                _summary_lines(summary),
            ),
            (
                "each model on the classes it knows; s is the direction that these share",
                _model_lines(models),
            ),
            (
                "means over the classes of each update, and shares of them; * replaced, + "
                "retrained between",
                _update_lines(updates),
            ),
        )
    ]


def _summary_lines(summary: dict[str, Any]) -> Iterator[Sequence[str]]:
    yield (
        *("updates", "inequality", "cases", "holds", "beyond", "violated", "caps: holds"),
        *("before → after", "caps: before → after"),
    )
    for group, found in summary.items():
        for part, title in _PARTS.items():
            figures = found[part]
            yield (
                f"{group} ({found['updates']})",
                title,
                str(figures["cases"]),
                *(f"{100 * figures[share]:.1f} %" for share in _SHARES),
                _arrow(figures["before"], figures["after"]),
                _arrow(figures["caps_before"], figures["caps_after"]),
            )


def _model_lines(models: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    yield "task", "classes", "κ", "E cos(z, s)", "of caps"
    for model in models:
        figures = (f"{model[name]:.3f}" for name in ("kappa", "shared", "caps_shared"))
        yield str(model["task"] + 1), str(model["classes"]), *figures


def _update_lines(updates: Sequence[Update]) -> Iterator[Sequence[str]]:
    measured = ["before → after", f"margin [{CONFIDENCE:.0%}]", "holds", "beyond", "violated"]
    columns = (f"({part}) {column}" for part in "ab" for column in measured)
    yield "old → new", "classes", "κ old → new", "κ grew", *columns
    marks = {FINE_TUNED: "", REPLACED: "*", RETRAINED: "+"}
    for update in updates:
        check = update.check
        cells = [
            f"{update.old + 1} → {update.new + 1}{marks[update.kind]}",
            str(len(update.classes)),
            _arrow(check.kappa_old.mean(), check.kappa_new.mean()),
            f"{np.mean(check.kappa_new >= check.kappa_old):.0%}",
        ]
        for mean, part in ((check.mean_same, check.same), (check.mean_other, check.other)):
            low, high = mean.interval
            stands = theorem.shares(part)
            cells.append(_arrow(mean.before, mean.after))
            cells.append(f"{mean.margin:+.4f} [{low:+.4f}, {high:+.4f}]")
            cells += [f"{stands[share]:.0%}" for share in _SHARES[:3]]
        yield cells


def _arrow(old: float, new: float) -> str:
    return f"{old:.4f} → {new:.4f}"
