"""Maps with a closed form: rotations, affine maps of full and of low rank, and slerp.

Conventions, the same for every map of this package:
  * A map is fitted on pairs: row n of `source` [N, S] and of `target` [N, D] show the same image.
    Retrieval compares directions, so `fit` and `apply` normalise what they are given; the length of
    what `apply` returns means nothing.
  * Where N pairs leave a direction open, a map changes it as little as it can, or shrinks it: no
    number of pairs gives NaN.
  * `fit` is deterministic given `key`, jit-compiled, and differentiable where its singular values
    are distinct; `apply` is jit-compiled and differentiable.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax import losses

Params = dict[str, Any]

HELD_OUT = 5  # one pair in so many chooses what the others cannot
# Of the ridge, in units of the mean eigenvalue.
_STRENGTHS = np.logspace(-4, 3, 8, dtype=np.float32)
_AMOUNTS = np.linspace(0.0, 1.0, 21, dtype=np.float32)  # of slerp


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b at full precision on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def unit_pairs(source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sides of the pairs at unit length, with their shapes checked."""
    chex.assert_rank([source, target], 2)
    chex.assert_equal_shape_prefix([source, target], 1)
    return losses.normalize(source), losses.normalize(target)


def svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U [S, R], the singular values [R], largest first, and Vᵀ [R, D] of a matrix [S, D].

    LAPACK's divide and conquer, which is JAX's choice on a CPU, at times does not converge where
    many singular values are nearly equal, and leaves NaN; the QR algorithm, four times slower,
    then takes over.
    """

    def by_qr(matrix):
        return tuple(
            jax.lax.linalg.svd(
                matrix, full_matrices=False, algorithm=jax.lax.linalg.SvdAlgorithm.QR
            )
        )

    def by_default(matrix):
        return tuple(jnp.linalg.svd(matrix, full_matrices=False))

    found = by_default(matrix)
    return jax.lax.cond(
        jnp.all(jnp.isfinite(found[1])) | ~jnp.all(jnp.isfinite(matrix)),
        lambda matrix: found,
        lambda matrix: jax.lax.platform_dependent(matrix, cpu=by_qr, default=by_default),
        matrix,
    )


def nearest_orthogonal(cross: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The (semi-)orthogonal R [S, D] with the largest tr(Rᵀ M), for M = `cross` [S, D].

    With M = U S Vᵀ it is U Vᵀ. Directions of zero singular value are left open by that; among the
    solutions this is the one nearest to the identity, which is [I; 0] where widths differ.

    Returns:
      R, the singular values S of M, largest first, and Vᵀ.
    """
    left, values, right = svd(cross)
    tolerance = jnp.max(values) * max(cross.shape) * jnp.finfo(cross.dtype).eps
    seen = values > tolerance

    def completed(_):
        known_left, known_right = left * seen[jnp.newaxis, :], right * seen[:, jnp.newaxis]
        rest = jnp.eye(*cross.shape, dtype=cross.dtype)
        rest = rest - product(known_left, product(known_left.T, rest))
        rest = rest - product(product(rest, known_right.T), known_right)
        outer, _, inner = svd(product(known_left, known_right) + rest)
        return product(outer, inner)

    rotation = jax.lax.cond(jnp.all(seen), lambda _: product(left, right), completed, None)
    return rotation, values, right


@jax.jit
def affine_apply(params: Params, features: jax.Array) -> jax.Array:
    """x A + b of unit features x [N, S]: [N, D].

    Args:
      params: "matrix" A [S, D] and, unless it is zero, "shift" b [D].
      features: x.
    """
    chex.assert_rank(features, 2)
    mapped = product(losses.normalize(features), params["matrix"])
    return mapped + params["shift"][jnp.newaxis, :] if "shift" in params else mapped


@jax.jit
def procrustes_fit(source: jax.Array, target: jax.Array, key: jax.Array | None = None) -> Params:
    """The rotation or reflection that brings the pairs nearest: min ‖X R - Y‖_F, Rᵀ R = I.

    R = U Vᵀ for XᵀY = U S Vᵀ. Widths may differ; R is then semi-orthogonal.

    Reference: Schönemann, "A generalized solution of the orthogonal Procrustes problem",
    Psychometrika 31, 1966; as a map between models, Drift-Adapter, arXiv:2509.23471.
    """
    x, y = unit_pairs(source, target)
    return {"matrix": nearest_orthogonal(product(x.T, y))[0]}


