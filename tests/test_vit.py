"""The vision transformer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from quick import run
from rich.console import Console

from iamcl2r_jax import config, losses, methods, models, simplex
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.vit import TransformerBlock
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.resume import Position, ProgressStore
from iamcl2r_jax.training.step import OldModel, Program, TaskData, train_step

K, SIZE, BATCH = 8, 8, 4
SMALL = {"width": 8, "depth": 2, "heads": 2}
MODEL = models.create("vit_tiny", K - 1, **SMALL)


def shapes(size=32, **options):
    model = models.create("vit_tiny", **options)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.fixture(scope="module")
def small():
    """A small one, its variables, and images."""
    model = MODEL
    variables = models.init_variables(model, jax.random.key(0, impl="rbg"), SIZE)
    images = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    return model, variables, images


def test_number_of_parameters_is_deit_tinys():
    """5,717,416 as published, less its classifier, class token and that token's position."""
    variables = shapes(224, num_features=7, patch_size=16)
    assert variables.keys() == {"params"}
    assert count(variables) == 5_717_416 - 193_000 - 2 * 192 + 7 * 192


def test_number_of_parameters_by_hand():
    variables = shapes(24, num_features=5, width=12, depth=2, heads=3, patch_size=8)
    embedding = 3 * 8 * 8 * 12 + 12 + 3 * 3 * 12  # of a patch; and nine positions
    attention = 4 * (12 * 12 + 12)
    perceptron = 12 * 48 + 48 + 48 * 12 + 12
    norms = 2 * 12
    assert count(variables) == embedding + 2 * (attention + perceptron + 2 * norms) + norms + 12 * 5


@pytest.mark.parametrize(("width", "heads", "expected"), [(192, 0, 3), (8, 0, 1), (8, 4, 4)])
def test_heads_share_the_width(width, heads, expected):
    assert models.create("vit_tiny", width=width, heads=heads).num_heads == expected


def test_heads_attend_on_their_own(small):
    """By hand: each head's weights are a softmax over the tokens of its part of the channels."""
    _, variables, _ = small
    params = jax.device_get(variables["params"]["block0"])
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    block = TransformerBlock(heads=2, dtype=jnp.float32)
    got = run(block.apply, {"params": params}, x)

    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * params[name]["scale"] + params[name]["bias"]

    def by_hand(x):
        y = norm("ln1", x)
        query, key, value = (linear(name, y) for name in ("query", "key", "value"))
        parts = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = np.einsum("btc,bsc->bts", query[..., part], key[..., part]) / np.sqrt(4)
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            parts.append(np.einsum("bts,bsc->btc", weights, value[..., part]))
        x = x + linear("output", np.concatenate(parts, -1))
        hidden = linear("mlp1", norm("ln2", x))
        hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
        return x + linear("mlp2", hidden)

    np.testing.assert_allclose(got, by_hand(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "patch_size", "grid"), [(32, 4, 8), (32, 5, 7), (3, 8, 1)])
def test_patches_cover_the_image(size, patch_size, grid):
    params = shapes(size, patch_size=patch_size, **SMALL)["params"]
    assert params["positions"].shape == (grid, grid, 8)
    assert params["embedding"]["kernel"].shape == (3 * patch_size**2, 8)


def test_each_patch_is_a_square_of_the_image():
    image = jnp.arange(6 * 6 * 3.0).reshape(1, 6, 6, 3)
    patches = models.vit._patches(image, 4)
    assert patches.shape == (1, 2, 2, 48)
    np.testing.assert_array_equal(patches[0, 0, 0], image[0, :4, :4].ravel())
    corner = np.zeros((4, 4, 3))
    corner[:2, :2] = image[0, 4:, 4:]
    np.testing.assert_array_equal(patches[0, 1, 1], corner.ravel())


def test_features_tell_images_and_places_apart(small):
    model, variables, images = small
    # The same patches at other places are another image.
    moved = np.roll(images, 4, axis=1)
    # In training as in evaluation each image is for itself.
    features, of_moved, alone = run(
        lambda: (
            model.apply(variables, images),
            model.apply(variables, moved),
            model.apply(variables, images[:1], train=True),
        )
    )
    assert (features.shape, features.dtype) == ((BATCH, K - 1), jnp.float32)
    assert np.ptp(features, axis=0).min() > 1e-3
    assert np.abs(of_moved - features).max() > 1e-3
    np.testing.assert_allclose(alone, features[:1], rtol=1e-5, atol=1e-6)


def test_features_in_half_precision(small):
    model, variables, images = small
    full = run(model.apply, variables, images)
    half = run(model.clone(dtype=jnp.bfloat16).apply, variables, images)
    assert half.dtype == jnp.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=0.1, atol=0.05)


def test_gradient_reaches_every_parameter(small):
    model, variables, images = small
    rows = jnp.asarray(simplex.dsimplex(K))

    def loss(params):
        features = model.apply({"params": params}, images, train=True)
        return losses.cross_entropy(features @ rows.T, jnp.arange(BATCH))

    gradients = run(jax.grad(loss), variables["params"])
    # A shift of all keys alike leaves every attention as it is.
    for block in ("block0", "block1"):
        key = gradients[block]["key"].pop("bias")
        np.testing.assert_allclose(key, 0, atol=1e-6)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))


def test_trained_saved_and_restored_without_statistics(small, tmp_path):
    """One step of HOC with itself as teacher; what it leaves is a checkpoint like any other."""
    model, variables, images = small
    program = Program(
        model=model,
        old_model=model,
        loss=methods.get("hoc").loss,
        image_options=ImageOptions(mean=(0.5,) * 3, std=(0.25,) * 3),
        batch_size=BATCH,
    )
    state, metrics = run(
        partial(train_step, program),
        program.init_state(variables),
        TaskData(OldModel(variables, jnp.asarray(True)), jnp.asarray(simplex.dsimplex(K))),
        images,
        jnp.arange(BATCH),
        jnp.zeros(BATCH, bool),
        jnp.asarray(0.1),
    )
    assert np.isfinite(metrics["loss"])
    assert jax.tree.structure(state.variables) == jax.tree.structure(variables)
    path = str(tmp_path / "model")
    checkpoints.save(path, state.variables, {})
    expected = models.expected_variables(MODEL, SIZE)
    _, restored = checkpoints.load(path, lambda _: expected)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state.variables))


def test_training_under_way_is_saved_and_restored(small, tmp_path):
    model, variables, _ = small
    image = ImageOptions(mean=(0.5,) * 3, std=(0.25,) * 3)
    program = Program(model, None, methods.get("simplex").loss, image, BATCH)
    state = program.init_state(variables)
    reporter = Reporter(Console(quiet=True))
    store = ProgressStore(str(tmp_path / "progress"), config.default().saving, reporter)
    store.save(state, Position(step=3, sums={"loss": 1.5}))
    store.wait()
    other = program.init_state(jax.tree.map(lambda leaf: leaf + 1, variables))
    restored, position = store.latest(other)
    assert (position.step, position.sums) == (3, {"loss": 1.5})
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, r"^backbone 'vit_tiny': heads=5: must divide width=192"),
        ({"heads": -1}, "heads=-1: must divide"),
        ({"width": 100, "heads": 3}, "heads=3: must divide width=100"),
        ({"depth": 0}, "depth=0: must be at least 1"),
        ({"patch_size": 0}, "patch_size=0: must be at least 1"),
        ({"stem": "small"}, "no option stem='small'; its options are width, depth, heads, patch_s"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.create("vit_tiny", **options)
