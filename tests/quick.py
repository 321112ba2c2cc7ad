"""Variables and compiled functions that take the tests little time."""

import jax
import jax.numpy as jnp
import numpy as np


def variables_of(model, image_size=32):
    """Random variables without the compilation that `init` takes."""
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, image_size, image_size, 3))
    )
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    # In (0, 1), since variances are among them; small, so that deep networks stay in range.
    return jax.tree.unflatten(tree, [rng.uniform(0.01, 0.2, x.shape).astype("f4") for x in leaves])


def initial_variables(shapes, seed=0):
    """Random variables of these shapes, of the size that initialisers draw."""
    rng = np.random.default_rng(seed)
    constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}

    def initial(path, leaf):
        constant = constants.get(path[-1].key)
        values = rng.normal(size=leaf.shape) / 8 if constant is None else constant
        return np.broadcast_to(np.asarray(values, np.float32), leaf.shape)

    return jax.tree_util.tree_map_with_path(initial, shapes)


def run(function, *args):
    """Calls a function compiled without optimisation, which takes a third of the time."""
    compiled = jax.jit(function).lower(*args)
    return compiled.compile(compiler_options={"xla_backend_optimization_level": 0})(*args)