@jax.jit
def rotation_fit(source: jax.Array, target: jax.Array, key: jax.Array | None = None) -> Params:
    """The rotation alone: min ‖X R - Y‖_F over R = e^P with P skew-symmetric.

    This is the strict case of λ-orthogonality, where P is trained. The exponentials of the skew
    matrices are the rotations, det R = 1, over which the same loss has a closed minimum: U C Vᵀ,
    C = diag(1, …, 1, det(U Vᵀ)). We take that. Widths must be equal.

    Reference: Ricci et al., NeurIPS 2025, arXiv:2509.16664; the minimum is Kabsch, Acta
    Crystallographica A32, 1976.
    """
    x, y = unit_pairs(source, target)
    best, _, right = nearest_orthogonal(product(x.T, y))
    # A reflection is turned into a rotation along the direction that loses least.
    flipped = best - 2.0 * jnp.outer(product(best, right[-1]), right[-1])
    return {"matrix": jnp.where(jnp.linalg.slogdet(best)[0] < 0, flipped, best)}


@jax.jit
def scaled_procrustes_fit(
    source: jax.Array, target: jax.Array, key: jax.Array | None = None
) -> Params:
    """Rotation, scale and shift: min ‖s (X - x̄) R + ȳ - Y‖_F, Rᵀ R = I.

    R is Procrustes' of the centred pairs, s = tr(S) / ‖X - x̄‖²; 1 where all x are equal.

    Reference: Schönemann & Carroll, "Fitting one matrix to another under choice of a central
    dilation and a rigid motion", Psychometrika 35, 1970.
    """
    x, y = unit_pairs(source, target)
    x_mean, y_mean = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    centred = x - x_mean[jnp.newaxis, :]
    cross = product(centred.T, y - y_mean[jnp.newaxis, :])
    rotation, values, _ = nearest_orthogonal(cross)
    spread, agreement = jnp.sum(jnp.square(centred)), jnp.sum(values)
    # Below rounding there is nothing that a scale could be read from.
    known = (spread > len(x) * jnp.finfo(x.dtype).eps) & (agreement > 0)
    scale = jnp.where(known, agreement / jnp.where(known, spread, 1.0), 1.0)
    matrix = scale * rotation
    return {"matrix": matrix, "shift": y_mean - product(x_mean, matrix)}


