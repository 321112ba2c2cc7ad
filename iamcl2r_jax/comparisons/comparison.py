"""Runs side by side under one protocol: variants of one run, each with several seeds.

A workdir holds:
  cells/<variant>-seed<seed>  each cell's run, see lifelong.py; failure.json if it diverged
  comparison.json             the figures of all, see `summarize`
  <evaluation>/               tables and pictures, see comparison_report.py
"""

import json
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from iamcl2r_jax.comparisons import (
    cells,
    comparison_report,
    external_alone,
    jobs,
    map_axis,
    map_report,
    tables,
)
from iamcl2r_jax.comparisons.cells import Cell
from iamcl2r_jax.config import check_stream, makes_external_models
from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.system import files, runtime
from iamcl2r_jax.system.errors import DivergenceError, InputError, LockedError
from iamcl2r_jax.system.preemption import Preemption, on_sigterm
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import external, inputs, lifelong, runs

# Exit statuses of launch/compare.py.
DONE, FAILED = 0, 1

Results = Mapping[str, dict[str, Any] | None]  # by cell, results.json; None of an unfinished run


def main(
    config: ConfigDict,
    workdir: str | None,
    only: Collection[str] | None,
    command: str,
    names: Sequence[str] = (),
    *,
    num_jobs: int = 1,
    initialize: Callable[[], None] | None = None,
) -> int:
    """Runs and prints a comparison, see `run`: what launch/compare.py does.

    Args:
      workdir: directory of the comparison; by default named after it.
      names: maps after the fact to try on the models of every finished run, or of those that `only`
        names, see `map_axis`.

    Returns:
      Its exit status: `FAILED` if a cell has failed, now or in an earlier start.
    """
    reporter = Reporter()
    names = maps.check_names(names) if names else []
    workdir = workdir or f"runs/{config.name}"
    with on_sigterm(extra_seconds=4.0 if num_jobs > 1 else 0.0) as preemption:
        comparison = run(
            config,
            workdir,
            only,
            reporter,
            preemption,
            command=command,
            num_jobs=num_jobs,
            initialize=initialize,
        )
    comparison_report.show(comparison, reporter.console)
    if names:
        _try_maps(config, workdir, only, names, reporter)
    reporter.message(f"tables and pictures: {workdir}")
    failed = any(cell["state"] == "failed" for cell in comparison["cells"].values())
    return FAILED if failed else DONE


def _try_maps(
    config: ConfigDict,
    workdir: str,
    only: Collection[str] | None,
    names: Sequence[str],
    reporter: Reporter,
) -> None:
    named = cells.select(cells.expand(config, workdir), only or None)
    finished = [cell for cell in named if cell.finished()]
    chains = {}  # of external models, which several runs share
    found = {
        (cell.variant, cell.seed): map_axis.evaluate_run(cell.workdir, names, reporter, chains)
        for cell in finished
    }
    if any(of["chains"] for of in found.values()):
        map_report.write(found, workdir, reporter)


