"""The convolution's two lowerings, max-pooling, and the residual network."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from iamcl2r_jax import models
from iamcl2r_jax.models.conv import conv2d, matmul_conv, native_conv
from iamcl2r_jax.models.pooling import max_pool

# Height, width, channels, kernel size, stride, padding of ResNet-18's convolutions on 32x32 images.
# Only the stem's three channels matter; those of the other layers are cut down.
IMAGENET_STEM = [
    (32, 32, 3, 7, 2, 3),
    (8, 8, 5, 3, 1, 1),
    (8, 8, 5, 3, 2, 1),
    (8, 8, 5, 1, 2, 0),
    (4, 4, 5, 3, 1, 1),
    (4, 4, 5, 3, 2, 1),
    (4, 4, 5, 1, 2, 0),
    (2, 2, 5, 3, 1, 1),
    (2, 2, 5, 3, 2, 1),
    (2, 2, 5, 1, 2, 0),
    (1, 1, 5, 3, 1, 1),
]
SMALL_STEM = [
    (32, 32, 3, 3, 1, 1),
    (32, 32, 5, 3, 1, 1),
    (32, 32, 5, 3, 2, 1),
    (32, 32, 5, 1, 2, 0),
    (16, 16, 5, 3, 1, 1),
    (16, 16, 5, 3, 2, 1),
    (16, 16, 5, 1, 2, 0),
    *IMAGENET_STEM[1:5],
]
ODD = [
    (7, 5, 5, 3, 2, 1),
    (5, 9, 3, 7, 2, 3),
    (11, 10, 4, 5, 3, 2),
    (2, 3, 5, 3, 1, 1),
    (1, 4, 6, 3, 1, 1),
    (3, 1, 6, 5, 2, 2),
    (6, 6, 5, 1, 1, 0),
    (9, 9, 1, 3, 1, 0),
    (1, 1, 5, 3, 2, 2),  # the outputs read the first and the last tap, and none the middle one
    (1, 1, 5, 1, 2, 1),  # the outputs read padding alone
]
# In double precision rounding cannot hide an error; in single it must stay as small as it is.
CASES = [(case, np.float32, 2e-6) for case in dict.fromkeys(IMAGENET_STEM + SMALL_STEM)]
CASES += [(case, np.float64, 1e-14) for case in ODD]


def _arguments(case, dtype, batch=2, features=6):
    height, width, channels, kernel_size, _, _ = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, channels)).astype(dtype)
    kernel = rng.normal(size=(kernel_size, kernel_size, channels, features)).astype(dtype)
    return x, kernel


def _value_and_gradients(function, *arguments):
    """The value, and gradients for a cotangent in which no two entries are alike."""
    out, pull_back = jax.vjp(function, *arguments)
    return out, *pull_back(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


@pytest.mark.parametrize(("case", "dtype", "tolerance"), CASES)
def test_both_lowerings_agree_in_values_and_gradients(case, dtype, tolerance):
    *_, stride, padding = case

    @jax.jit
    def both(*arguments):
        return [
            _value_and_gradients(partial(conv, stride=stride, padding=padding), *arguments)
            for conv in (conv2d, native_conv)
        ]

    with jax.enable_x64(dtype == np.float64):
        for got, expected in zip(*both(*_arguments(case, dtype)), strict=True):
            assert (got.shape, got.dtype) == (expected.shape, dtype)
            # Sums of many terms: rounding is relative to the largest.
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", [(6, 6, 3, 3, 2, 1), (7, 5, 5, 3, 1, 1), (2, 2, 5, 3, 1, 1)])
def test_convolution_is_scipys_correlation(case):
    *_, stride, padding = case
    x, kernel = _arguments(case, np.float32)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    expected = np.stack(
        [
            np.stack(
                [
                    sum(
                        scipy.signal.correlate2d(image[..., c], kernel[..., c, f], mode="valid")
                        for c in range(x.shape[-1])
                    )[::stride, ::stride]
                    for f in range(kernel.shape[-1])
                ],
                axis=-1,
            )
            for image in np.pad(x, pads).astype(np.float64)
        ]
    )
    for conv in (conv2d, matmul_conv, native_conv):
        got = conv(x, kernel, stride=stride, padding=padding)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stem", "cases"), [("imagenet", IMAGENET_STEM), ("small", SMALL_STEM)])
def test_the_cases_are_those_of_resnet18(stem, cases):
    found = set()

    def record(next_function, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.Conv) and context.method_name == "__call__":
            _, height, width, channels = args[0].shape
            case = (height, width, channels if channels == 3 else 5)
            found.add((*case, layer.kernel_size[0], layer.strides, layer.padding))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        _shapes(models.create("resnet18", 15, width=8, stem=stem))
    assert found == set(cases)


def _gradients(x, kernel):
    return jax.grad(lambda *a: conv2d(*a, padding=1).sum(), argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("function", [lambda x, k: conv2d(x, k, padding=1), _gradients])
def test_the_platform_picks_the_lowering(function):
    traced = jax.jit(function).trace(*_arguments((8, 8, 5, 3, 1, 1), np.float32))
    on_cpu = traced.lower(lowering_platforms=("cpu",))
    assert "stablehlo.dot_general" in on_cpu.as_text()
    assert "stablehlo.convolution" not in on_cpu.as_text()
    for platform in ("cuda", "tpu"):
        elsewhere = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in elsewhere
        assert "stablehlo.dot_general" not in elsewhere


@pytest.mark.parametrize("case", [(1, 1, 5, 3, 1, 1), (2, 2, 5, 3, 2, 1), (2, 2, 5, 1, 2, 0)])
def test_a_single_output_is_one_product_of_what_it_reads_on_every_platform(case):
    x, kernel = _arguments(case, np.float32)
    *_, stride, padding = case

    def gradients(x, kernel):
        conv = partial(conv2d, stride=stride, padding=padding)
        return jax.grad(lambda *a: conv(*a).sum(), argnums=(0, 1))(x, kernel)

    traced = jax.jit(partial(conv2d, stride=stride, padding=padding)).trace(x, kernel)
    backward = jax.jit(gradients).trace(x, kernel)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == 1
        for lowered in (text, backward.lower(lowering_platforms=(platform,)).as_text()):
            assert "stablehlo.convolution" not in lowered
            assert "stablehlo.gather" not in lowered
            assert "stablehlo.scatter" not in lowered


def test_what_is_compiled_on_cpu_holds_no_convolution():
    arguments = _arguments((8, 8, 5, 3, 1, 1), np.float32)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        compiled = {
            conv: jax.jit(lambda x, k, conv=conv: conv(x, k, stride=1, padding=1))
            .lower(*arguments)
            .compile()
            .as_text()
            for conv in (conv2d, native_conv)
        }
    assert " convolution(" in compiled[native_conv]
    assert " convolution(" not in compiled[conv2d]
    assert " conditional(" not in compiled[conv2d]


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (1, 1, 0)]
)
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (3, 3)])
def test_max_pool_is_flaxs(size, window, stride, padding):
    # All different, so that no gradient is shared; negative too, so that padding must not win.
    values = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3) - 500.0
    x = values.reshape(2, *size, 3).astype(np.float32)

    def flaxs(x):
        pads = ((padding, padding),) * 2
        return nn.max_pool(x, (window, window), (stride, stride), pads)

    def ours(x):
        return max_pool(x, window=window, stride=stride, padding=padding)

    both = jax.jit(lambda x: [_value_and_gradients(pool, x) for pool in (ours, flaxs)])
    (got, got_gradient), (expected, expected_gradient) = both(x)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got_gradient, expected_gradient, rtol=1e-6, atol=1e-6)


def test_max_pool_shares_the_gradient_among_ties():
    gradient = jax.grad(lambda x: max_pool(x, window=3, stride=2, padding=1).sum())
    np.testing.assert_allclose(gradient(jnp.zeros((1, 16, 16, 2))).sum(), 8 * 8 * 2)


# --- Residual networks --------------------------------------------------------------------------


def _shapes(model, size=32):
    """Names, shapes and dtypes of the variables, nothing computed."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)["params"]))