def _ridge(source, target):
    """The pieces of `ridge_fit`: A - E, whether E = I, the shift, and the regularised Gram."""
    x, y = unit_pairs(source, target)
    x_mean, y_mean = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    centred, wanted = x - x_mean[jnp.newaxis, :], y - y_mean[jnp.newaxis, :]
    gram = product(centred.T, centred)
    eigenvalues, basis = jnp.linalg.eigh(gram)
    eigenvalues = jnp.maximum(eigenvalues, 0.0)
    mean = jnp.mean(eigenvalues)
    strengths = _STRENGTHS.astype(x.dtype) * jnp.where(mean > 0, mean, 1.0)
    coordinates = product(centred, basis)

    def towards(start):
        residual = wanted - start * centred if x.shape == y.shape else wanted
        rotated = product(coordinates.T, residual)

        def left_out(strength):
            """Mean squared error of each pair by the map that is fitted on the others."""
            shrunk = coordinates / (eigenvalues + strength)[jnp.newaxis, :]
            leverage = jnp.sum(shrunk * coordinates, axis=1) + 1.0 / len(x)
            rest = jnp.maximum(1.0 - leverage, jnp.finfo(x.dtype).eps)
            errors = (residual - product(shrunk, rotated)) / rest[:, jnp.newaxis]
            return jnp.mean(jnp.sum(jnp.square(errors), axis=1))

        return rotated, jax.lax.map(left_out, strengths)

    starts = (1.0, 0.0) if x.shape == y.shape else (0.0,)
    rotated, errors = zip(*map(towards, starts), strict=True)
    best = jnp.argmin(jnp.concatenate(errors))  # the first of equal ones: towards the identity
    kept = jnp.asarray(starts, x.dtype)[best // len(strengths)]
    strength = strengths[best % len(strengths)]
    scaled = jnp.stack(rotated)[best // len(strengths)] / (eigenvalues + strength)[:, jnp.newaxis]
    change = product(basis, scaled)
    shift = y_mean - product(x_mean, change)
    shift = shift - kept * x_mean if x.shape == y.shape else shift
    return change, kept, shift, gram + strength * jnp.eye(len(gram), dtype=gram.dtype)


@jax.jit
def ridge_fit(source: jax.Array, target: jax.Array, key: jax.Array | None = None) -> Params:
    """Affine map by ridge regression: min ‖X A + b - Y‖² + λ ‖A - E‖².

    E is the identity or zero, λ one of eight strengths, 1e-4 to 1e3 times the mean eigenvalue of
    the centred XᵀX: whichever predicts each pair best from the others (leave-one-out, in closed
    form). Where widths differ E is zero.

    Reference: Hoerl & Kennard, "Ridge regression", Technometrics 12, 1970; leave-one-out as in
    Golub, Heath & Wahba, Technometrics 21, 1979. E = I is ours: few pairs then change little.
    """
    change, kept, shift, _ = _ridge(source, target)
    equal = source.shape == target.shape
    start = jnp.eye(*change.shape, dtype=change.dtype) if equal else 0.0
    return {"matrix": change + kept * start, "shift": shift}


@partial(jax.jit, static_argnames="rank")
def low_rank_fit(
    source: jax.Array, target: jax.Array, key: jax.Array | None = None, *, rank: int = 64
) -> Params:
    """Affine map of low rank: x E + x U Vᵀ + b, U [S, r], V [D, r].

    U Vᵀ is the best approximation, of rank r, of what ridge regression adds to E: with its solution
    B, B V Vᵀ for the r first eigenvectors V of Bᵀ (XᵀX + λ I) B.

    Reference: the low-rank affine adapter of Drift-Adapter, arXiv:2509.23471, there without E and
    by gradient descent; the closed form is Izenman, "Reduced-rank regression for the multivariate
    linear model", Journal of Multivariate Analysis 5, 1975. E is that of `ridge_fit`.
    """
    change, kept, shift, gram = _ridge(source, target)
    _, vectors = jnp.linalg.eigh(product(change.T, product(gram, change)))
    right = vectors[:, ::-1][:, :rank]
    left = product(change, right)
    # The shift makes the mean of the pairs exact, whatever the rank.
    x, _ = unit_pairs(source, target)
    lost = product(jnp.mean(x, axis=0), change - product(left, right.T))
    return {"left": left, "right": right, "kept": kept, "shift": shift + lost}


@jax.jit
def low_rank_apply(params: Params, features: jax.Array) -> jax.Array:
    """x E + x U Vᵀ + b of unit features x [N, S]: [N, D]."""
    chex.assert_rank(features, 2)
    x = losses.normalize(features)
    mapped = product(product(x, params["left"]), params["right"].T)
    if len(params["left"]) == len(params["right"]):
        mapped = mapped + params["kept"] * x
    return mapped + params["shift"][jnp.newaxis, :]


@jax.jit
def slerp_fit(source: jax.Array, target: jax.Array, key: jax.Array) -> Params:
    """Part of the way from the identity to Procrustes' R, along the sphere.

    The way x ↦ slerp(x, x R; a) is taken as far, a in 0, 0.05, …, 1, as brings held-out pairs
    nearest by the cosine: R of four fifths of the pairs, a by the others; then R of all. Widths
    must be equal.

    Reference: slerp is Shoemake, SIGGRAPH 1985; as a map between models, SLERP (NeurIPS 2026),
    which interpolates towards the old model's own feature of the query: that is `slerp_both`.
    """
    x, y = unit_pairs(source, target)
    fitted, held_out = split_pairs(len(x), key)
    trial = nearest_orthogonal(product(x[fitted].T, y[fitted]))[0]
    ours, theirs = x[held_out], y[held_out]

    def agreement(amount):
        way = slerp(ours, product(ours, trial), amount)
        return jnp.mean(jnp.sum(way * theirs, axis=1))

    amounts = jnp.asarray(_AMOUNTS, x.dtype)
    amount = amounts[jnp.argmax(jax.lax.map(agreement, amounts))]
    return {"matrix": nearest_orthogonal(product(x.T, y))[0], "amount": amount}


@jax.jit
def slerp_apply(params: Params, features: jax.Array) -> jax.Array:
    """slerp(x, x R; a) of unit features x [N, D]: unit [N, D]."""
    chex.assert_rank(features, 2)
    x = losses.normalize(features)
    return slerp(x, product(x, params["matrix"]), params["amount"])


@jax.jit
def slerp_both_apply(params: Params, features: jax.Array, own: jax.Array) -> jax.Array:
    """slerp(u, x R; ½), u the target model's own feature of the same image.

    Both models run for every query, and none for the gallery.

    Reference: SLERP (NeurIPS 2026), where the amount is chosen on 12,637 further pairs; ours is ½.

    Args:
      params: of `procrustes_fit`.
      features, own: x [N, S] and u [N, D].
    """
    return slerp(losses.normalize(own), affine_apply(params, features), 0.5)


def slerp(a: jax.Array, b: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Spherical interpolation of unit vectors [N, D]; of equal and of opposite ones the chord's."""
    b = losses.normalize(b)
    cosine = jnp.sum(a * b, axis=-1, keepdims=True)
    curved = jnp.abs(cosine) < 1.0 - 4 * jnp.finfo(a.dtype).eps
    # The inner `where` keeps the gradient of the branch not taken finite.
    angle = jnp.arccos(jnp.where(curved, cosine, 0.0))
    along = (jnp.sin((1 - amount) * angle) * a + jnp.sin(amount * angle) * b) / jnp.sin(angle)
    chord = losses.normalize((1 - amount) * a + amount * b)
    return jnp.where(curved, along, chord)


def split_pairs(count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of the pairs to fit on and of those held out; all are both if they are too few."""
    order = jax.random.permutation(key, count)
    held_out = count // HELD_OUT
    return (order[held_out:], order[:held_out]) if held_out else (order, order)
