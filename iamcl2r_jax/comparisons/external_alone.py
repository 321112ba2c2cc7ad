"""External models as they come, one replacing the other, with no training in between.

The baseline of every method: external models that share a simplex are partly compatible by
themselves. What they reach is kept beside the run that used them, in external_models.json.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from iamcl2r_jax.comparisons.cells import Cell
from iamcl2r_jax.evaluation import gate
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.system import files
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs

FILE = "external_models.json"


def evaluate_cells(
    cells: Sequence[Cell], results: Mapping[str, dict[str, Any] | None], reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """The external models of each finished cell, each set of models once.

    Returns:
      By cell, as far as results.json has them, `evaluations` and `replacements`, in which every
      model replaces the one before. Cells with fewer than two external models, or whose models are
      not there any more, are left out.
    """
    found, by_models = {}, {}
    for cell in cells:
        run = results[cell.name]
        paths = tuple(dict.fromkeys(run["external_models"].values())) if run else ()
        if len(paths) < 2:
            continue
        if paths not in by_models:
            by_models[paths] = _evaluated(cell, paths, reporter)
        if by_models[paths] is not None:
            found[cell.name] = by_models[paths]
    return found


def _evaluated(cell: Cell, paths: Sequence[str], reporter: Reporter) -> dict[str, Any] | None:
    kept = os.path.join(cell.workdir, FILE)
    found = files.read_json(kept)
    if found is not None and found["models"] == list(paths):
        return found
    if missing := [path for path in paths if not checkpoints.exists(path)]:
        reporter.message(f"{cell.name}: {missing[0]} is not there, no row of external models alone")
        return None
    evaluations = inputs.load_evaluations(cell.config)
    found = {
        "models": list(paths),
        "evaluations": gate.evaluate_checkpoints(paths, evaluations, cell.config.metrics, reporter),
        "replacements": list(range(len(paths))),
    }
    files.write_json(kept, found)
    return files.as_json(found)
