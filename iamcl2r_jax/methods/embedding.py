"""Losses that hold features near the stored centres of their classes."""

import jax.numpy as jnp

from iamcl2r_jax import losses
from iamcl2r_jax.methods.inputs import COSINE, LossInputs, Method, Positive, Weight


def cvs(
    inputs: LossInputs,
    *,
    temperature: Positive = 0.05,
    triplet_weight: Weight = 10.0,
    margin: float = 0.1,
    centre_weight: Weight = 1.0,
):
    """L_c + α L_m + β L_d.

    L_c is the normalised softmax over the classes seen so far, L_m the triplet loss against the old
    model's features, L_d the mean of ‖c_y - f‖² over samples whose class has a stored centre; see
    `losses.normalized_softmax`, `triplet_loss` and `centre_loss`. L_m is zero without an old model,
    L_d in the first task. Departs from the source in memory (there herding, 2,000 images in all),
    batch (16) and schedule (256 epochs with warm restarts), and in that L_m reads the external
    model's features at a replacement, while the centres stay those of the stored galleries.

    Args:
      temperature: of L_c.
      triplet_weight: α.
      margin: of L_m.
      centre_weight: β.
    """
    classes = inputs.classes
    softmax = inputs.normalized_softmax(temperature)
    triplet = losses.triplet_loss(
        inputs.features, inputs.old_features, inputs.labels, margin=margin
    )
    triplet = jnp.where(inputs.has_old, triplet, 0.0)
    centre = losses.centre_loss(
        inputs.features, inputs.labels, classes.centres, weight=classes.earlier[inputs.labels]
    )
    total = softmax + triplet_weight * triplet + centre_weight * centre
    return total, {"ce": softmax, "triplet": triplet, "centre": centre}


CVS = Method(
    cvs,
    head=COSINE,
    uses_old_model=True,
    uses_centres=True,
    reference="Wan et al., Continual Learning for Visual Search with Backward Consistent "
    "Feature Embedding, CVPR 2022, arXiv:2205.13384",
)


def lce_er(
    inputs: LossInputs,
    *,
    scale: Positive = 16.0,
    angular_margin: float = 0.1,
    alignment_weight: Weight = 100.0,
    boundary_weight: Weight = 1.0,
):
    """L_ce + a · mean over earlier classes of ‖ŵ_y - ĉ_y‖²/D + b · mean max(b_y - cos(f, c_y), 0).

    L_ce is the normalised softmax over the classes seen so far with ArcFace's angular margin, ŵ are
    the unit rows of the head, ĉ the unit centres of earlier classes, b_y the smallest cosine of a
    training feature with its centre; the last mean is over samples of earlier classes, which replay
    provides. In the first task L_ce alone. Departs from the source in leaving out its optional
    transformations between the spaces, and in taking the centre of each class by the model that
    first learned it (there all by one old model): that is where galleries lie.

    Args:
      scale: of the cosines in L_ce.
      angular_margin: of L_ce, in radians.
      alignment_weight: a.
      boundary_weight: b.
    """
    classes = inputs.classes
    softmax = inputs.normalized_softmax(1 / scale, angular_margin=angular_margin)
    num_rows, num_features = inputs.rows.shape
    alignment = losses.centre_loss(
        inputs.rows,
        jnp.arange(num_rows),
        losses.normalize(classes.centres),
        weight=classes.earlier,
    )
    alignment /= num_features
    boundary = losses.boundary_loss(
        inputs.features,
        inputs.labels,
        classes.centres,
        classes.boundaries,
        weight=classes.earlier[inputs.labels],
    )
    total = softmax + alignment_weight * alignment + boundary_weight * boundary
    return total, {"ce": softmax, "alignment": alignment, "boundary": boundary}


LCE_ER = Method(
    lce_er,
    head=COSINE,
    uses_old_model=False,
    uses_centres=True,
    reference="Meng et al., Learning Compatible Embeddings, ICCV 2021, arXiv:2108.01958; "
    "with replay",
)
