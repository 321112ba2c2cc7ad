"""Figures of a compatibility matrix.

C[t, k], t >= k, is the retrieval accuracy in [0, 1] of queries by model t against a gallery by
model k, T models in all. What stands above the diagonal (NaN, or null in JSON) is never looked at.
An update from model k to model t is compatible when C[t, k] > C[k, k], strictly: a tie is not.
All functions take anything that `numpy.asarray` makes a square matrix of floats, and raise
ValueError if it is not square or an entry on or below the diagonal is not in [0, 1].
"""

import numpy as np


def _validated(matrix) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)  # float64 also turns JSON's null into NaN
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"matrix: expected shape [T, T] with T >= 1, got {list(matrix.shape)}")
    rows, columns = np.tril_indices(len(matrix))
    values = matrix[rows, columns]
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))  # also true of NaN
    if wrong.size:
        i = wrong[0]
        raise ValueError(
            f"matrix[{rows[i]}, {columns[i]}]: expected an accuracy in [0, 1], got {values[i]}"
        )
    return matrix


def _per_task(figure, matrix) -> np.ndarray:
    matrix = _validated(matrix)
    return np.array([figure(matrix[:tau, :tau]) for tau in range(1, len(matrix) + 1)])


def is_compatible(matrix) -> np.ndarray:
    """Whether C[t, k] > C[k, k], bool [T, T]; False on and above the diagonal.

    That is, whether replacing model k by model t kept the gallery of model k useful.
    """
    matrix = _validated(matrix)
    below = np.tri(len(matrix), k=-1, dtype=bool)
    return below & (matrix > np.diagonal(matrix)[np.newaxis, :])


def near_misses(matrix, within: float = 0.01) -> np.ndarray:
    """Which pairs t > k are incompatible by less than a point: bool [T, T].

    C[k, k] - within < C[t, k] <= C[k, k]; False on and above the diagonal.
    """
    matrix = _validated(matrix)
    below = np.tri(len(matrix), k=-1, dtype=bool)
    short = np.diagonal(matrix)[np.newaxis, :] - matrix
    return below & (short >= 0) & (short < within)


def average_compatibility(matrix) -> float:
    """AC = 2/(T(T-1)) · #{t > k : C[t, k] > C[k, k]}, in [0, 1]; 1 for a single model.

    Reference: Biondi et al., "CL2R: Compatible Lifelong Learning Representations", 2022.
    """
    compatible = is_compatible(matrix)
    pairs = len(compatible) * (len(compatible) - 1) // 2
    return float(compatible.sum() / pairs) if pairs else 1.0


def average_accuracy(matrix) -> float:
    """AA = 100 · mean of the lower triangle with the diagonal, in percent.

    Always in percent, and a true zero counts as zero; the official code guesses the unit from the
    values and drops zeros.

    Reference: Biondi et al., "CL2R: Compatible Lifelong Learning Representations", 2022.
    """
    matrix = _validated(matrix)
    return float(100 * matrix[np.tril_indices(len(matrix))].mean())


def average_compatibility_per_task(matrix) -> np.ndarray:
    """AC of the leading τ×τ block for τ = 1 … T, float64 [T]."""
    return _per_task(average_compatibility, matrix)


def average_accuracy_per_task(matrix) -> np.ndarray:
    """AA of the leading τ×τ block for τ = 1 … T, in percent, float64 [T]."""
    return _per_task(average_accuracy, matrix)


def average_compatibility_accuracy(matrix) -> float:
    """ACA = 2/(T(T-1)) · Σ_{t>k} C[t, k] · 1[compatible], in [0, 1]; NaN for a single model.

    AC weighted by how well the compatible pairs retrieve. One model has no pair, and unlike for AC
    there is no accuracy that could stand for it.
    """
    matrix = _validated(matrix)
    values = np.where(is_compatible(matrix), matrix, 0.0)
    below = values[np.tril_indices(len(matrix), k=-1)]
    return float(below.mean()) if below.size else float("nan")


def backward_compatibility(matrix) -> float:
    """BC = mean over k < T of C[T, k] - C[k, k]; NaN for a single model, which replaced nothing.

    What the last model gains (positive) or loses on the galleries of all earlier ones.
    """
    matrix = _validated(matrix)
    gains = matrix[-1, :-1] - np.diagonal(matrix)[:-1]
    return float(gains.mean()) if gains.size else float("nan")


def forward_compatibility(matrix) -> float:
    """FC = mean over t >= 2 of C[t, t-1] - C[t, t]; NaN for a single model.

    What it costs (negative) to keep the previous gallery instead of re-indexing it.
    """
    matrix = _validated(matrix)
    costs = np.diagonal(matrix, offset=-1) - np.diagonal(matrix)[1:]
    return float(costs.mean()) if costs.size else float("nan")


def accuracy_across_replacements(matrix, replacements) -> float:
    """100 · mean of C[t, k] over t > k with a replacement at one of the tasks k+1 … t, in percent.

    What galleries are worth to models that share no training with theirs. Unlike AC it does not ask
    for more than the old model's own accuracy, so a weak old model does not raise it. NaN if no
    pair has a replacement between its models. Not in the paper.

    Args:
      matrix: C [T, T].
      replacements: 0-based tasks that start from an external model.
    """
    matrix = _validated(matrix)
    replaced = np.isin(np.arange(len(matrix)), replacements)
    models = np.cumsum(replaced)  # which external model each comes from
    across = np.tri(len(matrix), k=-1, dtype=bool) & (models[:, np.newaxis] > models)
    return float(100 * matrix[across].mean()) if across.any() else float("nan")


def accuracy_on_old_galleries(matrix) -> float:
    """100 · mean of C[t, k] over t > k, in percent; NaN for a single model.

    What updates find in galleries that stay as they are. Not in the paper.
    """
    matrix = _validated(matrix)
    below = matrix[np.tril_indices(len(matrix), k=-1)]
    return float(100 * below.mean()) if below.size else float("nan")


def accuracy_on_own_gallery(matrix) -> float:
    """100 · C[T, T], in percent: what the last model finds in a gallery of its own features.

    Compatibility that costs accuracy here is paid for when the gallery is embedded again. Not in
    the paper.
    """
    return float(100 * _validated(matrix)[-1, -1])
