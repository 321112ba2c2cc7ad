"""Evaluates models again, or decides whether a new one may replace an old one.

python launch/evaluate.py --workdir=DIR [--gallery=folder:DIR]
python launch/evaluate.py --models=OLD,NEW --gallery=folder:DIR

Exit status with --models: 0 if every upgrade is compatible, 3 if not; 2 for bad input.
"""

from absl import flags

from iamcl2r_jax.evaluation import upgrade
from iamcl2r_jax.system import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "A run, to evaluate what it left.")
_MODELS = flags.DEFINE_list("models", None, "Two or more checkpoints to compare, oldest first.")
_GALLERY = flags.DEFINE_string("gallery", None, "Data set searched in: folder:DIR or TFDS name.")
_QUERY = flags.DEFINE_string("query", None, "Data set searched for; by default the gallery's.")
_GALLERY_SPLIT = flags.DEFINE_string("gallery_split", "gallery", "Split of --gallery.")
_QUERY_SPLIT = flags.DEFINE_string("query_split", "query", "Split of --query.")
_MEASURE = flags.DEFINE_enum(
    "measure", "identification", list(upgrade.PER_QUERY), "What to compare --models by."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps data sets.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write; by default evaluation.json, in --workdir if given."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap intervals.", lower_bound=0)


def main(_):
    gallery, query = _GALLERY.value, _QUERY.value or _GALLERY.value
    return upgrade.main(
        _WORKDIR.value,
        _MODELS.value,
        gallery and upgrade.Split(gallery, _GALLERY_SPLIT.value),
        query and upgrade.Split(query, _QUERY_SPLIT.value),
        measure=_MEASURE.value,
        data_dir=_DATA_DIR.value,
        output=_OUTPUT.value,
        seed=_SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
