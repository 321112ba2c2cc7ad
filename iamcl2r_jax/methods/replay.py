"""Losses against a learnable linear classifier, with replay of earlier images."""

from iamcl2r_jax import losses
from iamcl2r_jax.methods.inputs import LINEAR, LossInputs, Method, Weight


def er(inputs: LossInputs):
    """CE(W z, y) over the classes seen so far, W learnable: experience replay.

    Nothing ties the new model to the old one. The rows of new classes are random; at a replacement
    all are.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=inputs.classes.active)
    return ce, {"ce": ce}


ER = Method(
    er,
    head=LINEAR,
    uses_old_model=False,
    reference="Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, "
    "arXiv:1902.10486",
)


def bct_er(inputs: LossInputs, *, influence_weight: Weight = 1.0):
    """CE(W z, y) + α · mean over samples of known classes of CE(W_old z, y).

    W_old is the old model's frozen head and z the *new* feature: the influence loss of BCT, with
    replay. As tasks share no class, only memory samples are of known classes; right after a
    replacement no sample is, since W_old knows external classes only. The source has no memory;
    there the new model's training set contains the old one's.

    Args:
      influence_weight: α.
    """
    classes = inputs.classes
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=classes.active)
    influence = losses.cross_entropy(
        inputs.old_head_logits,
        inputs.labels,
        mask=inputs.known,
        weight=inputs.known[inputs.labels] & inputs.has_old,
    )
    return ce + influence_weight * influence, {"ce": ce, "influence": influence}


BCT_ER = Method(
    bct_er,
    head=LINEAR,
    uses_old_model=True,
    reference="Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, "
    "arXiv:2003.11942; with replay",
)
