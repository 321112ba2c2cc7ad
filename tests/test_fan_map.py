"""The map of FAN: the loss from its equation, training on a known map, and galleries carried on."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax import config
from iamcl2r_jax.evaluation import maps, pairs
from iamcl2r_jax.evaluation.features import Features
from iamcl2r_jax.evaluation.maps import fan
from iamcl2r_jax.methods import heads
from iamcl2r_jax.models import stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DivergenceError, InputError
from iamcl2r_jax.training import context, runs, task

D, HIDDEN, K, PAIRS, CAPACITY = 6, 24, 7, 90, 100
ACTIVE = np.arange(K) >= 3
SETTINGS = fan.Settings(
    hidden=HIDDEN, steps=500, batch_size=32, learning_rate=1e-2, similarity_weight=100.0
)


def cos(a, b):
    return sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))


def batch(num=5):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, num, D))
    return old, new, rng.choice(np.flatnonzero(ACTIVE), num), rng.normal(size=(K, D))


def random_params():
    """With biases, which are zero at first."""
    params = fan.init(jax.random.key(0), D, HIDDEN)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape)), params)


def test_loss_equals_the_naive_loop():
    with jax.enable_x64(True):
        old, new, labels, rows = batch()
        params = jax.tree.map(np.asarray, random_params())
        distance = ce = 0.0
        for o, f, y in zip(old, new, labels, strict=True):
            x = math.sqrt(D) * o / math.sqrt(sum(o * o))
            for name in ("hidden", "out"):
                weights, bias = params[name]["kernel"], params[name]["bias"]
                x = np.array([sum(x * weights[:, j]) + bias[j] for j in range(len(bias))])
                x = np.maximum(x, 0.0) if name == "hidden" else x
            distance += (1 - cos(x, f)) / len(labels)
            scores = [sum(w * x) for w in rows]
            mass = sum(math.exp(scores[k]) for k in range(K) if ACTIVE[k])
            ce += (math.log(mass) - scores[y]) / len(labels)
        total, terms = jax.jit(fan.loss)(params, old, new, labels, rows, ACTIVE)
        np.testing.assert_allclose(total, 100 * distance + ce, rtol=1e-9)
        np.testing.assert_allclose((terms["distance"], terms["ce"]), (distance, ce), rtol=1e-9)
        total, _ = fan.loss(params, old, new, labels, rows, ACTIVE, similarity_weight=3.0)
        np.testing.assert_allclose(total, 3 * distance + ce, rtol=1e-9)


def test_gradient_reaches_the_adapter_alone_and_is_right():
    step = 1e-6
    with jax.enable_x64(True):
        old, new, labels, rows = batch()

        @jax.jit
        def loss(params, old, new, rows):
            return fan.loss(params, old, new, labels, rows, ACTIVE)[0]

        params = random_params()
        gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(params, old, new, rows)
        assert all(np.all(np.asarray(g) == 0) for g in gradients[1:])
        rng = np.random.default_rng(2)
        way = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        ahead, behind = (
            loss(jax.tree.map(lambda p, w: p + sign * step * w, params, way), old, new, rows)  # noqa: B023
            for sign in (1, -1)
        )
        along = sum(
            np.vdot(g, w)
            for g, w in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(way), strict=True)
        )
        np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5)


def test_only_directions_are_read_and_a_zero_feature_is_finite():
    params = random_params()
    old = jnp.asarray(batch()[0], jnp.float32)
    np.testing.assert_allclose(
        fan.apply(params, 7.0 * old), fan.apply(params, old), rtol=1e-4, atol=1e-5
    )
    assert np.isfinite(fan.apply(params, jnp.zeros((1, D)))).all()


@pytest.fixture(scope="module")
def rotation():
    """A rotation, and features that it relates, of classes around their means."""
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    labels = rng.integers(0, K, 3 * PAIRS)
    old = 3 * rng.normal(size=(K, D))[labels] + rng.normal(size=(3 * PAIRS, D))
    return q.astype(np.float32), old.astype(np.float32), labels


def fitted(pairs, rows):
    rows = jnp.asarray(rows, jnp.float32)
    params, metrics, diverged = fan.fit(
        SETTINGS, heads.LINEAR, pairs, rows, None, jax.random.key(0)
    )
    assert diverged == -1
    return params, metrics


def test_fit_finds_a_rotation_and_it_holds_for_other_images(rotation):
    q, old, labels = rotation
    train, test = slice(PAIRS), slice(PAIRS, None)
    pairs = fan.make_pairs(old[train], old[train] @ q, labels[train], CAPACITY)
    rows = np.stack([old[labels == k].mean(0) for k in range(K)]) @ q
    params, metrics = fitted(pairs, rows)
    before = np.mean([cos(o, o @ q) for o in old[train]])
    assert metrics["cosine_before"] == pytest.approx(before, abs=1e-5)
    assert before < 0.5 < 0.98 < metrics["cosine_after"]
    carried = maps.Fitted("fan", params)(old[test])
    assert np.mean([cos(a, b) for a, b in zip(carried, old[test] @ q, strict=True)]) > 0.95

    # Whatever stands behind the pairs is never looked at, and their number is no new program.
    junk = np.arange(CAPACITY)[:, np.newaxis] >= PAIRS
    other = pairs.replace(
        old=jnp.where(junk, 1e3, pairs.old),
        new=jnp.where(junk, -1e3, pairs.new),
        labels=jnp.where(junk[:, 0], 0, pairs.labels),
    )
    traces = fan.fit._cache_size()
    again, again_metrics = fitted(other, rows)
    assert jax.tree.all(jax.tree.map(np.array_equal, (params, metrics), (again, again_metrics)))
    fewer = fan.make_pairs(old[:9], old[:9] @ q, labels[:9], CAPACITY)
    fitted(fewer, rows)
    assert fan.fit._cache_size() == traces


@pytest.mark.parametrize(
    ("broken", "rate", "step"), [(np.nan, 1e-2, 0), (1.0, np.float32(3e38), 1)]
)
def test_an_adapter_that_is_not_finite_is_told(rotation, broken, rate, step):
    """From its first step, with a classifier that is not; from its second, by too long a first."""
    q, old, labels = rotation
    pairs = fan.make_pairs(old[:PAIRS], old[:PAIRS] @ q, labels[:PAIRS], CAPACITY)
    settings = dataclasses.replace(SETTINGS, learning_rate=float(rate), steps=3)
    *_, diverged = fan.fit(
        settings, heads.LINEAR, pairs, jnp.full((K, D), broken), None, jax.random.key(0)
    )
    assert diverged == step


def test_divergence_of_an_adapter_ends_the_run_in_one_line(monkeypatch):
    monkeypatch.setattr(fan, "fit", lambda *_: ({}, {}, np.int32(3)))
    c = config.default()
    c.method, c.num_slots = "fan", K
    stream = types.SimpleNamespace(
        tasks=[range(1), range(1, 2)],
        train=types.SimpleNamespace(images=np.zeros((2, 1)), labels=np.arange(2)),
        train_indices=lambda number: np.asarray([number]),
    )
    programs = types.SimpleNamespace(features=lambda architecture: lambda *_: np.zeros((1, D)))
    run_context = context.Context(c, "", stream, None, {}, programs, None, None)
    rows = jnp.zeros((K, D))
    model = stored.Model(
        types.SimpleNamespace(architecture=None, head=heads.LINEAR, known_rows=np.ones(K, bool)),
        heads.attach({"params": {}}, rows),
    )
    message = (
        r"^adapter of task 2/2, step 4: loss or gradient is not finite; "
        r"try a lower adapter\.learning_rate$"
    )
    with pytest.raises(DivergenceError, match=message):
        task.with_adapter(run_context, 1, model, model)


def test_more_pairs_than_the_capacity_are_refused():
    with pytest.raises(ValueError, match="capacity of 4 cannot hold 5 pairs"):
        fan.make_pairs(np.zeros((5, D)), np.zeros((5, D)), np.zeros(5, int), 4)


@pytest.mark.parametrize("metric", ["identification", "recall_at_1"])
def test_galleries_are_carried_from_model_to_model(rotation, metric):
    """Three models, each the one before but rotated: carried galleries match as the first did."""
    q, old, labels = rotation
    half = len(old) // 2

    def matrix(carry):
        models = [Features(x[:half], x[half:], carry) for x in (old, old @ q, old @ q @ q)]
        found = pairs.evaluate_pairs(models, labels[:half], labels[half:], [metric])
        return found[metric].matrix

    identity, none, carried = matrix(lambda gallery: gallery), matrix(None), matrix(lambda g: g @ q)
    np.testing.assert_array_equal(identity, none)
    own = none[0, 0]
    assert own > 0.9
    np.testing.assert_allclose(carried[np.tril_indices(3)], own)
    assert np.all(none[np.tril_indices(3, -1)] < own - 0.1)
    np.testing.assert_array_equal(np.diag(carried), np.diag(none))


def test_settings_are_part_of_a_run_that_adapts_and_of_no_other(tmp_path):
    for method in ("fan", "hoc"):
        c = config.default()
        c.method = method
        written = c.to_dict()
        del written["adapter"]  # as runs wrote it before there were adapters
        workdir = tmp_path / method
        files.write_json(str(workdir / "config.json"), written)
        if method == "fan":
            with pytest.raises(InputError, match=r"adapter"):
                runs.refuse_other_config(c, str(workdir))
        else:
            runs.refuse_other_config(c, str(workdir))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden", 0, r"adapter\.hidden=0: must be an integer in \[1"),
        ("steps", 0, r"adapter\.steps=0: must be an integer in \[1"),
        ("batch_size", -1, r"adapter\.batch_size=-1: must be an integer in \[1"),
        ("learning_rate", 0.0, r"adapter\.learning_rate=0\.0: must be a number in \(0"),
        ("similarity_weight", -1.0, r"adapter\.similarity_weight=-1\.0: must be a number in \[0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(field, value, message):
    c = config.default()
    c.adapter[field] = value
    with pytest.raises(InputError, match=message):
        config.validate(c)
