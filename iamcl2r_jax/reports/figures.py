"""The paper's figures from runs: losses, AA per task, matrices, and the check of Theorem 1.

Each figure is written as a picture (PNG, SVG) and as JSON with the numbers in it. Runs of one
label, such as the seeds of a method, share a line with their std (n - 1) as a band; matrices
and the theorem are of single runs.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.evaluation.intervals import CONFIDENCE, mean_and_std
from iamcl2r_jax.reports import plots, updates
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import runs
from iamcl2r_jax.training.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to draw.

    Attributes:
      label: its name in legends; runs of one label are seeds of one system.
      name: its name where it stands alone; no two have the same.
      config: as it was run.
      records: of its finished tasks.
    """

    workdir: str
    label: str
    name: str
    config: ConfigDict
    records: list[dict[str, Any]]

    @property
    def schedule(self) -> Schedule:
        """Of its tasks."""
        return Schedule.of_records(self.records)

    def results(self) -> dict[str, Any]:
        """What stands in results.json; `InputError` if the run is not finished."""
        found = files.read_json(os.path.join(self.workdir, "results.json"))
        if found is None:
            raise InputError(f"workdir={self.workdir}: the run is not finished (no results.json)")
        return found


def main(
    figure: str,
    workdirs: Sequence[str],
    output: str,
    *,
    labels: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> None:
    """Does what launch/figures.py is asked for: writes a figure of some runs below `output`.

    Args:
      figure: a key of `FIGURES`.
      workdirs, output: directories of the runs, and to write into.
      labels: of the runs; by default their methods, and whether they were replaced if that differs.
      resamples, seed: of the bootstrap intervals of the theorem.
      reporter: by default on the terminal.

    Raises:
      InputError: for bad input; the message is one line.
    """
    reporter = reporter or Reporter()
    if figure not in FIGURES:
        raise InputError(f"figure={figure!r}: must be one of {', '.join(FIGURES)}")
    runs = load_runs(workdirs, labels)
    try:
        if figure == "theorem":
            stems = theorem_figure(runs, output, reporter, resamples=resamples, seed=seed)
        else:
            stems = FIGURES[figure](runs, output)
    except OSError as error:
        raise InputError(f"output={output}: cannot be written ({error.strerror})") from None
    for stem in stems:
        reporter.message(f"{stem}.png")


def load_runs(workdirs: Sequence[str], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs in some directories, labelled.

    Raises:
      InputError: if there is none, a directory holds none, or labels are not one for each.
    """
    if not workdirs:
        raise InputError("workdir: name one or more runs, as DIR,DIR")
    if labels and len(labels) != len(workdirs):
        raise InputError(
            f"labels: there are {len(labels)} for {len(workdirs)} runs; give one for each"
        )
    found = []
    for workdir in workdirs:
        config = runs.read_config(workdir)
        records = runs.task_records(workdir)
        if config is None or not records:
            raise InputError(f"workdir={workdir}: holds no run (config.json) with a finished task")
        found.append((workdir, config, records))
    updated = [any(record["replaced_by"] for record in records[1:]) for *_, records in found]
    labels = labels or [
        config.method + (", not replaced" if any(updated) and not was else "")
        for (_, config, _), was in zip(found, updated, strict=True)
    ]
    names = _distinct(labels, [f"seed {config.seed}" for _, config, _ in found])
    names = _distinct(names, [os.path.normpath(workdir) for workdir in workdirs])
    return [Run(w, la, n, c, r) for (w, c, r), la, n in zip(found, labels, names, strict=True)]


def _distinct(names: Sequence[str], additions: Sequence[str]) -> list[str]:
    return [
        f"{name}, {addition}" if names.count(name) > 1 else name
        for name, addition in zip(list(names), additions, strict=True)
    ]


# --- Fig. 3 -----------------------------------------------------------------------------------


def losses_figure(runs: Sequence[Run], output: str) -> list[str]:
    """Fig. 3: cross-entropy and total loss in each epoch of the last task, an update.

    Both are means over the epoch's training batches. The total of `simplex` is its cross-entropy;
    that of `hoc` is λ CE + (1 - λ) L_HOC, which may be negative.
    """
    for run in runs:
        if len(run.records) < 2:
            raise InputError(f"workdir={run.workdir}: one task is no update; two or more needed")
    panels, stds, written = {}, {}, {}
    for title, metric in (("cross-entropy", "ce"), ("total loss", "loss")):
        series = _by_label(
            runs, lambda run, m=metric: [e[m] for e in run.records[-1]["history"]], "epochs"
        )
        panels[title] = {label: lines["mean"] for label, lines in series.items()}
        stds[title] = _stds(series)
        written[metric] = series
    dataset = runs[0].config.stream.dataset
    title = f"training loss during an update, {dataset}"
    figure = plots.curve_panels(panels, xlabel="epoch of the update", stds=stds, title=title)
    return [_save(figure, output, "losses", {"dataset": dataset, "losses": written})]


# --- Fig. 4 -----------------------------------------------------------------------------------


def accuracy_figure(runs: Sequence[Run], output: str) -> list[str]:
    """Fig. 4: AA_τ after each task, in percent; one picture for each evaluation."""
    results = {run.workdir: run.results() for run in runs}
    schedule = Schedule(
        sorted({task for run in runs for task in run.schedule.replaced if task}),
        sorted({task for run in runs for task in run.schedule.retrained}),
    )
    stems = []
    for name in _common_evaluations(results):
        series = _by_label(
            runs, lambda run, n=name: results[run.workdir]["evaluations"][n]["aa_per_task"], "tasks"
        )
        figure = plots.curves(
            {label: lines["mean"] for label, lines in series.items()},
            xlabel="tasks τ",
            ylabel="$AA_τ$, %",
            schedule=schedule,
            stds=_stds(series),
            title=name,
        )
        written = {
            "evaluation": name,
            "replacements": schedule.replaced,
            "retrained": schedule.retrained,
            "aa_per_task": series,
        }
        stems.append(_save(figure, output, f"accuracy-{name}", written))
    return stems


# --- Fig. 5 -----------------------------------------------------------------------------------


def compatibility_figure(runs: Sequence[Run], output: str) -> list[str]:
    """Fig. 5: the compatibility matrices of the runs; one picture for each evaluation."""
    results = {run.workdir: run.results() for run in runs}
    stems = []
    for name in _common_evaluations(results):
        panels, written = {}, {}
        for run in runs:
            found = results[run.workdir]["evaluations"][name]
            title = f"{run.name}: AC {found['ac']:.2f}, AA {found['aa']:.1f} %"
            panels[title] = found["matrix"], run.schedule
            written[run.name] = {key: found[key] for key in ("matrix", "ac", "aa")}
        title = f"{name}, hatched: not compatible, bold: model replaced"
        if any(run.schedule.retrained for run in runs):
            title += ", +: retrained from scratch"
        written = {"evaluation": name, "runs": written}
        figure = plots.heat_maps(panels, title)
        stems.append(_save(figure, output, f"compatibility-{name}", written))
    return stems


def _common_evaluations(results: Mapping[str, dict]) -> list[str]:
    first, *others = (run["evaluations"] for run in results.values())
    common = [name for name in first if all(name in other for other in others)]
    if not common:
        raise InputError("workdir: these runs have no evaluation in common")
    return common


def _by_label(
    runs: Sequence[Run], values: Callable[[Run], Sequence[float]], counted: str
) -> dict[str, dict[str, Any]]:
    """Mean and std of a line of each run over the runs of its label."""
    series = {}
    for label in dict.fromkeys(run.label for run in runs):
        lines = [list(values(run)) for run in runs if run.label == label]
        if len(set(map(len, lines))) > 1:
            raise InputError(f"workdir: the runs of {label} differ in the number of {counted}")
        series[label] = mean_and_std(lines) | {
            "runs": [run.workdir for run in runs if run.label == label],
        }
    return series


def _stds(series: Mapping[str, dict]) -> dict[str, list[float]]:
    return {label: lines["std"] for label, lines in series.items() if lines["std"]}


# --- Theorem 1 --------------------------------------------------------------------------------


def theorem_figure(
    runs: Sequence[Run], output: str, reporter: Reporter, *, resamples: int, seed: int
) -> list[str]:
    """Theorem 1 for each two models of each run, on held-out images of the classes both know.

    For each run a picture, its numbers, and its tables in Markdown; the summary is printed as well.
    """
    stems = []
    for run in runs:
        checked, models = updates.check_run(
            run.config, run.workdir, run.records, reporter, resamples=resamples, seed=seed
        )
        summary = updates.summarize(checked)
        written = {
            "workdir": run.workdir,
            "method": run.config.method,
            "seed": run.config.seed,
            "confidence": CONFIDENCE,
            "resamples": resamples,
            "models": models,
            "updates": [update.as_json() for update in checked],
            "summary": summary,
        }
        figure = plots.theorem_panels(
            updates.by_kind(checked), f"{run.name}: Theorem 1 on held-out images"
        )
        name = re.sub(r"[^\w.-]+", "-", run.name)
        stems.append(_save(figure, output, f"theorem-{name}", written))
        tables = updates.tables(checked, models, summary, run.name)
        files.write_text(f"{stems[-1]}.md", "\n".join(tables))
        reporter.message(tables[0])
    return stems


def _save(figure: Any, output: str, name: str, written: dict[str, Any]) -> str:
    """Writes OUTPUT/NAME.{png,svg,json}; returns OUTPUT/NAME."""
    stem = os.path.join(output, name)
    plots.save(figure, stem)
    files.write_json(f"{stem}.json", written)
    return stem


FIGURES: dict[str, Callable[..., list[str]]] = {
    "losses": losses_figure,
    "accuracy": accuracy_figure,
    "compatibility": compatibility_figure,
    "theorem": theorem_figure,
}
