"""Optimisers: an optax transformation of gradients into the direction of a step, one a function.

A step is p <- p - learning_rate * direction. The learning rate is no option: it changes with every
epoch, and a train program takes it as an argument. Adding an optimiser takes such a function and a
line of `OPTIMIZERS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import jax
import optax

from iamcl2r_jax.system.values import number

Decay = Annotated[float, number("[0, 1)")]  # of a running mean
Weight = Annotated[float, number("[0, 1e6]")]

_matrices = partial(jax.tree.map, lambda p: p.ndim > 1)  # biases and scales do not decay


def sgd(*, momentum: Decay = 0.9, weight_decay: Weight = 5e-4) -> optax.GradientTransformation:
    """PyTorch's SGD: v <- momentum v + (g + weight_decay p), and v is the direction.

    Parameters of fewer than two dimensions do not decay.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_matrices), optax.trace(decay=momentum)
    )


def adamw(
    *,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Annotated[float, number("(0, 1]")] = 1e-8,
    weight_decay: Weight = 1e-2,
) -> optax.GradientTransformation:
    """AdamW: m / (sqrt(v) + eps) + weight_decay p, of the bias-corrected moments m and v.

    Each step keeps the shares b1 of m and b2 of v; parameters of fewer than two dimensions do not
    decay.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay, mask=_matrices)
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": sgd, "adamw": adamw}
