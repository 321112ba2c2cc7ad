"""Losses that keep what the old model says of new images."""

from typing import Annotated

import jax.numpy as jnp

from iamcl2r_jax import losses
from iamcl2r_jax.methods.inputs import COSINE, LINEAR, LossInputs, Method, Positive, Weight
from iamcl2r_jax.system.values import integer


def lwf(inputs: LossInputs, *, temperature: Positive = 2.0, distillation_weight: Weight = 1.0):
    """CE(W z, y) + λ · KD(W_old z, W_old o), over the classes that the old head knows.

    z are the new and o the old features, W_old the old model's frozen head: distillation without
    images of earlier classes, so it uses no memory. At a replacement W_old is the external model's
    own head, as the pre-trained networks of the source. Departs from it in one CE over all classes
    seen so far (there over the new task's classes), and in that W_old itself is not trained on.

    It is also the loss of FAN, whose stored features the map of `maps.fan` carries on; its
    source trains the network with these two terms and, as far as we recall, one on the features.

    Args:
      temperature: T, of both softmaxes.
      distillation_weight: λ.
    """
    classes = inputs.classes
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=classes.active)
    kd = losses.distillation(
        inputs.old_head_logits,
        inputs.old_logits,
        temperature=temperature,
        mask=inputs.known & inputs.has_old,
    )
    return ce + distillation_weight * kd, {"ce": ce, "distillation": kd}


LWF = Method(
    lwf,
    head=LINEAR,
    uses_old_model=True,
    uses_memory=False,
    reference="Li and Hoiem, Learning without Forgetting, TPAMI 2018, arXiv:1606.09282",
)
FAN = Method(
    lwf,
    head=LINEAR,
    uses_old_model=True,
    uses_memory=False,
    adapts=True,
    reference="Iscen et al., Memory-Efficient Incremental Learning Through Feature Adaptation, "
    "ECCV 2020, arXiv:2004.00713",
)


def lucir(
    inputs: LossInputs,
    *,
    temperature: Positive = 0.05,
    base_weight: Weight = 5.0,
    ranking_weight: Weight = 1.0,
    margin: float = 0.5,
    num_negatives: Annotated[int, integer(1)] = 2,
):
    """L_ce + λ · mean (1 - cos(f, o)) + w · L_mr, λ = base √(old/new).

    L_ce is the normalised softmax over the classes seen so far; L_mr the margin ranking of memory
    samples against the current task's classes, see `losses.margin_ranking_loss`; old and new are
    the numbers of classes of earlier tasks and of the current one. In the first task L_ce alone.
    Departs from the source in a fixed temperature (there a learned scale), in random rows for new
    classes (there imprinted by their mean features), in random memory (there herding) and in
    schedule (160 epochs, learning rate 0.1 ÷10 at 80 and 120).

    Args:
      temperature: of L_ce; not of the source, but that of CVS.
      base_weight: base of λ.
      ranking_weight: w.
      margin: of L_mr.
      num_negatives: classes that each memory sample is ranked against.
    """
    classes = inputs.classes
    softmax = inputs.normalized_softmax(temperature)
    fd = losses.feature_distillation(inputs.features, inputs.old_features)
    weight = base_weight * jnp.sqrt(jnp.sum(classes.earlier) / jnp.sum(classes.new))
    ranking = losses.margin_ranking_loss(
        inputs.logits,
        inputs.labels,
        classes.new,
        margin=margin,
        num_negatives=num_negatives,
        weight=inputs.from_memory,
    )
    total = softmax + weight * fd + ranking_weight * ranking
    return total, {"ce": softmax, "fd": fd, "ranking": ranking}


LUCIR = Method(
    lucir,
    head=COSINE,
    uses_old_model=True,
    reference="Hou et al., Learning a Unified Classifier Incrementally via Rebalancing, CVPR 2019",
)
