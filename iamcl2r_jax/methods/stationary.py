"""Losses against the fixed d-Simplex classifier."""

from typing import Annotated

import jax.numpy as jnp

from iamcl2r_jax import losses
from iamcl2r_jax.methods.inputs import LossInputs, Method, Positive, Weight
from iamcl2r_jax.system.values import number

_STATIONARY = "Biondi et al., Stationary Representations, CVPR 2024, arXiv:2405.02581"


def hoc(
    inputs: LossInputs,
    *,
    ce_weight: Annotated[float, number("[0, 1]")] = 0.1,
    mu: Positive = 10.0,
    exclude_same_class: bool = False,
):
    """λ CE(W z, slot(y)) + (1-λ) L_HOC.

    Without an old model (a first task from scratch) it is CE alone.

    Args:
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


HOC = Method(hoc, uses_old_model=True, reference=_STATIONARY)


def simplex(inputs: LossInputs):
    """CE(W z, slot(y)) with the fixed d-Simplex classifier W, and nothing else.

    It is also the loss of CoReS, which departs from its source only in schedule and backbone (there
    100 epochs of SENet-18, learning rate ÷10 at 70) and, where the protocol replaces the model, in
    starting from the external one.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    return ce, {"ce": ce}


SIMPLEX = Method(simplex, uses_old_model=False, reference=_STATIONARY)
CORES = Method(
    simplex,
    uses_old_model=False,
    uses_memory=False,
    retrains=True,
    reference="Biondi et al., CoReS: Compatible Representations via Stationarity, TPAMI 2023, "
    "arXiv:2111.07632",
)


def simplex_fd(inputs: LossInputs, *, base_weight: Weight = 5.0):
    """CE(W z, slot(y)) + w · mean over memory samples of (1 - cos(f, o)), w = base √(new/old).

    new and old are the numbers of classes of the current and of earlier tasks. In the first task
    there is no memory, and CE alone. Departs from the source in backbone, schedule and first task
    (there ResNet-32, 70 epochs at learning rate 0.1 ÷10 at 49 and 64, 50 classes).

    Args:
      base_weight: base; 5 in the configuration of the source.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    fd = losses.feature_distillation(
        inputs.features, inputs.old_features, weight=inputs.from_memory & inputs.has_old
    )
    classes = inputs.classes
    num_new, num_earlier = jnp.sum(classes.new), jnp.sum(classes.earlier)
    weight = base_weight * jnp.sqrt(num_new / jnp.maximum(num_earlier, 1))
    return ce + weight * fd, {"ce": ce, "fd": fd}


SIMPLEX_FD = Method(
    simplex_fd,
    uses_old_model=True,
    reference="Biondi et al., CL²R: Compatible Lifelong Learning Representations, ACM TOMM "
    "2022, arXiv:2211.09032",
)
