"""Grouped convolution, and the architectures behind the names in the registry."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import run, variables_of

from iamcl2r_jax import models
from iamcl2r_jax.models.conv import conv2d, conv_layer, grouped_matmul_conv, native_conv

LOWERINGS = (grouped_matmul_conv, native_conv, conv2d)


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "channels", "features", "groups", "kernel_size", "stride", "padding"),
    [
        ((8, 8), 8, 8, 2, 3, 1, 1),
        ((8, 8), 8, 8, 8, 3, 1, 1),  # depthwise
        ((7, 6), 6, 12, 3, 3, 2, 1),
        ((2, 2), 8, 8, 4, 3, 1, 1),  # taps that read only padding
        ((1, 1), 4, 8, 2, 3, 2, 1),
        ((9, 5), 4, 4, 2, 5, 1, 0),
    ],
)
def test_grouped_convolution(size, channels, features, groups, kernel_size, stride, padding):
    x = random(0, 2, *size, channels)
    kernel = random(1, kernel_size, kernel_size, channels // groups, features)
    options = {"stride": stride, "padding": padding}

    def of_each_group(x, kernel):
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([native_conv(*part, **options) for part in parts], -1)

    def values_and_gradients(x, kernel):
        results = []
        for function in (of_each_group, *(partial(f, groups=groups, **options) for f in LOWERINGS)):
            value, pullback = jax.vjp(function, x, kernel)
            results.append((value, *pullback(random(2, *value.shape))))
        return results

    expected, *actual = run(values_and_gradients, x, kernel)
    for arrays in actual:
        for a, b in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "features"), [(6, 8), (8, 6)])
def test_groups_must_divide_the_channels(channels, features):
    with pytest.raises(ValueError, match=rf"groups=4: .* {channels} channels .* {features} of the"):
        conv2d(random(0, 1, 4, 4, channels), random(1, 3, 3, channels // 4, features), groups=4)


def test_grouped_kernels_start_with_the_spread_of_their_own_group():
    # He: variance 2 / fan_out, where an input reaches 3 x 3 x 64/4 outputs.
    x = jnp.zeros((1, 4, 4, 64))
    kernel = conv_layer(64, groups=4).init(jax.random.key(0), x)["params"]["kernel"]
    assert kernel.shape == (3, 3, 16, 64)
    np.testing.assert_allclose(np.var(kernel), 2 / (9 * 16), rtol=0.05)


@pytest.mark.parametrize(
    ("name", "trunk_channels", "parameters"),
    [
        # The published totals (torchvision; pytorch-cifar) less their classifiers.
        ("resnet18", 512, 11_689_512 - 513_000),
        ("resnet34", 512, 21_797_672 - 513_000),
        ("resnet50", 2048, 25_557_032 - 2_049_000),
        ("senet18", 512, 11_260_354 - 5_130),
        ("regnety_400mf", 384, 5_714_362 - 3_850),
    ],
)
def test_number_of_parameters(name, trunk_channels, parameters):
    model = models.create(name, num_features=7)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert shapes["projection"]["kernel"].shape == (trunk_channels, 7)
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    assert sum(sizes) == parameters + 7 * trunk_channels


@pytest.mark.parametrize("name", [n for n in models.BACKBONES if n != "vit_tiny"])
def test_width_scales_every_channel(name):
    def shapes(**options):
        model = models.create(name, num_features=7, **options)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        del params["conv1"]["kernel"]  # three colours at any width
        return [leaf.shape for leaf in jax.tree.leaves(params)]

    width = models.create(name).width
    assert shapes() == shapes(width=width)
    for wide, narrow in zip(shapes(), shapes(width=width // 2), strict=True):
        for a, b in zip(wide, narrow, strict=True):
            assert b in (a / 2, a) or (a, b) == (7, 7)
    assert sum(map(np.prod, shapes(width=width // 2))) < 0.27 * sum(map(np.prod, shapes()))


@pytest.mark.parametrize("name", ["senet18", "regnety_400mf", "resnet50"])
def test_features(name):
    model = models.create(name, num_features=5, width=8)
    features = run(model.apply, variables_of(model), random(3, 3, 16, 16, 3))
    assert features.shape == (3, 5)
    assert features.dtype == jnp.float32
    assert np.ptp(features, axis=0).min() > 0  # images are told apart


def test_features_in_half_precision():
    images = random(3, 3, 16, 16, 3)
    full, half = (
        run(model.apply, variables_of(model), images)
        for dtype in (jnp.float32, jnp.bfloat16)
        for model in [models.create("senet18", 5, width=8, dtype=dtype)]
    )
    assert half.dtype == jnp.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=0.1)


@pytest.mark.parametrize("name", ["senet18", "regnety_400mf", "resnet50"])
def test_training_updates_every_statistic(name):
    model = models.create(name, num_features=5, width=8)
    variables = variables_of(model)

    def train(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    features, updated = jax.eval_shape(train, variables, jnp.zeros((2, 16, 16, 3)))
    assert features.shape == (2, 5)
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regnety_400mf", {"width": 6}, "width=6: must be a multiple of 4"),
        ("regnety_400mf", {"width": 0}, "width=0: must be at least 1"),
        ("senet18", {"width": 0}, "width=0: must be at least 1"),
        ("senet18", {"stem": "small"}, "no option stem='small'; its options are width, dtype"),
        ("resnet50", {"block": None}, "no option block=None; its options are width, stem, dtype"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)
