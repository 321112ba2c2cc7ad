"""Features once per model, and from them every entry of the compatibility matrices."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import compatibility, retrieval
from iamcl2r_jax.data.augment import ImageOptions, normalize_images
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.system import parallel
from iamcl2r_jax.training.training import Variables

_BATCH_SIZE = 256
_BATCHES_PER_CALL = 8  # at most; a call computes those that hold an image


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One open-set evaluation.

    Attributes:
      query: images searched for, embedded by the newer model.
      gallery: images searched in, embedded by the older model.
    """

    query: ImageSet
    gallery: ImageSet


class FeatureExtractor:
    """Runs a model over images in batches of one shape, so that it is compiled once.

    A call of the compiled program loops over several batches: what it derives from the model's
    variables is computed once for all of them, and their arrays are allocated once. The devices of
    the process share each batch.

    Attributes:
      model: maps images [B, H, W, 3] to features [B, D].
    """

    def __init__(self, model: nn.Module, image_options: ImageOptions):
        self.model = model

        def features(variables, images):
            return model.apply(variables, normalize_images(images, image_options), train=False)

        @jax.jit
        def features_of_batches(variables, batches, count):
            def add_batch(index, found):
                return found.at[index].set(features(variables, batches[index]))

            one = jax.eval_shape(features, variables, batches[0])
            found = jnp.zeros((len(batches), *one.shape), one.dtype)
            return jax.lax.fori_loop(0, count, add_batch, found)

        self._features_of_batches = features_of_batches

    def __call__(self, variables: Variables, images: np.ndarray) -> np.ndarray:
        """Features float32 [N, D] of uint8 images [N, H, W, 3]."""
        sharding = parallel.local_sharding(_BATCH_SIZE)
        variables = parallel.replicate(variables, sharding)
        split = None if sharding is None else parallel.split_blocks(sharding)
        capacity, parts = _BATCH_SIZE * _BATCHES_PER_CALL, []
        for start in range(0, len(images), capacity):
            part = images[start : start + capacity]
            padding = [(0, capacity - len(part))] + [(0, 0)] * 3
            batches = np.pad(part, padding).reshape(-1, _BATCH_SIZE, *images.shape[1:])
            count = -(-len(part) // _BATCH_SIZE)
            batches = jax.device_put(batches, split)
            parts.append(self._features_of_batches(variables, batches, count))
        found = np.concatenate(jax.device_get(parts))
        return found.reshape(-1, found.shape[-1])[: len(images)]


@dataclasses.dataclass(frozen=True)
class Embedded:
    """An evaluation's features by one model.

    Attributes:
      query: float32 [N, D].
      gallery: float32 [N, D].
      carry: how the gallery of the model before, float32 [N, D], is brought to this one without
        its images; None leaves stored galleries as they are.
    """

    query: np.ndarray
    gallery: np.ndarray
    carry: Callable[[np.ndarray], np.ndarray] | None = None


def embed(
    extractor: FeatureExtractor,
    variables: Variables,
    evaluation: Evaluation,
    carry: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Embedded:
    """One feature pass: a model over the queries and the gallery of an evaluation."""
    return Embedded(
        query=extractor(variables, evaluation.query.images),
        gallery=extractor(variables, evaluation.gallery.images),
        carry=carry,
    )


def compatibility_matrices(
    evaluation: Evaluation, embedded: Iterable[Embedded], measures: Sequence[str]
) -> dict[str, np.ndarray]:
    """Every pair of models under every measure.

    Args:
      evaluation: gives the labels.
      embedded: its features by each model, oldest first. Taken one at a time; only galleries are
        kept, so that the queries of one model are in memory at once.
      measures: keys of `retrieval.MEASURES`.

    Returns:
      For each measure C [T, T]: C[t, k] is the measure with queries by model t against the gallery
      of model k <= t, carried on by models k+1 to t where these say how; NaN above the diagonal.
    """
    rows = _Rows(evaluation, measures)
    for current in embedded:
        rows.add(current)
    return rows.matrices()


@dataclasses.dataclass(frozen=True)
class _Gallery:
    """A gallery's features, and for each measure the features and labels that it looks at."""

    features: np.ndarray
    seen_by: dict[str, tuple[np.ndarray, np.ndarray]]


class _Rows:
    """The matrices of an evaluation, row by row, and the galleries that the next row takes."""

    def __init__(self, evaluation: Evaluation, measures: Sequence[str]):
        self._evaluation, self._galleries = evaluation, []
        self._rows: dict[str, list[list[float]]] = {measure: [] for measure in measures}

    def add(self, current: Embedded) -> None:
        """The row of the next model."""
        if current.carry is not None:
            self._galleries = [
                self._stored(current.carry(gallery.features)) for gallery in self._galleries
            ]
        self._galleries.append(self._stored(current.gallery))
        query = jnp.asarray(current.query)  # to the device once for all galleries
        for measure, rows in self._rows.items():
            compute: Callable[..., float] = retrieval.MEASURES[measure]
            rows.append(
                [
                    compute(*gallery.seen_by[measure], query, self._evaluation.query.labels)
                    for gallery in self._galleries
                ]
            )

    def _stored(self, features: np.ndarray) -> "_Gallery":
        labels = self._evaluation.gallery.labels
        seen_by = {
            measure: retrieval.REDUCTIONS.get(measure, lambda *gallery: gallery)(features, labels)
            for measure in self._rows
        }
        return _Gallery(features, seen_by)

    def matrices(self) -> dict[str, np.ndarray]:
        """See `compatibility_matrices`."""
        return {measure: _lower_triangle(rows) for measure, rows in self._rows.items()}


def _lower_triangle(rows: list[list[float]]) -> np.ndarray:
    matrix = np.full((len(rows), len(rows)), np.nan)
    for task, row in enumerate(rows):
        matrix[task, : len(row)] = row
    return matrix


def measured(
    evaluations: Mapping[str, Evaluation],
    embedded: Iterable[tuple[str, Embedded]],
    measures: Sequence[str],
) -> dict[str, dict]:
    """What results.json says of some evaluations.

    Args:
      evaluations: by name.
      embedded: the features of each evaluation, named, by each model, oldest first. Taken one at a
        time; the galleries of all evaluations are kept.
      measures: see `compatibility_matrices`.

    Returns:
      For each evaluation `summarize` of the first measure, and of the others.
    """
    rows = {name: _Rows(evaluation, measures) for name, evaluation in evaluations.items()}
    for name, current in embedded:
        rows[name].add(current)
    return {name: _figures(of.matrices()) for name, of in rows.items()}


def _figures(matrices: dict[str, np.ndarray]) -> dict:
    main, *others = matrices
    return {"measure": main, **summarize(matrices[main])} | {
        "measures": {other: summarize(matrices[other]) for other in others}
    }


def summarize(matrix: np.ndarray) -> dict:
    """The figures of one compatibility matrix, as they stand in results.json.

    Accuracies in [0, 1] except AA, which is in percent; null where a figure is undefined.
    """
    return {
        "matrix": [[None if np.isnan(c) else float(c) for c in row] for row in matrix],
        "ac": compatibility.average_compatibility(matrix),
        "aa": compatibility.average_accuracy(matrix),
        "aca": finite(compatibility.average_compatibility_accuracy(matrix)),
        "bc": finite(compatibility.backward_compatibility(matrix)),
        "fc": finite(compatibility.forward_compatibility(matrix)),
        "ac_per_task": compatibility.average_compatibility_per_task(matrix).tolist(),
        "aa_per_task": compatibility.average_accuracy_per_task(matrix).tolist(),
    }


def finite(value: float) -> float | None:
    """The value as JSON holds it: null where it is undefined."""
    return value if np.isfinite(value) else None
