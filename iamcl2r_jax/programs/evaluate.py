"""What launch/evaluate.py does: its flags, and which function of the package each mode is."""

from absl import flags

from iamcl2r_jax.evaluation import from_features, gate
from iamcl2r_jax.evaluation.maps import MAPS
from iamcl2r_jax.retrieval import METRICS
from iamcl2r_jax.system import cli
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.training import reevaluation

_WORKDIR = cli.path_flag("workdir", None, "A run, to evaluate what it left.")
_MODELS = cli.paths_flag("models", None, "Two or more checkpoints to compare, oldest first.")
_FEATURES = cli.paths_flag(
    "features", None, "Files of features by two or more models of any kind, oldest first."
)
_MAPS = flags.DEFINE_list(
    "maps", [], f"Maps between the models to try: all, or some of {', '.join(MAPS)}."
)
_PAIRS = cli.paths_flag(
    "pairs",
    None,
    "Files of features of further images by the models of --features, to fit the maps on; by "
    "default they are fitted on half of the gallery, and the other half is searched.",
)
_WRITE_FEATURES = cli.path_flag(
    "write_features", None, "Directory for files of the features of --models, one a model."
)
_GALLERY = flags.DEFINE_string("gallery", None, "Data set searched in: folder:DIR or TFDS name.")
_QUERY = flags.DEFINE_string("query", None, "Data set searched for; by default the gallery's.")
_GALLERY_SPLIT = flags.DEFINE_string("gallery_split", "gallery", "Split of --gallery.")
_QUERY_SPLIT = flags.DEFINE_string("query_split", "query", "Split of --query.")
_METRIC = flags.DEFINE_enum(
    "metric", "identification", list(METRICS), "What to compare --models and --features by."
)
flags.DEFINE_alias("measure", "metric")
_DATA_DIR = cli.path_flag("data_dir", None, "Where TFDS keeps data sets.")
_OUTPUT = cli.path_flag(
    "output", None, "File to write; by default evaluation.json, in --workdir if given."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap intervals.", lower_bound=0)


def main(_: list[str]) -> int | None:
    """Does what the flags ask for, and returns the exit status.

    Raises:
      InputError: for bad input; the message is one line.
    """
    _check_flags()
    if _FEATURES.value:
        return from_features.main(
            _FEATURES.value,
            _MAPS.value,
            _PAIRS.value,
            metric=_METRIC.value,
            output=_OUTPUT.value,
            seed=_SEED.value,
        )
    gallery, query = _GALLERY.value, _QUERY.value or _GALLERY.value
    gallery = gallery and gate.Split(gallery, _GALLERY_SPLIT.value)
    query = query and gate.Split(query, _QUERY_SPLIT.value)
    options = {"data_dir": _DATA_DIR.value, "output": _OUTPUT.value}
    if _WORKDIR.value:
        return reevaluation.main(_WORKDIR.value, gallery, query, **options)
    return gate.main(
        _MODELS.value,
        gallery,
        query,
        maps=_MAPS.value,
        write_features=_WRITE_FEATURES.value,
        metric=_METRIC.value,
        seed=_SEED.value,
        **options,
    )


def _check_flags() -> None:
    if sum(map(bool, (_WORKDIR.value, _MODELS.value, _FEATURES.value))) != 1:
        raise InputError(
            "give one of --workdir=DIR, a run, --models=OLD,NEW, checkpoints, and "
            "--features=OLD,NEW, files of features"
        )
    for flag, users in (
        (_MAPS, (_MODELS, _FEATURES)),
        (_PAIRS, (_FEATURES,)),
        (_WRITE_FEATURES, (_MODELS,)),
    ):
        if flag.value and not any(user.value for user in users):
            named = " and ".join(f"--{user.name}" for user in users)
            raise InputError(f"--{flag.name}: goes with {named}")
    if _QUERY.value and not _GALLERY.value:
        raise InputError("--query: name the gallery too, the data set searched in")
