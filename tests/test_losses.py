"""Losses against naive loops (dtypes, jitted or not), gradients, subsets and degenerate batches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax import losses

BATCH, DIM, CLASSES = 9, 5, 6
LABELS = np.array([0, 2, 2, 5, 0, 1, 2, 5, 3])
MASK = np.array([True, True, True, True, False, True])  # every label's row is in use
KNOWN = np.array([True, False, True, True, True, False])
WEIGHT = np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1])


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "new": rng.standard_normal((BATCH, DIM)),
        "old": rng.standard_normal((BATCH, DIM)),
        "logits": 3 * rng.standard_normal((BATCH, CLASSES)),
        "old_logits": 3 * rng.standard_normal((BATCH, CLASSES)),
        "centres": rng.standard_normal((CLASSES, DIM)),
        "boundaries": rng.uniform(0, 1, CLASSES),
        "cosines": rng.uniform(-1, 1, (BATCH, CLASSES)),
    }


# --- naive versions: one sample at a time, Python floats ------------------------------------------


def unit(x):
    return [a / math.sqrt(sum(b * b for b in x)) for a in x]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def mean(values, weight=None):
    values = list(values)
    weight = [1.0] * len(values) if weight is None else weight
    return sum(v * w for v, w in zip(values, weight, strict=True)) / sum(weight)


def naive_cross_entropy(logits, labels, mask=None, weight=None):
    mask = [True] * len(logits[0]) if mask is None else mask
    values = []
    for row, label in zip(logits, labels, strict=True):
        total = sum(math.exp(v) for v, used in zip(row, mask, strict=True) if used)
        values.append(-math.log(math.exp(row[label]) / total))
    return mean(values, weight)


def naive_hoc(new, old, labels, mu=10.0, exclude_same_class=False):
    values = []
    for n, o in enumerate(old):
        total = 0.0
        for m, f in enumerate(new):
            if labels[m] != labels[n]:
                total += math.exp(mu * dot(unit(o), unit(f)))
            elif not exclude_same_class:
                total += 1.0
        values.append(-mu * dot(unit(o), unit(new[n])) + math.log(total))
    return mean(values)


def naive_feature_distillation(new, old, weight=None):
    return mean((1 - dot(unit(f), unit(o)) for f, o in zip(new, old, strict=True)), weight)


def naive_distillation(new, old, temperature=2.0, mask=None, weight=None):
    mask = [True] * len(new[0]) if mask is None else mask
    values = []
    for f, o in zip(new, old, strict=True):
        p = softmax([v / temperature for v, used in zip(f, mask, strict=True) if used])
        q = softmax([v / temperature for v, used in zip(o, mask, strict=True) if used])
        values.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)))
    return mean(values, weight)


def naive_normalized_softmax(new, prototypes, labels, temperature=0.05, mask=None, weight=None):
    logits = [[dot(unit(f), unit(p)) / temperature for p in prototypes] for f in new]
    return naive_cross_entropy(logits, labels, mask, weight)


def naive_triplet(new, old, labels, margin=0.1):
    values = []
    for n, f in enumerate(new):
        negative = min(
            distance(unit(f), unit(o)) for m, o in enumerate(old) if labels[m] != labels[n]
        )
        values.append(max(distance(unit(f), unit(old[n])) - negative + margin, 0))
    return mean(values)


def naive_centre(new, labels, centres, weight=None):
    return mean(
        (distance(centres[y], unit(f)) ** 2 for f, y in zip(new, labels, strict=True)), weight
    )


def naive_boundary(new, labels, centres, boundaries, weight=None):
    values = [
        max(boundaries[y] - dot(unit(f), unit(centres[y])), 0)
        for f, y in zip(new, labels, strict=True)
    ]
    return mean(values, weight)


def naive_margin_ranking(cosines, labels, candidates, margin=0.5, num_negatives=2, weight=None):
    weight = [1.0] * len(labels) if weight is None else weight
    values, weights = [], []
    for row, y, w in zip(cosines, labels, weight, strict=True):
        others = sorted((c for k, c in enumerate(row) if candidates[k] and k != y), reverse=True)
        for negative in others[:num_negatives]:
            values.append(max(margin - row[y] + negative, 0))
            weights.append(w)
    return mean(values, weights)


# Each: the loss, its naive version, the names of its arrays, and the options to try.
FROZEN = {"old", "old_logits", "centres", "boundaries"}
CASES = {
    "cross_entropy": (
        lambda x, **k: losses.cross_entropy(x["logits"], LABELS, **k),
        lambda x, **k: naive_cross_entropy(x["logits"], LABELS, **k),
        ("logits",),
        [{}, {"mask": MASK}, {"weight": WEIGHT}, {"mask": MASK, "weight": WEIGHT}],
    ),
    "hoc": (
        lambda x, **k: losses.hoc_loss(x["new"], x["old"], LABELS, **k),
        lambda x, **k: naive_hoc(x["new"], x["old"], LABELS, **k),
        ("new", "old"),
        [{}, {"mu": 2.5}, {"exclude_same_class": True}, {"mu": 2.5, "exclude_same_class": True}],
    ),
    "feature_distillation": (
        lambda x, **k: losses.feature_distillation(x["new"], x["old"], **k),
        lambda x, **k: naive_feature_distillation(x["new"], x["old"], **k),
        ("new", "old"),
        [{}, {"weight": WEIGHT}, {"weight": WEIGHT + 0.5}],
    ),
    "distillation": (
        lambda x, **k: losses.distillation(x["logits"], x["old_logits"], **k),
        lambda x, **k: naive_distillation(x["logits"], x["old_logits"], **k),
        ("logits", "old_logits"),
        [{}, {"temperature": 1.0}, {"mask": MASK, "weight": WEIGHT}],
    ),
    "normalized_softmax": (
        lambda x, **k: losses.normalized_softmax(x["new"], x["prototypes"], LABELS, **k),
        lambda x, **k: naive_normalized_softmax(x["new"], x["prototypes"], LABELS, **k),
        ("new", "prototypes"),
        [{}, {"temperature": 0.5, "mask": MASK, "weight": WEIGHT}],
    ),
    "triplet": (
        lambda x, **k: losses.triplet_loss(x["new"], x["old"], LABELS, **k),
        lambda x, **k: naive_triplet(x["new"], x["old"], LABELS, **k),
        ("new", "old"),
        [{}, {"margin": 0.7}],
    ),
    "centre": (
        lambda x, **k: losses.centre_loss(x["new"], LABELS, x["centres"], **k),
        lambda x, **k: naive_centre(x["new"], LABELS, x["centres"], **k),
        ("new", "centres"),
        [{}, {"weight": KNOWN[LABELS].astype(float)}],
    ),
    "boundary": (
        lambda x, **k: losses.boundary_loss(x["new"], LABELS, x["centres"], x["boundaries"], **k),
        lambda x, **k: naive_boundary(x["new"], LABELS, x["centres"], x["boundaries"], **k),
        ("new", "centres", "boundaries"),
        [{}, {"weight": KNOWN[LABELS].astype(float)}],
    ),
    "margin_ranking": (
        lambda x, **k: losses.margin_ranking_loss(x["cosines"], LABELS, MASK, **k),
        lambda x, **k: naive_margin_ranking(x["cosines"], LABELS, MASK, **k),
        ("cosines",),
        [{}, {"margin": 0.1, "num_negatives": 3, "weight": WEIGHT}, {"num_negatives": 99}],
    ),
}


def inputs_of(name, dtype=np.float32, seed=0):
    values = arrays(seed)
    values["prototypes"] = values["centres"]
    return {k: jnp.asarray(values[k], dtype) for k in CASES[name][2]}


@pytest.mark.parametrize(
    ("dtype", "transform"),
    [
        (jnp.bfloat16, jax.jit),
        (jnp.float32, jax.jit),
        (jnp.float32, lambda f: f),
        (jnp.float64, jax.jit),
    ],
    ids=["bfloat16", "float32", "float32-eager", "float64"],
)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_naive_loop(name, dtype, transform):
    loss, naive, _, variants = CASES[name]
    tolerance = 1e-12 if dtype == jnp.float64 else 3e-6
    with jax.enable_x64(dtype == jnp.float64):
        inputs = inputs_of(name, dtype)
        results = transform(lambda x: [loss(x, **options) for options in variants])(inputs)
        # The naive loop sees the same rounded inputs, so bfloat16 needs no more tolerance.
        exact = {k: np.asarray(v, np.float64).tolist() for k, v in inputs.items()}
    for options, result in zip(variants, results, strict=True):
        assert result.shape == ()
        assert result.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        expected = naive(exact, **options)
        np.testing.assert_allclose(result, expected, tolerance, tolerance, err_msg=str(options))


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences_and_zero_into_what_is_old(name):
    loss, _, _, variants = CASES[name]
    step = 1e-6
    with jax.enable_x64(True):
        inputs, direction = inputs_of(name, np.float64), inputs_of(name, np.float64, seed=1)
        learned = [k for k in inputs if k not in FROZEN]

        @jax.jit
        def call(x):
            return [jax.value_and_grad(lambda x: loss(x, **options))(x) for options in variants]  # noqa: B023

        ahead, here, behind = (
            call(inputs | {k: inputs[k] + sign * step * direction[k] for k in learned})
            for sign in (1, 0, -1)
        )
        for i, options in enumerate(variants):
            gradient = here[i][1]
            slope = sum(jnp.sum(gradient[k] * direction[k]) for k in learned)
            expected = (ahead[i][0] - behind[i][0]) / (2 * step)
            np.testing.assert_allclose(slope, expected, rtol=1e-6, err_msg=str(options))
            for key in inputs:
                assert np.any(gradient[key]) == (key in learned), (key, options)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if any("weight" in v for v in case[3])]
)
def test_a_weighted_loss_is_that_of_the_selected_samples(name):
    # A sample that is left out may have a label without a row in use, hence an infinite loss.
    selected = WEIGHT > 0
    labels = np.where(selected, LABELS, 4)
    x = {k: np.asarray(v) for k, v in inputs_of(name).items()}
    per_sample = {"new", "old", "logits", "old_logits", "cosines"}

    def call(x, labels, weight):
        extra = {"weight": weight}
        if name == "cross_entropy":
            return losses.cross_entropy(x["logits"], labels, mask=MASK, **extra)
        if name == "feature_distillation":
            return losses.feature_distillation(x["new"], x["old"], **extra)
        if name == "distillation":
            return losses.distillation(x["logits"], x["old_logits"], **extra)
        if name == "normalized_softmax":
            return losses.normalized_softmax(x["new"], x["prototypes"], labels, mask=MASK, **extra)
        if name == "centre":
            return losses.centre_loss(x["new"], labels, x["centres"], **extra)
        if name == "boundary":
            return losses.boundary_loss(x["new"], labels, x["centres"], x["boundaries"], **extra)
        return losses.margin_ranking_loss(x["cosines"], labels, MASK, **extra)

    filtered = {k: v[selected] if k in per_sample else v for k, v in x.items()}
    expected = jax.jit(call)(filtered, labels[selected], None)
    assert expected != 0
    weighted = jax.jit(jax.value_and_grad(call))
    loss, gradient = weighted(x, labels, WEIGHT)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for key in per_sample & x.keys():
        np.testing.assert_array_equal(gradient[key][~selected], 0)
    loss, gradient = weighted(x, labels, np.zeros(BATCH))
    assert loss == 0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


@jax.jit
def values_and_gradients(new, old, labels, centres, boundaries):
    def everything(new):
        cosines = losses.cosine_similarities(new, centres)
        return {
            "hoc": losses.hoc_loss(new, old, labels),
            "hoc_excluded": losses.hoc_loss(new, old, labels, exclude_same_class=True),
            "feature_distillation": losses.feature_distillation(new, old),
            "normalized_softmax": losses.normalized_softmax(new, centres, labels),
            "triplet": losses.triplet_loss(new, old, labels),
            "centre": losses.centre_loss(new, labels, centres),
            "boundary": losses.boundary_loss(new, labels, centres, boundaries),
            "margin_ranking": losses.margin_ranking_loss(cosines, labels, MASK),
            "cross_entropy": losses.cross_entropy(new, labels % DIM),
            "distillation": losses.distillation(new, old),
        }

    return everything(new), jax.jacrev(everything)(new)


DEGENERATE = {
    "one class": (lambda x: x, np.zeros(BATCH, int)),
    "one sample": (lambda x: x[:1], np.zeros(1, int)),
    "identical features": (np.ones_like, LABELS),
    "identical features, one class": (np.ones_like, np.zeros(BATCH, int)),
    "zero features": (np.zeros_like, LABELS),
    "tiny features": (lambda x: x * np.float32(1e-30), LABELS),
    "huge features": (lambda x: x * np.float32(1e15), LABELS),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_are_finite(case):
    change, labels = DEGENERATE[case]
    x = {k: v.astype(np.float32) for k, v in arrays().items()}
    batch = change(x["new"]), change(x["old"]), labels
    for results in values_and_gradients(*batch, x["centres"], x["boundaries"]):
        for name, result in results.items():
            assert np.isfinite(result).all(), name


def test_new_equal_to_old_is_where_training_starts():
    features = arrays()["new"].astype(np.float32)
    loss, gradient = jax.jit(jax.value_and_grad(losses.feature_distillation))(features, features)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    gradient = jax.jit(jax.grad(losses.triplet_loss))(features, features, LABELS)
    assert np.isfinite(gradient).all()


def test_hoc_by_hand():
    new = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    old = jnp.array([[3.0, 4.0], [0.0, 1.0]])  # cosines with new: [[.6, .8], [0, 1]]
    hoc_loss = jax.jit(losses.hoc_loss, static_argnames="exclude_same_class")
    labels = jnp.array([4, 7])
    # default: c_n = 1, the positive itself
    first = -10 * 0.6 + math.log(math.exp(10 * 0.8) + 1)
    second = -10 * 1.0 + math.log(math.exp(0) + 1)
    np.testing.assert_allclose(hoc_loss(new, old, labels), (first + second) / 2, rtol=1e-6)
    # without same-class candidates: (-6 + 8) and (-10 + 0), hence a negative loss of -4
    excluded = hoc_loss(new, old, labels, exclude_same_class=True)
    np.testing.assert_allclose(excluded, -4, rtol=1e-6)
    # one class: two candidates of exp(0) each; and nothing to contrast with
    same = jnp.array([1, 1])
    expected = (-6 - 10) / 2 + math.log(2)
    np.testing.assert_allclose(hoc_loss(new, old, same), expected, rtol=1e-6)
    assert hoc_loss(new, old, same, exclude_same_class=True) == 0


def test_triplet_of_one_class_is_zero():
    x = inputs_of("triplet")
    assert losses.triplet_loss(x["new"], x["old"], np.zeros(BATCH, int)) == 0


def test_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0], [0.0, -1e-10]])
    expected = [[0.6, 0.8], [0, 0], [0, 0], [0, -1]]
    np.testing.assert_allclose(losses.normalize(x), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: losses.normalize(x).sum()))(x)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:3], 0)
    assert losses.normalize(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_rows_out_of_use_are_out_of_the_softmax():
    logits = arrays()["logits"].astype(np.float32)
    masked = jax.jit(jax.value_and_grad(functools.partial(losses.cross_entropy, mask=MASK)))
    growing = np.where(MASK, logits, np.float32(1e9))
    loss, gradient = masked(growing, LABELS)
    removed = naive_cross_entropy(logits[:, MASK].tolist(), np.where(LABELS > 4, 4, LABELS))
    np.testing.assert_allclose(loss, removed, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, ~MASK], 0)
    assert np.isfinite(masked(logits - 500, LABELS)[1]).all()  # e^500 overflows where masked
    assert masked(logits, np.full(BATCH, 4))[0] == np.inf


def test_no_row_in_use_is_no_loss():
    x = inputs_of("distillation")
    nothing = np.zeros(CLASSES, bool)

    def both(logits):
        weight = np.zeros(BATCH)
        return (
            losses.distillation(logits, x["old_logits"], mask=nothing),
            losses.cross_entropy(logits, LABELS, mask=nothing, weight=weight),
        )

    for result in (*jax.jit(both)(x["logits"]), *jax.jit(jax.jacrev(both))(x["logits"])):
        np.testing.assert_array_equal(result, 0)


def test_centre_loss_of_rows_is_the_alignment_of_lce():
    rng = np.random.default_rng(3)
    rows, centres = rng.standard_normal((2, CLASSES, DIM))
    unit_rows, unit_centres = (np.array([unit(r) for r in x]) for x in (rows, centres))
    expected = np.mean((unit_rows - unit_centres)[KNOWN] ** 2)
    result = losses.centre_loss(
        jnp.asarray(rows), np.arange(CLASSES), jnp.asarray(unit_centres), weight=KNOWN.astype(float)
    )
    np.testing.assert_allclose(result / DIM, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: losses.hoc_loss(x["new"], x["old"][:, :-1], LABELS),
        lambda x: losses.hoc_loss(x["new"], x["old"], LABELS[:-1]),
        lambda x: losses.hoc_loss(x["new"][0], x["old"][0], LABELS),
        lambda x: losses.feature_distillation(x["new"], x["old"][:1]),
        lambda x: losses.feature_distillation(x["new"], x["old"], weight=WEIGHT[:1]),
        lambda x: losses.triplet_loss(x["new"], x["old"], LABELS[:-1]),
        lambda x: losses.cross_entropy(x["new"], LABELS[:, np.newaxis]),
        lambda x: losses.cross_entropy(x["new"], LABELS, mask=MASK[:2]),
        lambda x: losses.centre_loss(x["new"], LABELS[:1], x["old"]),
        lambda x: losses.margin_ranking_loss(x["new"], LABELS % DIM, MASK[:2]),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError, match=r"(?i)shape|rank"):
        call(inputs_of("hoc"))
