"""Evaluates models again, or decides whether a new one may replace an old one.

python launch/evaluate.py --workdir=DIR [--gallery=folder:DIR]
python launch/evaluate.py --models=OLD,NEW --gallery=folder:DIR
python launch/evaluate.py --features=OLD.npz,NEW.npz --maps=all

Exit status with --models and --features: 0 if every upgrade is compatible, 3 if not; 2 for bad
input. With --maps an upgrade is, too, whose best map is.
"""

from absl import flags

from iamcl2r_jax.evaluation import from_features, gate
from iamcl2r_jax.evaluation.maps import MAPS
from iamcl2r_jax.retrieval import METRICS
from iamcl2r_jax.system import cli
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.training import reevaluation

_WORKDIR = flags.DEFINE_string("workdir", None, "A run, to evaluate what it left.")
_MODELS = flags.DEFINE_list("models", None, "Two or more checkpoints to compare, oldest first.")
_FEATURES = flags.DEFINE_list(
    "features", None, "Files of features by two or more models of any kind, oldest first."
)
_MAPS = flags.DEFINE_list(
    "maps", [], f"Maps between the models to try: all, or some of {', '.join(MAPS)}."
)
_PAIRS = flags.DEFINE_list(
    "pairs",
    None,
    "Files of features of further images by the models of --features, to fit the maps on; by "
    "default they are fitted on half of the gallery, and the other half is searched.",
)
_GALLERY = flags.DEFINE_string("gallery", None, "Data set searched in: folder:DIR or TFDS name.")
_QUERY = flags.DEFINE_string("query", None, "Data set searched for; by default the gallery's.")
_GALLERY_SPLIT = flags.DEFINE_string("gallery_split", "gallery", "Split of --gallery.")
_QUERY_SPLIT = flags.DEFINE_string("query_split", "query", "Split of --query.")
_METRIC = flags.DEFINE_enum(
    "metric", "identification", list(METRICS), "What to compare --models and --features by."
)
flags.DEFINE_alias("measure", "metric")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps data sets.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write; by default evaluation.json, in --workdir if given."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap intervals.", lower_bound=0)


def main(_):
    if sum(map(bool, (_WORKDIR.value, _MODELS.value, _FEATURES.value))) != 1:
        raise InputError(
            "give one of --workdir=DIR, a run, --models=OLD,NEW, checkpoints, and "
            "--features=OLD,NEW, files of features"
        )
    if _FEATURES.value:
        return from_features.main(
            _FEATURES.value,
            _MAPS.value,
            _PAIRS.value,
            metric=_METRIC.value,
            output=_OUTPUT.value,
            seed=_SEED.value,
        )
    if _QUERY.value and not _GALLERY.value:
        raise InputError("--query: name the gallery too, the data set searched in")
    gallery, query = _GALLERY.value, _QUERY.value or _GALLERY.value
    gallery = gallery and gate.Split(gallery, _GALLERY_SPLIT.value)
    query = query and gate.Split(query, _QUERY_SPLIT.value)
    options = {"data_dir": _DATA_DIR.value, "output": _OUTPUT.value}
    if _WORKDIR.value:
        return reevaluation.main(_WORKDIR.value, gallery, query, **options)
    return gate.main(
        _MODELS.value, gallery, query, metric=_METRIC.value, seed=_SEED.value, **options
    )


if __name__ == "__main__":
    cli.run(main)
