"""DIR/report.html: what a run was and what came of it, as one page that opens offline.

It is made from what the run left (results.json, the records and models of its tasks) and from a few
images. It draws its own charts; `figures` makes those of a paper.
"""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jinja2
import numpy as np
from ml_collections import ConfigDict

from iamcl2r_jax import compatibility, methods, retrieval
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.data.stream import Stream
from iamcl2r_jax.evaluation.intervals import CONFIDENCE
from iamcl2r_jax.evaluation.pairs import finite
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import Model, load_metadata
from iamcl2r_jax.reports import report_pictures as pictures
from iamcl2r_jax.reports import words
from iamcl2r_jax.reports.colours import heat_colours
from iamcl2r_jax.system import files
from iamcl2r_jax.training import inputs, runs
from iamcl2r_jax.training.context import ProgramsByArchitecture
from iamcl2r_jax.training.schedule import Schedule


def write(
    config: ConfigDict,
    workdir: str,
    results: Mapping[str, Any],
    *,
    programs: ProgramsByArchitecture | None = None,
    stream: Stream | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
) -> str:
    """Writes the report of a finished run.

    Args:
      config: of the run.
      workdir: its directory.
      results: what stands in its results.json.
      programs, stream, evaluations: what the caller has of them already; made or loaded if None.

    Returns:
      Path of the page.
    """
    programs = programs or ProgramsByArchitecture(config)
    stream = stream or inputs.load_stream(config)
    evaluations = evaluations or inputs.load_evaluations(config)
    records = runs.task_records(workdir)
    num_tasks = results["num_tasks"]
    models = {f"model {n}": runs.load_task(config, workdir, n - 1) for n in sorted({1, num_tasks})}
    newest = models[f"model {num_tasks}"]
    embed = {
        name: partial(programs.features(model.architecture), model.variables)
        for name, model in models.items()
    }
    method = methods.get(config.method)
    fixed = not heads.is_learnable(method.head)
    schedule = Schedule.of_results(results)
    page = render(
        config=config,
        config_json=json.dumps(files.as_json(config.to_dict()), indent=1, ensure_ascii=False),
        results=results,
        schedule=schedule,
        confidence=round(100 * CONFIDENCE),
        adapts=method.adapts,
        facts=_facts(config, results, stream, newest),
        tasks=_tasks(results, records),
        evaluations=_evaluations(results, schedule),
        over_tasks=pictures.over_tasks(results, schedule),
        searches=[
            pictures.searches(
                name,
                evaluation,
                results["evaluations"][name]["searches"],
                num_tasks,
                carried=method.adapts,
            )
            for name, evaluation in evaluations.items()
        ],
        features=pictures.features(
            stream, embed, newest.classifier_rows(), fixed=fixed, seed=config.seed
        ),
        training=pictures.training(records, schedule),
    )
    path = os.path.join(workdir, runs.REPORT)
    files.write_text(path, page)
    return path


def render(**context) -> str:
    """The page, from all that templates/report.html names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("report.html").render(context)


def _number(value: float, digits: str) -> str:
    """A number as a format specification says, with a true minus sign."""
    return format(value, digits).replace("-", "−")


def _facts(
    config: ConfigDict, results: Mapping[str, Any], stream: Stream, newest: Model
) -> dict[str, str]:
    """What a reader asks first of a run."""
    method = methods.get(config.method)
    formula = (inspect.getdoc(method.loss) or "own loss").partition("\n")[0].rstrip(".")
    network, train, image = newest.architecture, config.train, config.image
    parameters = sum(leaf.size for leaf in jax.tree.leaves(newest.variables["params"]))
    sizes = results["classes_per_task"]
    memory = f"{config.memory_per_class} remembered of each class"
    classifier = f"d-Simplex of {config.num_slots} fixed vectors"
    if heads.is_learnable(method.head):
        classifier = f"{config.num_slots} learnable rows ({method.head})"
    return {
        "name": config.name,
        "method": f"{config.method}: {formula}{_options(config.method_options[config.method])}",
        "published": method.reference,
        "seed": str(config.seed),
        "stream": f"{config.stream.dataset}, {sum(sizes)} classes in {len(sizes)} tasks of "
        f"{', '.join(map(str, sizes))}; {len(stream.train):,} training images; "
        f"{memory if method.uses_memory else 'no memory'}",
        "network": f"{network.backbone}{_options(dict(network.options))}, "
        f"{parameters:,} parameters, {network.num_features} features",
        "classifier": classifier,
        "schedule": f"{train.epochs} epochs per task in batches of {train.batch_size}; "
        f"{train.optimizer}{_options(train.optimizer_options[train.optimizer])}, "
        f"learning rate {train.learning_rate:g} to {train.final_learning_rate:g} (cosine)",
        "images": f"{image.size} × {image.size} pixels; augmentation {image.augmentation}"
        f"{_options(image.augmentation_options[image.augmentation])}",
    }


def _options(options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in sorted(options.items()))
    return f" ({listed})" if listed else ""


def _tasks(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {
            "classes": results["classes_per_task"][task],
            "accuracy": 100 * results["task_accuracy"][task],
            "loss": record["history"][-1]["loss"],
            "seconds": record["seconds"],
            "start": "retrained from scratch"
            if record.get("retrained")
            else _external_model(record["replaced_by"]),
        }
        for task, record in enumerate(records)
    ]


def _external_model(path: str | None) -> str:
    """An external model in words: its path, and its training classes if it is still there."""
    if path is None or not checkpoints.exists(path):
        return path or ""
    metadata = load_metadata(path)
    first, stop = metadata.slots
    dataset = metadata.about.get("dataset", "unknown images")
    return f"{path}: {stop - first} classes of {dataset}"


def _evaluations(results: Mapping[str, Any], schedule: Schedule) -> list[dict[str, Any]]:
    """Of each evaluation, its matrices by every metric, the main one first."""
    return [
        {
            "name": name,
            "references": results["references"].get(name, {}),
            "words": words.of_pairs(evaluation),
            "warning": words.of_queries_in_gallery(evaluation["queries_in_gallery"]),
            "metrics": [
                {
                    "key": metric,
                    "name": retrieval.METRICS[metric].title,
                    "meaning": retrieval.METRICS[metric].meaning,
                    "figures": figures,
                    "across": finite(
                        compatibility.accuracy_across_replacements(
                            figures["matrix"], schedule.replaced
                        )
                    ),
                    "rows": _cells(figures),
                }
                for metric, figures in (
                    {evaluation["metric"]: evaluation} | evaluation["metrics"]
                ).items()
            ],
        }
        for name, evaluation in results["evaluations"].items()
    ]


def _cells(figures: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The lower triangle as cells of a table: percentage, colours, whether it is incompatible.

    Those below the diagonal have in words what is gained over the model of the gallery.
    """
    values = np.asarray(figures["matrix"], float)
    colours, inks = heat_colours(values)
    compatible = compatibility.is_compatible(values)
    return [
        [
            {
                "percent": 100 * values[t, k],
                "colour": colours[t, k],
                "ink": inks[t, k],
                "incompatible": k < t and not compatible[t, k],
                "gain": words.of_gain(figures, t, k) if k < t else None,
            }
            for k in range(t + 1)
        ]
        for t in range(len(values))
    ]
