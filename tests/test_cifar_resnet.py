"""The residual networks for small images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import run, variables_of

from iamcl2r_jax import losses, models, simplex
from iamcl2r_jax.models.resnet import CifarResNet, PaddedBlock

K, SIZE = 8, 8


def shapes(name, **options):
    model = models.create(name, **options)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


# Of widely used implementations, with a classifier of 10 classes; 0.27M and 0.46M in the paper.
@pytest.mark.parametrize(
    ("name", "published", "blocks"), [("resnet20", 269_722, 3), ("resnet32", 464_154, 5)]
)
def test_number_of_parameters_and_layers(name, published, blocks):
    params = shapes(name, num_features=7)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == published - (64 * 10 + 10) + 64 * 7
    layers = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(blocks)]
    assert params.keys() == {"conv1", "bn1", "projection", *layers}
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 16)
    for layer in layers:
        assert params[layer].keys() == {"conv1", "bn1", "conv2", "bn2"}  # no shortcut's


@pytest.mark.parametrize("width", [4, 16])
def test_width_is_the_channels_of_the_first_stage(width):
    variables = shapes("resnet20", width=width)
    for stage in range(3):
        kernel = variables["params"][f"layer{stage + 1}_2"]["conv2"]["kernel"]
        assert kernel.shape == (3, 3, width * 2**stage, width * 2**stage)


def test_three_maps_of_32_16_and_8():
    model = models.create("resnet20", 5, width=4)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, capture_intermediates=True),
        shapes("resnet20", width=4, num_features=5),
        images,
    )
    for stage, size in enumerate((32, 16, 8)):
        last = state["intermediates"][f"layer{stage + 1}_2"]["__call__"][0]
        assert last.shape == (2, size, size, 4 * 2**stage)


def test_shortcut_is_the_input_and_zeros():
    block = PaddedBlock(features=6, stride=2, conv=None, norm=None)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)
    shortcut = block.apply({}, x, method="shortcut")
    assert shortcut.shape == (2, 3, 2, 6)
    np.testing.assert_array_equal(shortcut[..., :3], x[:, ::2, ::2])
    assert not shortcut[..., 3:].any()


def test_gradient_reaches_every_parameter_and_training_every_statistic():
    """A block for each stage: the deeper ones of the registry repeat these."""
    model = CifarResNet(block=PaddedBlock, stage_sizes=(1, 1, 1), num_features=K - 1, width=4)
    variables = variables_of(model, SIZE)
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    rows = jnp.asarray(simplex.dsimplex(K))

    def step(params, images):
        def loss(params):
            given = variables | {"params": params}
            features, updates = model.apply(given, images, train=True, mutable=["batch_stats"])
            return losses.cross_entropy(features @ rows.T, jnp.arange(4)), updates

        gradients, updates = jax.grad(loss, has_aux=True)(params)
        return gradients, updates, model.apply(variables, images)

    gradients, updates, features = run(step, variables["params"], images)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), updates["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    assert (features.shape, features.dtype) == ((4, K - 1), jnp.float32)
    assert np.ptp(features, axis=0).min() > 0
