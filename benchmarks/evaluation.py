"""Evaluation with one pass per model against one pass per pair of models.

    python benchmarks/evaluation.py [--models=31] [--images=256] [--width=8]

Common code extracts features of queries and gallery for each of the T (T + 1) / 2 pairs; ours does
so for each of the T models and fills the matrix by arithmetic. Both must give the same matrix. The
arithmetic is the same on both sides, so the ratio is nearer to 1 the cheaper the network is.

ratio: ours / pairwise time. Goal for T = 31: at most 1 / 12 = 0.083, in passes 31 / 496 = 0.0625.
"""

import statistics

import harness
import numpy as np
import synthetic

from iamcl2r_jax import models
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.evaluation.features import FeatureExtractor, Features
from iamcl2r_jax.evaluation.pairs import evaluate_pairs
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.retrieval import identification_accuracy


class CountingExtractor:
    """A feature extractor that counts the image sets it was run over."""

    def __init__(self, extract: FeatureExtractor):
        self._extract, self.sets = extract, 0

    def __call__(self, variables: Variables, images: np.ndarray) -> np.ndarray:
        self.sets += 1
        return self._extract(variables, images)


def by_model(extract, all_variables: list, evaluation: Evaluation) -> np.ndarray:
    """C [T, T] as a run makes it: one pass per model."""
    embedded = (
        Features(*(extract(variables, of.images) for of in (evaluation.query, evaluation.gallery)))
        for variables in all_variables
    )
    labels = evaluation.query.labels, evaluation.gallery.labels
    return evaluate_pairs(embedded, *labels, ["identification"])["identification"].matrix


def by_pair(extract, all_variables: list, evaluation: Evaluation) -> np.ndarray:
    """The same matrix with features extracted again for every pair."""
    matrix = np.full((len(all_variables),) * 2, np.nan)
    query, gallery = evaluation.query, evaluation.gallery
    for row, new in enumerate(all_variables):
        for column, old in enumerate(all_variables[: row + 1]):
            matrix[row, column] = identification_accuracy(
                extract(old, gallery.images),
                gallery.labels,
                extract(new, query.images),
                query.labels,
            )
    return matrix


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--models", type=int, default=31, help="T")
    options.add_argument(
        "--images", type=int, default=256, help="queries, and as many in galleries"
    )
    options.add_argument("--width", type=int, default=8, help="channels of the first stage")
    args = options.parse_args(argv)
    if args.small:
        args.models, args.images, args.width, args.repeats = 3, 20, 4, 1
    model = models.create("resnet18", 63, width=args.width)
    all_variables = [synthetic.random_variables(model, seed=task) for task in range(args.models)]
    evaluation = synthetic.evaluation(args.images, args.images)
    extract = FeatureExtractor(model, synthetic.image_options())
    counts, matrices = {}, {}
    ways = {"ours": by_model, "pairwise": by_pair}
    for name, way in ways.items():
        counting = CountingExtractor(extract)
        matrices[name] = way(counting, all_variables, evaluation)
        counts[name] = counting.sets / 2  # queries and gallery
    np.testing.assert_array_equal(matrices["ours"], matrices["pairwise"])
    actions = {
        name: lambda w=way: w(extract, all_variables, evaluation) for name, way in ways.items()
    }
    seconds = harness.in_turn(actions, args.repeats, warm_up=0)  # warm from the counting
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        (f"{name}, {counts[name]:.0f} passes", harness.milliseconds(seconds[name])) for name in ways
    ]
    figures = {"seconds": seconds, "passes": counts, "models": args.models, "images": args.images}
    ratio = medians["ours"] / medians["pairwise"]
    return harness.finish("evaluation", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
