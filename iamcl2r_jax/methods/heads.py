"""The classifier of a method: fixed simplex rows, or learnable rows in one shape for all tasks.

A learnable head is a leaf of the model's parameters, [K, D], so that it is trained, decayed, saved
and frozen with them. Class y of the stream owns row K-1-y, as on the simplex. Rows of classes not
yet seen are left out of every softmax and stay as they were drawn until their class arrives: the
head grows without changing its shape.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import losses
from iamcl2r_jax.methods.inputs import COSINE, LINEAR, SIMPLEX, is_learnable  # noqa: F401

_NAME = "head"  # among the model's parameters; no backbone has a layer of this name


def random_rows(key: jax.Array, num_slots: int, num_features: int) -> jax.Array:
    """Rows of PyTorch's default for a linear layer, U(-1/√D, 1/√D): float32 [K, D]."""
    bound = 1 / math.sqrt(num_features)
    return jax.random.uniform(key, (num_slots, num_features), minval=-bound, maxval=bound)


def attach(variables: dict[str, Any], rows: Any) -> dict[str, Any]:
    """The variables of a model with `rows` as its head, in place of any it had."""
    return variables | {"params": variables["params"] | {_NAME: rows}}


def attach_expected(variables: Any, head: str, num_slots: int, num_features: int) -> Any:
    """Adds the shape of a learnable head to the shapes of a model's variables."""
    if not is_learnable(head):
        return variables
    return attach(variables, jax.ShapeDtypeStruct((num_slots, num_features), np.float32))


def rows_of(variables: dict[str, Any]) -> jax.Array:
    """The learnable head of a model's variables, [K, D]."""
    return variables["params"][_NAME]


def keep_unseen(new: dict[str, Any], before: dict[str, Any], active: jax.Array) -> dict[str, Any]:
    """Parameters after a step, rows of unseen classes as before it: weight decay moves them too."""
    rows = jnp.where(active[:, jnp.newaxis], new[_NAME], before[_NAME])
    return new | {_NAME: rows}


def scores(head: str, features: jax.Array, rows: jax.Array) -> jax.Array:
    """What the classifier ranks the classes by: W z, or cos(z, w_k) for the cosine head: [B, K].

    In full float32 on every platform: it is a small part of a step, and TPUs would multiply in
    bfloat16, GPUs in TF32.
    """
    chex.assert_rank([features, rows], 2)
    if head == COSINE:
        return losses.cosine_similarities(features, rows)
    return jnp.matmul(features, rows.T, precision=jax.lax.Precision.HIGHEST)


def predict(
    head: str, features: np.ndarray, rows: np.ndarray, active: np.ndarray | None = None
) -> np.ndarray:
    """The row of the highest score, among `active` [K] ones if given: int [B]."""
    ranked = np.asarray(scores(head, features, rows))
    if active is not None:
        ranked = np.where(active[np.newaxis, :], ranked, -np.inf)
    return np.argmax(ranked, axis=1)
