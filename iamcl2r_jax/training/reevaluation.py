"""Evaluates again the models that a run left, finished or not."""

from typing import Any

from iamcl2r_jax.evaluation import gate
from iamcl2r_jax.evaluation.gate import Split
from iamcl2r_jax.system import runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import inputs, runs


def reevaluate(
    workdir: str,
    gallery: Split | None = None,
    query: Split | None = None,
    *,
    data_dir: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Every pair of a run's models on its own evaluation sets, or on other images.

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
        loaded = gate.load_evaluation(gallery, query, config.image.size, config.data_dir or None)
        evaluations = {query.dataset: loaded}
    paths = [runs.task_path(workdir, task) for task in range(len(tasks))]
    figures = gate.evaluate_checkpoints(paths, evaluations, config.metrics, reporter or Reporter())
    return {
        "workdir": workdir,
        "num_tasks": len(tasks),
        "replacements": [t for t, record in enumerate(tasks) if record["replaced_by"]],
        "retrained": [t for t, record in enumerate(tasks) if record.get("retrained")],
        "evaluations": figures,
        "feature_passes": len(tasks) * len(evaluations),
        "environment": runtime.environment(),
    }
