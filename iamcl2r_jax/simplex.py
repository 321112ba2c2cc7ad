"""The d-Simplex fixed classifier: its vectors, and which class owns which of them."""

import numpy as np

from iamcl2r_jax.system.errors import InputError


def dsimplex(num_classes: int) -> np.ndarray:
    """Vertices of the regular simplex: K unit vectors in K-1 dimensions.

    The vectors sum to zero and every two of them have cosine -1/(K-1), the smallest that K vectors
    can have in common. With d = K-1, they are the d basis vectors and (1 - √(d+1))/d · 1, which is
    as far from each of those as they are from one another, then centred and scaled to unit length.

    Reference: Pernici et al., "Regular Polytope Networks", 2021, https://arxiv.org/abs/2103.15632

    Args:
      num_classes: K, the number of pre-allocated classes; `ValueError` if below 2.

    Returns:
      float32 [K, K-1]; row i is the vector of slot i. Computed in float64, so that the only error
      is the rounding of the result.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: a simplex needs at least 2 classes, got {num_classes}")
    dim = num_classes - 1
    vertices = np.vstack([np.eye(dim), np.full((1, dim), (1 - np.sqrt(dim + 1)) / dim)])
    vertices -= vertices.mean(axis=0, keepdims=True)
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return vertices.astype(np.float32)


def downstream_slot(labels, num_slots: int):
    """Slot K-1-y of stream class y: the stream fills the simplex from its far end.

    Labels are integers in [0, K) of any shape, traced or not; slots are shaped and typed alike.
    """
    return num_slots - 1 - labels


def external_slot(labels):
    """Slot y of external pre-training class y: pre-training fills the simplex from slot 0.

    Together with `downstream_slot` this is all that two parties must agree on for an external model
    to be a drop-in replacement.
    """
    return labels


def check_slots(num_stream_classes: int, num_external_classes: int, num_slots: int) -> None:
    """Raises `InputError` unless both kinds of classes fit into the simplex, each with its slot."""
    needed = num_stream_classes + num_external_classes
    if needed > num_slots:
        raise InputError(
            f"num_slots={num_slots}: too few simplex slots for {num_stream_classes} stream and "
            f"{num_external_classes} external classes; at least {needed} are needed"
        )
