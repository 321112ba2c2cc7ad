"""Features seen in the plane through the classifier's vectors of three classes."""

import dataclasses

import numpy as np

Plane = tuple[np.ndarray, np.ndarray]  # origin [D], and orthonormal axes [2, D]


def plane_through(points: np.ndarray) -> Plane:
    """The plane through three points [3, D], D >= 2, that are not on one line.

    For vertices of the d-Simplex it shows an equilateral triangle without distortion; vertices of
    all other classes project onto its centre.

    Returns:
      The mean of the points, and axes of which the first point lies on the positive second one.
    """
    points = np.asarray(points, np.float64)
    origin = points.mean(axis=0)
    spanning = np.stack([points[0] - origin, points[2] - points[1]], axis=1)
    orthonormal, triangular = np.linalg.qr(spanning)
    # QR leaves the signs open.
    up, across = (orthonormal * np.where(np.diag(triangular) < 0, -1, 1)).T
    return origin, np.stack([across, up])


def project(plane: Plane, points: np.ndarray) -> np.ndarray:
    """Coordinates [N, 2] of points [N, D] in the plane, by orthogonal projection."""
    origin, axes = plane
    return (np.asarray(points, np.float64) - origin) @ axes.T


@dataclasses.dataclass(frozen=True)
class FeatureView:
    """Features of some models around the classifier's vectors of three classes.

    Attributes:
      vertices: of the three classes in their plane, [3, 2].
      labels: position 0, 1 or 2 of each image's class, [N].
      features: coordinates of the normalised features, {model: [N, 2]}.
      concentrations: κ, mean cosine of features with their own class's vector, {model: value}.
    """

    vertices: np.ndarray
    labels: np.ndarray
    features: dict[str, np.ndarray]
    concentrations: dict[str, float]


def view(rows: np.ndarray, labels: np.ndarray, features: dict[str, np.ndarray]) -> FeatureView:
    """Projects the features of some models onto the plane of three classifier vectors.

    Args:
      rows: the vectors of three classes, [3, D], normalised inside.
      labels: which of the three each image is of, [N].
      features: of the same images by each model, {model: [N, D]}, normalised inside.
    """
    rows = _unit(rows)
    unit = {name: _unit(f) for name, f in features.items()}
    plane = plane_through(rows)
    return FeatureView(
        vertices=project(plane, rows),
        labels=labels,
        features={name: project(plane, f) for name, f in unit.items()},
        concentrations={
            name: float(np.mean(np.sum(f * rows[labels], axis=1))) for name, f in unit.items()
        },
    )


def _unit(vectors) -> np.ndarray:
    """`losses.normalize` without XLA, which would compile it for every number of images."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
