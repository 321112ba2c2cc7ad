"""Maps after the fact: against independent implementations, and on pairs that say little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
from sklearn.linear_model import Ridge

from iamcl2r_jax.evaluation import maps
from iamcl2r_jax.evaluation.maps import linear, trained
from iamcl2r_jax.system.errors import InputError

D = 5
QUICK = {
    "residual_mlp": {"hidden": 8, "steps": 40, "batch_size": 16},
    "lambda_orthogonal": {"steps": 40},
    "fan": {"hidden": 32, "steps": 300, "batch_size": 16, "learning_rate": 1e-2},
}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(count=40, width=D, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def orthogonal(seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def fit(name, source, target):
    return maps.fit(name, source, target, options=QUICK.get(name))


def mapped(fitted, x, own):
    return fitted(x, own) if maps.MAPS[fitted.name].uses_target else fitted(x)


def related(noise=0.3, count=40):
    """Pairs that an orthogonal map, with det -1, and noise relate; rows are unit vectors."""
    rotation = orthogonal()
    rotation[:, 0] *= -np.linalg.det(rotation)
    x = unit(features(count))
    y = unit(x @ rotation + noise * features(count, seed=2)).astype(np.float32)
    return x, y, rotation


@pytest.mark.parametrize("name", ["procrustes", "scaled_procrustes", "ridge"])
def test_a_planted_rotation_is_recovered(name):
    x, y, rotation = related(noise=0.0)
    other = features(7, seed=3)
    np.testing.assert_allclose(unit(fit(name, x, y)(other)), unit(other @ rotation), atol=2e-4)
    if name == "procrustes":
        with jax.enable_x64(True):
            x, y = np.float64(x), np.float64(x) @ rotation
            found = linear.procrustes_fit(x, y)["matrix"]
            np.testing.assert_allclose(found, rotation, atol=1e-13)


def test_procrustes_is_scipys():
    x, y, _ = related()
    expected, _ = scipy.linalg.orthogonal_procrustes(x, y)
    np.testing.assert_allclose(fit("procrustes", x, y).params["matrix"], expected, atol=1e-5)


def test_procrustes_does_without_divide_and_conquer(monkeypatch):
    cross = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    cross[:, 0] = 0
    expected = linear.nearest_orthogonal(cross)[0]

    def with_nan(matrix, full_matrices):
        return [jnp.full(shape, jnp.nan) for shape in ((6, 4), 4, (4, 4))]

    monkeypatch.setattr(jnp.linalg, "svd", with_nan)  # as where LAPACK's does not converge
    found = linear.nearest_orthogonal(cross)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scaled_procrustes_leaves_what_scipys_leaves():
    x, y, _ = related()
    y = unit(y + 0.5).astype(np.float32)
    *_, disparity = scipy.spatial.procrustes(y, x)
    left = np.sum((fit("scaled_procrustes", x, y)(x) - y) ** 2)
    assert left / np.sum((y - y.mean(0)) ** 2) == pytest.approx(disparity, rel=1e-4)


@pytest.mark.parametrize("same_space", [True, False])
def test_ridge_is_the_one_of_sklearn_that_predicts_left_out_pairs_best(same_space):
    x, y, _ = related(count=16)
    if same_space:
        y = unit(x + 0.3 * features(16, seed=2)).astype(np.float32)
    centred = x - x.mean(0)
    mean_eigenvalue = np.linalg.eigvalsh(centred.T @ centred).mean()
    errors = {}
    for start in (1.0, 0.0):
        for strength in 10.0 ** np.arange(-4, 4):
            model = Ridge(alpha=strength * mean_eigenvalue, solver="cholesky")
            left_out = [
                model.fit(np.delete(x, n, 0), np.delete(y - start * x, n, 0)).predict(x[n : n + 1])
                + start * x[n]
                - y[n]
                for n in range(len(x))
            ]
            errors[start, strength] = np.mean(np.square(left_out))
    start, strength = min(errors, key=errors.get)
    assert start == float(same_space)
    model = Ridge(alpha=strength * mean_eigenvalue).fit(x, y - start * x)
    found = fit("ridge", x, y).params
    np.testing.assert_allclose(found["matrix"], model.coef_.T + start * np.eye(D), atol=1e-4)
    np.testing.assert_allclose(found["shift"], model.intercept_, atol=1e-4)


def test_ridge_joins_widths_as_sklearn_does():
    x, y = unit(features()), unit(features(width=3, seed=4))
    found = fit("ridge", x, y)
    centred = x - x.mean(0)
    mean_eigenvalue = np.linalg.eigvalsh(centred.T @ centred).mean()
    close = [
        np.allclose(found(x), Ridge(alpha=a * mean_eigenvalue).fit(x, y).predict(x), atol=1e-4)
        for a in 10.0 ** np.arange(-4, 4)
    ]
    assert sum(close) >= 1


def test_low_rank_is_the_best_of_its_rank_and_ridge_at_full_rank():
    x, y, _ = related()
    ridge = fit("ridge", x, y)
    whole = maps.fit("low_rank", x, y, options={"rank": D})
    np.testing.assert_allclose(whole(x), ridge(x), atol=1e-4)
    # Reduced-rank regression is the truncated SVD of the fitted values, rows for λ included.
    change, kept, _, gram = linear._ridge(x, y)
    assert kept == 0.0  # so that the matrix itself is of low rank
    root = scipy.linalg.sqrtm(np.float64(gram)).real
    left, values, right = np.linalg.svd(root @ change)
    best = np.linalg.solve(root, (left[:, :2] * values[:2]) @ right[:2])
    found = maps.fit("low_rank", x, y, options={"rank": 2}).params
    np.testing.assert_allclose(found["left"] @ found["right"].T, best, atol=1e-4)


def test_rotation_is_an_exponential_of_a_skew_matrix_and_the_nearest():
    x, y, _ = related()
    assert np.linalg.det(fit("procrustes", x, y).params["matrix"]) == pytest.approx(-1, abs=1e-4)
    found = np.float64(fit("rotation", x, y).params["matrix"])
    assert np.linalg.det(found) == pytest.approx(1, abs=1e-4)
    skew = scipy.linalg.logm(found).real
    np.testing.assert_allclose(skew, -skew.T, atol=1e-4)
    least = np.sum((x @ found - y) ** 2)
    for seed in range(20):
        a = 0.1 * features(D, seed=seed)
        assert np.sum((x @ found @ scipy.linalg.expm(a - a.T) - y) ** 2) > least


def test_slerp_goes_as_far_as_held_out_pairs_ask_for():
    x, _, rotation = related()
    r = scipy.linalg.expm(0.3 * (rotation - rotation.T))  # of rotations there is a way back
    halfway = linear.slerp(x, np.float32(x @ r), 0.5)
    found = fit("slerp", x, x @ r).params
    assert found["amount"] == 1.0
    for a, b, c in zip(x, np.float64(x @ r), np.asarray(halfway), strict=True):
        angle = np.arccos(a @ b)
        naive = np.sin(angle / 2) / np.sin(angle) * (a + b)
        np.testing.assert_allclose(c, naive, atol=1e-5)
    unrelated = features(2 * D), features(2 * D, seed=7)
    assert fit("slerp", *unrelated).params["amount"] < 1.0


@pytest.mark.parametrize("a", [1.0, -1.0])
def test_slerp_of_equal_and_of_opposite_vectors_is_finite(a):
    x = jnp.asarray(unit(features()))
    value, gradient = jax.value_and_grad(lambda b: jnp.sum(linear.slerp(x, b, 0.3)))(a * x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_trained_maps_are_no_worse_than_where_they_start_and_better_where_there_is_more():
    x = features(200)
    y = unit(x @ orthogonal() + 0.7 * np.tanh(3 * x[:, ::-1]))
    train, test = slice(100), slice(100, None)

    def error(name, **options):
        fitted = maps.fit(name, x[train], y[train], options=options)
        return np.mean(np.sum((fitted(x[test]) - y[test]) ** 2, axis=1))

    start = error("procrustes")
    assert error("residual_mlp", hidden=32, steps=300, learning_rate=1e-2) < 0.9 * start
    free = error("lambda_orthogonal", steps=200, learning_rate=1e-2)
    held = error("lambda_orthogonal", steps=200, learning_rate=1e-2, threshold=0.0, sharpness=1e3)
    assert free < start
    assert held == pytest.approx(start, rel=0.1)


def test_error_and_distance_of_the_lambda_orthogonal_map_equal_the_naive_ones():
    x, y, _ = related()
    w = features(D, seed=5)
    naive = np.mean([np.sum((w.T @ a - b) ** 2) for a, b in zip(x, y, strict=True)])
    found = trained._mean_error({"matrix": jnp.asarray(w)}, trained._moments(x, y))
    assert found == pytest.approx(naive, rel=1e-5)
    for side in (w, w[:, :3], w[:3]):
        small = side if len(side) <= side.shape[1] else side.T
        naive = np.linalg.norm(small @ small.T - np.eye(len(small)))
        assert trained._distance_from_orthogonal(side) == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("name", [name for name in maps.MAPS if name != "fan"])
def test_equal_features_give_the_identity(name, count):
    """Also where the pairs leave most directions open, for features that lie there."""
    x, other = features(count), features(9, seed=6)
    found = mapped(fit(name, x, x), other, other)
    np.testing.assert_allclose(unit(found), unit(other), atol=1e-5)


def test_fan_comes_near_the_identity_where_it_has_learnt_it():
    x = features(300)
    train, test = slice(200), slice(200, None)
    found = unit(fit("fan", x[train], x[train])(x[test]))
    assert np.mean(np.sum(found * unit(x[test]), axis=1)) > 0.95


def degenerate():
    one = features(1)
    yield "one pair", one, features(1, seed=1)
    yield "one pair many times", np.repeat(one, 8, 0), np.repeat(features(1, seed=1), 8, 0)
    yield "zero features", np.zeros((8, D)), features(8)
    yield "zero targets", features(8), np.zeros((8, D))
    yield "a plane", features(8, 2) @ features(2), features(8, 2, 1) @ features(2, seed=1)


@pytest.mark.parametrize("name", maps.MAPS)
def test_pairs_that_say_little_give_finite_maps(name):
    other = np.concatenate([features(4, seed=6), np.zeros((1, D), np.float32)])
    for what, source, target in degenerate():
        found = fit(name, source, target)
        assert np.isfinite(mapped(found, other, other)).all(), what


@pytest.mark.parametrize("name", [n for n, m in maps.MAPS.items() if not m.equal_widths])
@pytest.mark.parametrize("widths", [(5, 3), (3, 5)])
def test_widths_may_differ(name, widths):
    x = features(width=widths[0])
    y = x @ orthogonal()[: widths[0], : widths[1]].astype(np.float32)
    found = mapped(fit(name, x, y), x, y)
    assert found.shape == y.shape
    assert np.mean(np.sum(unit(found) * unit(y), axis=1)) > 0.75


@pytest.mark.parametrize("name", maps.MAPS)
def test_apply_is_differentiable(name):
    x, y, _ = related(count=12)
    fitted = fit(name, x, y)
    chosen = maps.MAPS[name]
    own = (jnp.asarray(y[:3]),) if chosen.uses_target else ()

    def loss(params, x):
        return jnp.sum(jnp.square(chosen.apply(params, x, *own) - y[:3]))

    gradients = jax.grad(loss, argnums=(0, 1))(fitted.params, jnp.asarray(x[:3]))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert np.any(leaves[-1] != 0)


@pytest.mark.parametrize("name", ["procrustes", "scaled_procrustes", "ridge"])
def test_fit_is_differentiable(name):
    with jax.enable_x64(True):
        x, y, _ = map(np.float64, related(count=12))
        other = np.float64(features(3, seed=6))
        chosen, key = maps.MAPS[name], jax.random.key(0)

        @jax.jit
        def loss(x):
            return jnp.sum(jnp.sin(chosen.apply(chosen.fit(x, y, key), other)))

        way, step = np.float64(features(12, seed=8)), 1e-6
        slope = (loss(x + step * way) - loss(x - step * way)) / (2 * step)
        np.testing.assert_allclose(np.vdot(jax.grad(loss)(x), way), slope, rtol=1e-5)


def test_many_rows_are_mapped_as_few_are(monkeypatch):
    monkeypatch.setattr(maps, "_ROWS_AT_ONCE", 8)
    x, y, _ = related(count=21)
    for name in ("ridge", "slerp_both"):
        fitted = fit(name, x, y)
        rows = np.concatenate([mapped(fitted, x[n : n + 1], y[n : n + 1]) for n in range(21)])
        np.testing.assert_allclose(mapped(fitted, x, y), rows, atol=1e-6)
    assert fitted.nbytes == 4 * D * D


@pytest.mark.parametrize(
    ("name", "source", "target", "message"),
    [
        ("pca", (4, D), (4, D), r"^maps=pca: unknown map; choose all or some of procrustes, "),
        ("ridge", (4, D), (3, D), r"^pairs: 4 rows of one model, 3 of the other"),
        ("ridge", (0, D), (0, D), r"^pairs: expected non-empty features"),
        ("ridge", (4,), (4, D), r"^pairs: expected non-empty features \[N, D\], got \[4\]"),
        ("slerp", (4, D), (4, 3), r"^map slerp: widths 5 and 3 differ"),
    ],
)
def test_pairs_that_cannot_be_are_one_line(name, source, target, message):
    with pytest.raises(InputError, match=message):
        maps.fit(name, np.ones(source), np.ones(target))


def test_features_that_are_not_finite_are_one_line():
    broken = features(4)
    broken[1, 2] = np.nan
    with pytest.raises(InputError, match=r"^pairs: features must be finite"):
        maps.fit("ridge", features(4), broken)


def test_names():
    assert maps.check_names("all") == list(maps.MAPS)
    assert maps.check_names(["ridge", "procrustes", "ridge"]) == ["ridge", "procrustes"]
    assert maps.MAPS["slerp_both"].directions() == (maps.QUERIES,)
