"""What launch/evaluate.py does: it compares models or evaluates a run, saves and prints."""

import os
from collections.abc import Sequence
from typing import Any

from iamcl2r_jax.evaluation import feature_files, from_features, gate
from iamcl2r_jax.evaluation.gate import Split
from iamcl2r_jax.reports import report
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import runs
from iamcl2r_jax.training.reevaluation import reevaluate
from iamcl2r_jax.training.schedule import Schedule

COMPATIBLE, INCOMPATIBLE = 0, 3  # exit statuses; bad input is 2, a crash 1


def models(
    paths: Sequence[str],
    gallery: Split | None,
    query: Split | None,
    *,
    output: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> int:
    """The gate, --models: compares checkpoints, see `gate.compare`; returns the exit status.

    Raises:
      InputError: for bad input; the message is one line.
    """
    reporter, output = reporter or Reporter(), output or "evaluation.json"
    if gallery is None:
        raise InputError("gallery: name a data set to compare the models on, e.g. folder:DIR")
    files.require_writable(os.path.dirname(output) or ".")
    results = gate.compare(paths, gallery, query, reporter=reporter, **options)
    files.write_json(output, results)
    report.print_upgrades(results, reporter.console)
    report.print_advice(results, reporter.console, ways=bool(options.get("maps")))
    reporter.message(f"results: {output}")
    return COMPATIBLE if results["compatible"] else INCOMPATIBLE


def features(
    paths: Sequence[str],
    names: Sequence[str] = (),
    pairs: Sequence[str] | None = None,
    *,
    output: str | None = None,
    **options: Any,
) -> int:
    """The gate, --features: compares models by files of their features; returns the exit status.

    Args:
      paths, names, pairs, options: see `from_features.compare`, with files in place of tables.
      output: file to write; by default evaluation.json here.

    Raises:
      InputError: for bad input; the message is one line.
    """
    reporter, output = Reporter(), output or "evaluation.json"
    files.require_writable(os.path.dirname(output) or ".")
    if pairs is not None and len(pairs) != len(paths):
        raise InputError(
            f"pairs={','.join(pairs)}: name as many files as features={','.join(paths)}"
        )
    tables, of_pairs = (
        None if of is None else [feature_files.open_table(path) for path in of]
        for of in (paths, pairs)
    )
    results = from_features.compare(tables, names, of_pairs, **options)
    files.write_json(output, results)
    report.print_features(results, reporter.console)
    reporter.message(f"results: {output}")
    return COMPATIBLE if results["compatible"] else INCOMPATIBLE


def run(
    workdir: str,
    gallery: Split | None = None,
    query: Split | None = None,
    *,
    data_dir: str | None = None,
    output: str | None = None,
) -> None:
    """--workdir: evaluates the models of a run, and writes the report of a finished one again.

    Raises:
      InputError: for bad input; the message is one line.
    """
    reporter, output = Reporter(), output or os.path.join(workdir, "evaluation.json")
    if os.path.basename(output) == "results.json":
        raise InputError(f"output={output}: results.json is what a run writes; choose another")
    files.require_writable(os.path.dirname(output) or ".")
    evaluated = reevaluate(workdir, gallery, query, data_dir=data_dir, reporter=reporter)
    files.write_json(output, evaluated)
    schedule = Schedule.of_results(evaluated)
    report.print_evaluations(evaluated["evaluations"], schedule, reporter.console)
    reporter.message(f"results: {output}")
    results = files.read_json(os.path.join(workdir, "results.json"))
    if results is not None:
        config = runs.read_config(workdir)
        config.data_dir = data_dir or config.data_dir
        runs.write_report(config, workdir, results, reporter)