def run(
    config: ConfigDict,
    workdir: str,
    only: Collection[str] | None = None,
    reporter: Reporter | None = None,
    preemption: Preemption | None = None,
    *,
    command: str | None = None,
    num_jobs: int = 1,
    initialize: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Runs the cells that are not finished, then writes tables and pictures of all that are.

    A cell that diverges is noted, and the others go on; another start tries it again. Several
    processes may share the work of a workdir, each passing over what another is at; it is best
    done once the external models are there, since one of them makes these for all.

    Args:
      config, workdir: of the comparison, see `cells.comparison`.
      only: variants or cells to run, see `cells.select`; () to run none. The tables are of all.
      reporter, preemption: see `lifelong.run`.
      command: how the program that calls this was started; by default this call.
      num_jobs: cells at a time, each in a process of its own if there are several.
      initialize: called first in each of these, see `jobs.run_cells`.

    Returns:
      What stands in workdir/comparison.json: the `command`, and see `summarize`.

    Raises:
      DamagedError: if results that are to be tabulated are not as they were written.
      InputError: before the first cell is run, if any cannot work or its directory holds a run
        with another configuration.
    """
    reporter, preemption = reporter or Reporter(), preemption or Preemption()
    all_cells = cells.expand(config, workdir)
    for cell in all_cells:
        runs.refuse_other_config(cell.config, cell.workdir)
    unfinished = [cell for cell in cells.select(all_cells, only) if not cell.finished()]
    for cell in unfinished:
        try:
            check_stream(cell.config, *inputs.stream_size(cell.config))
        except InputError as error:
            raise InputError(f"variant {cell.variant!r}: {error}") from None
    run_cell = partial(_run_cell, command)
    if num_jobs > 1:
        cache = partial(_in_process, jax.config.jax_compilation_cache_dir, initialize)
        jobs.run_cells(unfinished, run_cell, num_jobs, reporter, preemption, cache)
    else:
        for number, cell in enumerate(unfinished, start=1):
            reporter.message(f"cell {number}/{len(unfinished)}: {cell.name}")
            run_cell(cell, reporter, preemption)
    results = {cell.name: cell.results() for cell in all_cells}
    command = command or f"comparison.run(config, {workdir!r}, {only!r})"
    alone = external_alone.evaluate_cells(all_cells, results, reporter)
    comparison = {"command": command} | summarize(config, all_cells, results, alone)
    files.write_json(os.path.join(workdir, "comparison.json"), comparison)
    comparison_report.write(comparison, _first_results(all_cells, results), workdir, reporter)
    return comparison


def _in_process(cache: str | None, initialize: Callable[[], None] | None) -> None:
    if cache:
        runtime.enable_compilation_cache(cache)
    if initialize is not None:
        initialize()


def _run_cell(command: str | None, cell: Cell, reporter: Reporter, preemption: Preemption) -> None:
    # Of a flag that is given twice, the last counts.
    command = command and f"{command} {shlex.quote(f'--only={cell.name}')}"
    try:
        lifelong.run(cell.config, cell.workdir, reporter, preemption, command=command)
    except LockedError as error:
        reporter.message(f"{cell.name} is passed over: {error}")
    except DivergenceError as error:
        files.write_json(os.path.join(cell.workdir, "failure.json"), {"error": str(error)})
        reporter.message(f"{cell.name} failed: {error}")


def _first_results(all_cells: Sequence[Cell], results: Results) -> dict[str, dict[str, Any]]:
    """By variant, its finished run with the first seed that has one."""
    first = {}
    for cell in all_cells:
        if results[cell.name] is not None:
            first.setdefault(cell.variant, results[cell.name])
    return first


def summarize(
    config: ConfigDict,
    all_cells: Sequence[Cell],
    results: Results,
    alone: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The figures of a comparison; `alone` is what `external_alone.evaluate_cells` gives.

    Returns:
      `name`, `seeds`, `variants` (what each changes of the base), `groups` (field, and the variant
      of each setting), `cells` (state, and the error of a failed one), `replacements` and
      `retrained` (tasks at which every finished run replaced its model, or retrained it), `metric`
      (of the matrices), and `evaluations`: by name `rows` by variant, `differences`, the rows of
      the other variants less that of the first, seed by seed, and `references`, rows of models that
      never saw the stream; of rows see `tables`.
    """
    finished = [run for run in results.values() if run is not None]
    return {
        "name": config.name,
        "seeds": list(config.seeds),
        "variants": files.as_json(cells.variants(config)),
        "groups": {
            group: {"field": settings.field, "variants": cells.group_variants(config, group)}
            for group, settings in config.groups.items()
        },
        "cells": {cell.name: _state(cell, results[cell.name]) for cell in all_cells},
        "replacements": _in_all(run["replacements"] for run in finished),
        "retrained": _in_all(run["retrained"] for run in finished),
        "metric": config.base.metrics[0],
        "evaluations": {
            name: _of_evaluation(name, all_cells, results, alone)
            for name in config.base.evaluations
        },
    }


def _in_all(tasks: Iterable[Sequence[int]]) -> list[int]:
    """What is in each of some lists; nothing if there is none."""
    sets = list(map(set, tasks))
    return sorted(set.intersection(*sets)) if sets else []


def _state(cell: Cell, results: dict[str, Any] | None) -> dict[str, Any]:
    if results is not None:
        return {"state": "finished"}
    error = cell.failure()
    return {"state": "failed", "error": error} if error else {"state": "missing"}


def _of_evaluation(name: str, all_cells, results, alone) -> dict[str, dict[str, tables.Row]]:
    rows = _rows(name, all_cells, results)
    first, *others = rows
    return {
        "rows": rows,
        "differences": {
            variant: tables.difference_row(rows[variant], rows[first]) for variant in others
        },
        "references": _reference_rows(name, all_cells, results, alone),
    }


def _rows(evaluation: str, all_cells: Sequence[Cell], results: Results) -> dict[str, tables.Row]:
    by_variant = {}
    for cell in all_cells:
        by_variant.setdefault(cell.variant, []).append(cell)
    return {
        variant: tables.make_row(
            evaluation,
            [results[cell.name] for cell in its_cells],
            failed=sum(cell.failure() is not None for cell in its_cells),
        )
        for variant, its_cells in by_variant.items()
    }


def _reference_rows(
    evaluation: str,
    all_cells: Sequence[Cell],
    results: Results,
    alone: Mapping[str, dict[str, Any]],
) -> dict[str, tables.Row]:
    """The external models alone, and AA of the untrained network and of the first external model.

    A model that is never updated has one accuracy for all pairs, which is its AA.

    Methods with a learnable head have other external models than those with the simplex, and a
    variant may change network or recipe: where that makes several, the label says whose they are.
    """
    found = {}  # {reference: {model: {seed that it depends on: figures}}}
    users = {}  # {model: variants}
    for cell in all_cells:
        run = results[cell.name]
        figures = {
            reference: {"aa": accuracy}
            for reference, accuracy in (run["references"][evaluation] if run else {}).items()
        }
        if cell.name in alone:
            of_pairs = tables.figures(alone[cell.name], evaluation)
            figures = {"external_models_alone": of_pairs} | figures
        for reference, of_reference in figures.items():
            model, seed = _reference_model(cell, run, reference)
            found.setdefault(reference, {}).setdefault(model, {})[seed] = of_reference
            users.setdefault(model, {})[cell.variant] = None
    rows = {}
    for reference, models in found.items():
        for model, by_seed in models.items():
            label = reference.replace("_", " ")
            if len(models) > 1:
                first, *others = users[model]
                label += f" ({', '.join([first, *others[:1], *(['…'] if others[1:] else [])])})"
            rows[label] = tables.reference_row(list(by_seed.values()))
    return rows


def _reference_model(cell: Cell, run: dict[str, Any], reference: str) -> tuple[str, int | None]:
    """What tells a reference model from others of another seed, and the seed it depends on."""
    c = cell.config
    if reference == "untrained":
        network = (c.num_slots, c.model.to_dict(), c.image.to_dict())
        return json.dumps(network, sort_keys=True), cell.seed
    first = min(run["external_models"], key=int)
    if not makes_external_models(c) or int(first) not in c.replacements.tasks:
        return run["external_models"][first], None
    recipe = external.recipe_of(c)
    seed, recipe.seed = recipe.seed, 0
    return external.checkpoint_path("", recipe, c.replacements.classes[0]), seed