@pytest.fixture(scope="module")
def resnet():
    """The first stages of a narrow ResNet-18, its variables before and after a step, images."""
    model = models.BACKBONES["resnet18"](num_features=15, width=8, stage_sizes=(1, 1))

    @jax.jit
    def first_step(key):
        images = 0.5 + jax.random.normal(key, (4, 32, 32, 3))
        variables = model.init(key, images)
        _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return variables, updates, images

    # Of this kind of key the compilation takes a fraction of the time.
    variables, updates, images = first_step(jax.random.key(0, impl="rbg"))
    return model, variables["params"], variables["batch_stats"], updates["batch_stats"], images


def test_resnet18_has_torchvisions_number_of_parameters():
    # torchvision's ResNet-18 has 11,689,512, of which 513,000 are its classifier.
    assert _num_parameters(models.create("resnet18")) == 11_176_512 + 512 * 1023
    assert _num_parameters(models.create("resnet18", 255)) == 11_176_512 + 512 * 255


@pytest.mark.parametrize("dtype", [jnp.float32, "float32", "bfloat16"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("size", [32, 48])
def test_features(stem, size, dtype):
    model = models.create("resnet18", 31, width=4, stem=stem, dtype=dtype)
    variables = _shapes(model, size)
    images = jax.ShapeDtypeStruct((5, size, size, 3), jnp.float32)
    features = jax.eval_shape(model.apply, variables, images)
    assert (features.shape, features.dtype) == ((5, 31), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("stem", "kernel", "map_size"), [("imagenet", (7, 7, 3, 4), 1), ("small", (3, 3, 3, 4), 4)]
)
def test_the_stem_decides_the_size_of_the_maps(stem, kernel, map_size):
    model = models.create("resnet18", 31, width=4, stem=stem)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = _shapes(model)
    assert variables["params"]["conv1"]["kernel"].shape == kernel
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, capture_intermediates=True), variables, images
    )
    last = state["intermediates"]["layer4_1"]["__call__"][0]
    assert last.shape == (2, map_size, map_size, 32)


