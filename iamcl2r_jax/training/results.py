"""The results of a run whose tasks are finished: every pair of models, and reference models."""

from collections.abc import Sequence
from typing import Any

from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.evaluation.features import embed
from iamcl2r_jax.evaluation.pairs import evaluate_models, evaluate_pairs
from iamcl2r_jax.models.stored import Model, load_model
from iamcl2r_jax.training import runs
from iamcl2r_jax.training.context import Context
from iamcl2r_jax.training.schedule import fixed_schedule


def results_of(
    context: Context,
    records: Sequence[dict[str, Any]],
    evaluations: dict[str, Evaluation],
    untrained: Model,
) -> dict[str, Any]:
    """The results of a run whose tasks left `records`, but for times and environment."""
    config, tasks = context.config, context.stream.tasks
    figures, passes = evaluate(context, evaluations)
    replaced_by = {
        task: record["replaced_by"] for task, record in enumerate(records) if record["replaced_by"]
    }
    reference_figures = references(context, evaluations, untrained, replaced_by)
    return {
        "name": config.name,
        "method": config.method,
        "seed": config.seed,
        "num_tasks": len(tasks),
        "classes_per_task": [len(classes) for classes in tasks],
        "replacements": list(replaced_by),
        "retrained": list(config.replacements.retrain),
        "external_models": {str(task): path for task, path in replaced_by.items()},
        "fixed_schedule": (fixed_schedule(replaced_by) if config.replacements.watch else None),
        "task_accuracy": [record["task_accuracy"] for record in records],
        "evaluations": figures,
        "references": reference_figures,
        "feature_passes": passes,
        "reference_passes": sum(map(len, reference_figures.values())),
    }


def evaluate(context: Context, evaluations: dict[str, Evaluation]) -> tuple[dict[str, Any], int]:
    """Figures of the matrix of a run's models on each evaluation, and how many feature passes.

    Each model passes over each evaluation once.
    """
    config, num_tasks = context.config, len(context.stream.tasks)
    passes = 0

    def embeddings():
        nonlocal passes
        with context.reporter.stage("evaluation", num_tasks * len(evaluations)) as stage:
            for task in range(num_tasks):
                model = runs.load_task(config, context.workdir, task)
                extract = context.programs.features(model.architecture)
                for name, evaluation in evaluations.items():
                    context.preemption.check()
                    yield name, embed(extract, model, evaluation)
                    passes += 1
                    stage.advance()

    return evaluate_models(evaluations, embeddings(), config.metrics), passes


def references(
    context: Context,
    evaluations: dict[str, Evaluation],
    untrained: Model,
    replaced_by: dict[int, str],
) -> dict[str, dict[str, float]]:
    """What models that never saw the stream reach on the evaluations, in percent as AA.

    A model that is never updated has one accuracy for every pair, which is its AA: that of the
    untrained network, and that of the first external model.
    """
    models = {"untrained": untrained}
    if replaced_by:
        first = min(replaced_by)
        models["first_external"] = context.external.get(first) or load_model(replaced_by[first])
    metric = context.config.metrics[0]
    found = {}
    for evaluation_name, evaluation in evaluations.items():
        found[evaluation_name] = {}
        for name, model in models.items():
            extract = context.programs.features(model.architecture)
            embedded = embed(extract, model, evaluation)
            labels = evaluation.query.labels, evaluation.gallery.labels
            matrix = evaluate_pairs([embedded], *labels, [metric])[metric].matrix
            found[evaluation_name][name] = 100 * float(matrix[0, 0])
    return found
