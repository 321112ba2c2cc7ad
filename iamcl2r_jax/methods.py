"""What each compared system trains with.

A method is a loss: a function of `LossInputs` and of its own keyword options, whose defaults are
the source's. Adding one takes such a function and a line in `METHODS`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from iamcl2r_jax import losses


@flax.struct.dataclass
class LossInputs:
    """What a loss may look at, for one batch.

    Attributes:
      features: of the model in training, unnormalised, [B, D].
      old_features: of the frozen old model for the same images, [B, D]; never differentiated. None
        for a method that uses no old model.
      has_old: bool scalar, false while there is no old model (a first task from scratch).
      labels: row of the classifier that belongs to each image's class, int32 [B].
      from_memory: whether each image was drawn from the episodic memory, bool [B].
      logits: of the classifier for `features`, [B, K].
    """

    features: jax.Array
    old_features: jax.Array | None
    has_old: jax.Array
    labels: jax.Array
    from_memory: jax.Array
    logits: jax.Array


Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Method:
    """One compared system.

    Attributes:
      loss: maps `LossInputs` and options to the total loss and its named terms (scalars).
      uses_old_model: whether the loss reads `old_features`.
      reference: where it was published.
    """

    loss: Loss
    uses_old_model: bool
    reference: str


def hoc(inputs: LossInputs, *, ce_weight=0.1, mu=10.0, exclude_same_class=False):
    """λ CE(W z, slot(y)) + (1-λ) L_HOC.

    Without an old model (a first task from scratch) it is CE alone.

    Args:
      inputs: see `LossInputs`.
      ce_weight: λ in [0, 1].
      mu: inverse temperature μ of `losses.hoc_loss`.
      exclude_same_class: see `losses.hoc_loss`.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    contrast = losses.hoc_loss(
        inputs.features,
        inputs.old_features,
        inputs.labels,
        mu=mu,
        exclude_same_class=exclude_same_class,
    )
    ce_weight = jnp.where(inputs.has_old, ce_weight, 1.0)
    return ce_weight * ce + (1 - ce_weight) * contrast, {"ce": ce, "hoc": contrast}


def simplex(inputs: LossInputs):
    """CE(W z, slot(y)) with the fixed d-Simplex classifier W, and nothing else."""
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    return ce, {"ce": ce}


_STATIONARY = "Biondi et al., Stationary Representations, CVPR 2024, arXiv:2405.02581"

METHODS: dict[str, Method] = {
    "hoc": Method(hoc, uses_old_model=True, reference=_STATIONARY),
    "simplex": Method(simplex, uses_old_model=False, reference=_STATIONARY),
}


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; there are {', '.join(METHODS)}")
    return METHODS[name]


def default_options(name: str) -> dict[str, Any]:
    """The options of a method's loss with their defaults."""
    parameters = inspect.signature(get(name).loss).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