@pytest.mark.parametrize("width", [1, 8, 64])
def test_width_is_the_channels_of_the_first_stage(width):
    params = _shapes(models.create("resnet18", 31, width=width))["params"]
    for stage in range(4):
        channels = width * 2**stage
        assert params[f"layer{stage + 1}_1"]["conv2"]["kernel"].shape == (3, 3, channels, channels)


def test_in_evaluation_each_image_is_for_itself(resnet):
    model, params, _, batch_stats, images = resnet
    variables = {"params": params, "batch_stats": batch_stats}

    @jax.jit
    def together_and_alone(images):
        together, after = model.apply(variables, images, mutable=["batch_stats"])
        alone = jax.lax.map(lambda image: model.apply(variables, image[None])[0], images)
        return together, after["batch_stats"], alone

    together, after, alone = together_and_alone(images)
    jax.tree.map(np.testing.assert_array_equal, after, batch_stats)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_in_training_features_depend_on_the_batch(resnet):
    model, params, before, _, images = resnet
    variables = {"params": params, "batch_stats": before}

    @jax.jit
    def apply(images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    first = apply(images)[0]
    other = apply(images.at[1:].multiply(3.0))[0]
    assert np.abs(first - other).max() > 0.01


def test_training_moves_the_statistics_by_a_tenth_of_the_batchs(resnet):
    _, params, before, after, images = resnet
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved))
    maps = native_conv(images, params["conv1"]["kernel"], stride=2, padding=3)
    statistics = after["bn1"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * maps.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    # The biased variance, unlike PyTorch.
    expected = 0.9 + 0.1 * maps.var((0, 1, 2))
    np.testing.assert_allclose(statistics["var"], expected, rtol=1e-4)


def test_initial_parameters_are_pytorchs(resnet):
    _, params, _, _, _ = resnet
    kernel = params["layer2_0"]["conv2"]["kernel"]  # 3 x 3 x 16 x 16
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 16)), rtol=0.05)
    projection = np.abs(params["projection"]["kernel"])  # 16 x 15
    bound = 1 / np.sqrt(16)
    assert 0.95 * bound < projection.max() <= bound
    np.testing.assert_allclose(projection.mean(), bound / 2, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, r"^backbone='resnet19' is unknown; there are resnet18\b"),
        ("resnet18", {"depth": 3}, r"^backbone 'resnet18' has no option depth=3; its options are "),
        ("resnet18", {"stage_sizes": (1,)}, r"has no option stage_sizes=\(1,\); .*width, stem"),
        ("resnet18", {"parent": None}, r"has no option parent=None"),
        ("resnet18", {"stem": "large"}, r"stem='large': must be one of imagenet, small$"),
        ("resnet18", {"width": 0}, r"^backbone 'resnet18': width=0: must be at least 1$"),
        ("resnet18", {"num_features": 0}, r"num_features=0: must be at least 1$"),
        ("senet18", {"dtype": "half"}, r"dtype='half': must be one of float32, bfloat16, float64$"),
        ("regnety_400mf", {"dtype": "int32"}, r"dtype='int32': must be one of float32, bf"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        models.create(name, **options)
    assert "\n" not in str(error.value)
