"""Maps that are trained by gradient descent. Conventions are those of `linear`."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax

from iamcl2r_jax import losses
from iamcl2r_jax.evaluation.maps.linear import (
    Params,
    nearest_orthogonal,
    product,
    split_pairs,
    unit_pairs,
)

_SAFE = 1e-12  # inside a square root, whose gradient at zero is not finite


@partial(jax.jit, static_argnames=("hidden", "steps", "batch_size", "learning_rate"))
def residual_mlp_fit(
    source: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    hidden: int = 256,
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
) -> Params:
    """A rotation and what a small network adds: x R + gelu(x U + a) V + b, by mean ‖· - y‖².

    R is Procrustes' of four fifths of the pairs; V and b start at zero. Of the parameters met on
    the way, the start included, those are kept that bring the other fifth nearest.

    Reference: the residual MLP of Drift-Adapter, arXiv:2509.23471. Ours, since its abstract alone
    was at hand: R in place of x, for models that share no space and for widths that differ; width,
    Adam and its schedule, the choice by held-out pairs.

    Args:
      source, target: [N, S] and [N, D].
      key: of the split, the initialisation and the batches.
      hidden: width of the hidden layer.
      steps: of Adam; the learning rate falls to zero along a half cosine.
      batch_size: pairs in a step, drawn with replacement.
      learning_rate: of the first step.
    """
    x, y = unit_pairs(source, target)
    key_split, key_init, key_steps = jax.random.split(key, 3)
    fitted, held_out = split_pairs(len(x), key_split)
    rotation = nearest_orthogonal(product(x[fitted].T, y[fitted]))[0]
    width, out = rotation.shape
    start = {
        "hidden": jax.nn.initializers.he_normal()(key_init, (width, hidden), x.dtype),
        "hidden_bias": jnp.zeros(hidden, x.dtype),
        "out": jnp.zeros((hidden, out), x.dtype),
        "out_bias": jnp.zeros(out, x.dtype),
    }
    missing = y - product(x, rotation)

    def loss(params, rows):
        return jnp.mean(jnp.sum(jnp.square(_added(params, x[rows]) - missing[rows]), axis=1))

    def drawn(params, key):
        return loss(params, fitted[jax.random.randint(key, (batch_size,), 0, len(fitted))])

    found = _descend(
        drawn, lambda params: loss(params, held_out), start, key_steps, steps, learning_rate
    )
    return found | {"matrix": rotation}


@jax.jit
def residual_mlp_apply(params: Params, features: jax.Array) -> jax.Array:
    """x R + gelu(x U + a) V + b of unit features x [N, S]: [N, D]."""
    chex.assert_rank(features, 2)
    x = losses.normalize(features)
    return product(x, params["matrix"]) + _added(params, x)


def _added(params, x):
    hidden = product(x, params["hidden"]) + params["hidden_bias"][jnp.newaxis, :]
    return product(jax.nn.gelu(hidden), params["out"]) + params["out_bias"][jnp.newaxis, :]


@partial(jax.jit, static_argnames=("threshold", "sharpness", "steps", "learning_rate"))
def lambda_orthogonal_fit(
    source: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    threshold: float = 0.5,
    sharpness: float = 10.0,
    steps: int = 100,
    learning_rate: float = 3e-3,
) -> Params:
    """A linear map held near the orthogonal ones, by mean ‖x W - y‖² + σ(α (n - λ)) n.

    n = ‖W Wᵀ - I‖_F, of the smaller side where widths differ: W may leave the orthogonal matrices
    by λ at no cost. It starts from Procrustes' R of four fifths of the pairs; of the matrices met
    on the way, the start included, the one is kept that brings the other fifth nearest. A step sees
    all pairs, by their second moments.

    Reference: Ricci et al., "λ-Orthogonality Regularization for Compatible Representation
    Learning", NeurIPS 2025, arXiv:2509.16664. There a forward map of the old features and
    contrastive terms over labels are trained with it; here it is the backward map alone, from
    pairs without labels. λ is given in √D, which is n of a zero matrix (their 12 at widths of 512
    to 768 is .43 to .53 of it); start, α, and the choice by held-out pairs are ours.

    Args:
      source, target: [N, S] and [N, D].
      key: of the split.
      threshold: λ / √min(S, D).
      sharpness: α.
      steps: of Adam; the learning rate falls to zero along a half cosine.
      learning_rate: of the first step.
    """
    x, y = unit_pairs(source, target)
    key_split, key_steps = jax.random.split(key)
    parts = split_pairs(len(x), key_split)
    fitted, held_out = (_moments(x[rows], y[rows]) for rows in parts)
    start = {"matrix": nearest_orthogonal(fitted[1])[0]}
    allowed = threshold * min(start["matrix"].shape) ** 0.5

    def loss(params, _):
        away = _distance_from_orthogonal(params["matrix"])
        return _mean_error(params, fitted) + jax.nn.sigmoid(sharpness * (away - allowed)) * away

    return _descend(
        loss, lambda params: _mean_error(params, held_out), start, key_steps, steps, learning_rate
    )


def _moments(x, y):
    """E[x xᵀ], E[x yᵀ] and E[‖y‖²] over the pairs."""
    return (product(x.T, x) / len(x), product(x.T, y) / len(x), jnp.sum(jnp.square(y)) / len(x))


def _mean_error(params, moments):
    """E ‖x W - y‖², from the moments."""
    own, cross, norm = moments
    w = params["matrix"]
    return jnp.sum(product(own, w) * w) - 2.0 * jnp.sum(cross * w) + norm


def _distance_from_orthogonal(w):
    gram = product(w.T, w) if w.shape[0] > w.shape[1] else product(w, w.T)
    gap = gram - jnp.eye(len(gram), dtype=gram.dtype)
    return jnp.sqrt(jnp.sum(jnp.square(gap)) + _SAFE)


def _descend(
    loss: Callable[[Params, jax.Array], jax.Array],
    validation: Callable[[Params], jax.Array],
    start: Params,
    key: jax.Array,
    steps: int,
    learning_rate: float,
    checks: int = 20,
) -> Params:
    """Adam from `start`; the best, by `validation`, of what it met at `checks` points.

    A gain below the rounding of a mean over unit features counts as none, and so does a loss that
    is not finite: the earlier ones are kept.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    gradient = jax.grad(loss)
    every = max(1, steps // checks)

    def step(index, carry):
        params, state, best, best_value = carry
        gradients = gradient(params, jax.random.fold_in(key, index))
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, updates)
        checked = (index + 1) % every == 0
        value = jax.lax.cond(checked, validation, lambda _: best_value, params)
        better = value < best_value - 8 * jnp.finfo(best_value.dtype).eps
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return params, state, best, jnp.where(better, value, best_value)

    carry = start, optimizer.init(start), start, validation(start)
    return jax.lax.fori_loop(0, steps, step, carry)[2]
