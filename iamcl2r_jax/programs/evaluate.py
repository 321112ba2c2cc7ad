"""Evaluates models again, or decides whether a new one may replace an old one.

Exit status with --models and --features: 0 if every upgrade is compatible, 3 if not; 2 for bad
input. With --maps an upgrade is, too, whose best map is.
"""

from typing import Any

from absl import flags

from iamcl2r_jax.system import cli, flag_types
from iamcl2r_jax.system.errors import InputError


def main() -> None:
    """Runs the program: launch/evaluate.py, installed as iamcl2r-evaluate."""
    cli.run_installed(_define, _run, __doc__)


def _define() -> None:
    flag_types.path("workdir", None, "A run, to evaluate what it left.")
    flag_types.several_paths("models", None, "Two or more checkpoints to compare, oldest first.")
    flag_types.several_paths(
        "features", None, "Files of features by two or more models of any kind, oldest first."
    )
    flag_types.several_names_in(
        "iamcl2r_jax.evaluation.maps:MAPS", "maps", "Maps between the models to try."
    )
    flag_types.several_paths(
        "pairs",
        None,
        "Files of features of further images by the models of --features, to fit the maps on; by "
        "default they are fitted on half of the gallery, and the other half is searched.",
    )
    flag_types.path(
        "write_features", None, "Directory for files of the features of --models, one a model."
    )
    flags.DEFINE_string("gallery", None, "Data set searched in: folder:DIR or TFDS name.")
    flags.DEFINE_string("query", None, "Data set searched for; by default the gallery's.")
    flags.DEFINE_string("gallery_split", "gallery", "Split of --gallery.")
    flags.DEFINE_string("query_split", "query", "Split of --query.")
    flag_types.name_in(
        "iamcl2r_jax.retrieval:METRICS",
        "metric",
        "identification",
        "What to compare --models and --features by.",
    )
    flags.DEFINE_alias("measure", "metric")
    flag_types.path("data_dir", None, "Where TFDS keeps data sets.")
    flag_types.path(
        "output", None, "File to write; by default evaluation.json, in --workdir if given."
    )
    flags.DEFINE_integer("seed", 0, "Of the bootstrap intervals.", lower_bound=0)


def _run(values: dict[str, Any]) -> int | None:
    """Does what the flags ask for, and returns the exit status."""
    _check(values)
    from iamcl2r_jax.programs import evaluate_verbs as verbs

    judged = {"metric": values["metric"], "seed": values["seed"], "output": values["output"]}
    if values["features"]:
        return verbs.features(values["features"], values["maps"], values["pairs"], **judged)
    gallery, query = values["gallery"], values["query"] or values["gallery"]
    gallery = gallery and verbs.Split(gallery, values["gallery_split"])
    query = query and verbs.Split(query, values["query_split"])
    if values["workdir"]:
        return verbs.run(
            values["workdir"],
            gallery,
            query,
            data_dir=values["data_dir"],
            output=values["output"],
        )
    return verbs.models(
        values["models"],
        gallery,
        query,
        maps=values["maps"],
        write_features=values["write_features"],
        data_dir=values["data_dir"],
        **judged,
    )


def _check(values: dict[str, Any]) -> None:
    if sum(map(bool, (values["workdir"], values["models"], values["features"]))) != 1:
        raise InputError(
            "give one of --workdir=DIR, a run, --models=OLD,NEW, checkpoints, and "
            "--features=OLD,NEW, files of features"
        )
    for flag, users in (
        ("maps", ("models", "features")),
        ("pairs", ("features",)),
        ("write_features", ("models",)),
    ):
        if values[flag] and not any(values[user] for user in users):
            named = " and ".join(f"--{user}" for user in users)
            raise InputError(f"--{flag}: goes with {named}")
    if values["query"] and not values["gallery"]:
        raise InputError("--query: name the gallery too, the data set searched in")
