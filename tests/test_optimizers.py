"""The optimisers' directions, against optax's and PyTorch's updates as they are published."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iamcl2r_jax.methods.optimizers import OPTIMIZERS

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -1.0])}
GRADIENTS = [jax.tree.map(lambda p, s=s: jnp.sin(s + p), PARAMS) for s in range(4)]
RATES = (0.1, 0.05, 0.02, 0.01)


def trained(optimizer):
    """The parameters after four steps, as `train_step` takes them."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        direction, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, direction)
    return params


def test_adamw_is_optax_with_the_learning_rate_outside():
    params, state = PARAMS, None
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        mask = {"kernel": True, "bias": False}
        whole = optax.adamw(rate, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=mask)
        state = state or whole.init(params)
        updates, state = whole.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    ours = trained(OPTIMIZERS["adamw"](b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, params)


def test_sgd_is_the_published_recursion():
    for name, decay in (("kernel", 0.3), ("bias", 0.0)):
        p, v = np.asarray(PARAMS[name]), 0.0
        for gradients, rate in zip(GRADIENTS, RATES, strict=True):
            v = 0.8 * v + (np.asarray(gradients[name]) + decay * p)
            p = p - rate * v
        ours = trained(OPTIMIZERS["sgd"](momentum=0.8, weight_decay=0.3))[name]
        np.testing.assert_allclose(ours, p, rtol=1e-6)
