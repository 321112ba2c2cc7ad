"""What each compared system trains with.

A method is a loss, a function of `LossInputs` and of its own keyword options, together with the
head, the old model, the memory and the data that it trains with. The options' defaults are the
source's. Backbone, stream, memory size, schedule and augmentation are the protocol's, the same for
all; a docstring says where that departs from the source. Adding a method takes such a function and
an entry in `METHODS`.

At a replacement the old model is the external one, for every method. Its head knows the external
classes and none of the stream's.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp

from iamcl2r_jax import losses
from iamcl2r_jax.methods import heads
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.values import integer, number


@flax.struct.dataclass
class Classes:
    """What a task knows of the K classes, by row of the classifier.

    Attributes:
      active: classes seen so far, the current task's among them, bool [K].
      new: classes of the current task, bool [K].
      known: classes that the old model's head was trained on, bool [K].
      centres: of the classes of earlier tasks, the mean of the unit features of their training
        images, each by the model that first learned the class, [K, D]; zero for other classes.
        None for a method that uses no centres.
      boundaries: the smallest cosine of such a feature with its centre, [K], or None likewise.
    """

    active: jax.Array
    new: jax.Array
    known: jax.Array
    centres: jax.Array | None = None
    boundaries: jax.Array | None = None

    @property
    def earlier(self) -> jax.Array:
        """Classes of earlier tasks, bool [K]."""
        return self.active & ~self.new

    @property
    def num_new(self) -> jax.Array:
        """Number of classes of the current task."""
        return jnp.sum(self.new)

    @property
    def num_earlier(self) -> jax.Array:
        """Number of classes of earlier tasks."""
        return jnp.sum(self.earlier)


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
      logits: of the classifier for `features`, [B, K]; cosines if the head is the cosine one.
      rows: of the classifier, [K, D]; the simplex's are never differentiated.
      classes: what the task knows of the classes; None where the caller's loss needs none of it.
      old_head_logits: of the old model's frozen linear head for the new `features`, [B, K]; None
        without such a head.
      old_logits: of that head for `old_features`, [B, K]; never differentiated.
    """

    features: jax.Array
    old_features: jax.Array | None
    has_old: jax.Array
    labels: jax.Array
    from_memory: jax.Array
    logits: jax.Array
    rows: jax.Array | None = None
    classes: Classes | None = None
    old_head_logits: jax.Array | None = None
    old_logits: jax.Array | None = None


Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Method:
    """One compared system.

    Attributes:
      loss: maps `LossInputs` and options to the total loss and its named terms (scalars).
      uses_old_model: whether the loss reads what comes from the old model.
      reference: where it was published.
      head: classifier, see `heads`.
      uses_memory: whether half of each batch comes from the episodic memory.
      uses_centres: whether the loss reads the centres of `Classes`.
      retrains: whether each task trains a new network on the images of all tasks so far. Random
        at first, or the external model where the protocol replaces the model.
      adapts: whether stored galleries are carried to each new model, see `adapters`. Otherwise
        they stay as they are.
    """

    loss: Loss
    uses_old_model: bool
    reference: str
    head: str = heads.SIMPLEX
    uses_memory: bool = True
    uses_centres: bool = False
    retrains: bool = False
    adapts: bool = False

    @property
    def external_head(self) -> str:
        """With what classifier its external models are pre-trained.

        All methods with learnable rows take models with a plain linear classifier: whoever made
        them did not know which method would use them.
        """
        return heads.LINEAR if heads.is_learnable(self.head) else heads.SIMPLEX


# What an option may be; one without such an annotation may be any finite value of its kind.
Positive = Annotated[float, number("(0, 1e6]")]
Weight = Annotated[float, number("[0, 1e6]")]


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
    """CE(W z, slot(y)) with the fixed d-Simplex classifier W, and nothing else.

    It is also the loss of CoReS, which departs from its source only in schedule and backbone (there
    100 epochs of SENet-18, learning rate ÷10 at 70) and, where the protocol replaces the model, in
    starting from the external one.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    return ce, {"ce": ce}


def simplex_fd(inputs: LossInputs, *, base_weight: Weight = 5.0):
    """CE(W z, slot(y)) + w · mean over memory samples of (1 - cos(f, o)), w = base √(new/old).

    new and old are the numbers of classes of the current and of earlier tasks. In the first task
    there is no memory, and CE alone. Departs from the source in backbone, schedule and first task
    (there ResNet-32, 70 epochs at learning rate 0.1 ÷10 at 49 and 64, 50 classes).

    Args:
      inputs: see `LossInputs`.
      base_weight: base; 5 in the configuration of the source.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels)
    fd = losses.feature_distillation(
        inputs.features, inputs.old_features, weight=inputs.from_memory & inputs.has_old
    )
    classes = inputs.classes
    weight = base_weight * jnp.sqrt(classes.num_new / jnp.maximum(classes.num_earlier, 1))
    return ce + weight * fd, {"ce": ce, "fd": fd}


def er(inputs: LossInputs):
    """CE(W z, y) over the classes seen so far, W learnable: experience replay.

    Nothing ties the new model to the old one. The rows of new classes are random; at a replacement
    all are.
    """
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=inputs.classes.active)
    return ce, {"ce": ce}


def bct_er(inputs: LossInputs, *, influence_weight: Weight = 1.0):
    """CE(W z, y) + α · mean over samples of known classes of CE(W_old z, y).

    W_old is the old model's frozen head and z the *new* feature: the influence loss of BCT, with
    replay. As tasks share no class, only memory samples are of known classes; right after a
    replacement no sample is, since W_old knows external classes only. The source has no memory;
    there the new model's training set contains the old one's.

    Args:
      inputs: see `LossInputs`.
      influence_weight: α.
    """
    classes = inputs.classes
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=classes.active)
    influence = losses.cross_entropy(
        inputs.old_head_logits,
        inputs.labels,
        mask=classes.known,
        weight=classes.known[inputs.labels] & inputs.has_old,
    )
    return ce + influence_weight * influence, {"ce": ce, "influence": influence}


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
      inputs: see `LossInputs`.
      temperature: of L_c.
      triplet_weight: α.
      margin: of L_m.
      centre_weight: β.
    """
    classes = inputs.classes
    softmax = losses.normalized_softmax(
        inputs.features,
        inputs.rows,
        inputs.labels,
        temperature=temperature,
        mask=classes.active,
    )
    triplet = losses.triplet_loss(
        inputs.features, inputs.old_features, inputs.labels, margin=margin
    )
    triplet = jnp.where(inputs.has_old, triplet, 0.0)
    centre = losses.centre_loss(
        inputs.features, inputs.labels, classes.centres, weight=classes.earlier[inputs.labels]
    )
    total = softmax + triplet_weight * triplet + centre_weight * centre
    return total, {"ce": softmax, "triplet": triplet, "centre": centre}


def lwf(inputs: LossInputs, *, temperature: Positive = 2.0, distillation_weight: Weight = 1.0):
    """CE(W z, y) + λ · KD(W_old z, W_old o), over the classes that the old head knows.

    z are the new and o the old features, W_old the old model's frozen head: distillation without
    images of earlier classes, so it uses no memory. At a replacement W_old is the external model's
    own head, as the pre-trained networks of the source. Departs from it in one CE over all classes
    seen so far (there over the new task's classes), and in that W_old itself is not trained on.

    It is also the loss of FAN, whose stored features the adapters of `adapters` carry on; its
    source trains the network with these two terms and, as far as we recall, one on the features.

    Args:
      inputs: see `LossInputs`.
      temperature: T, of both softmaxes.
      distillation_weight: λ.
    """
    classes = inputs.classes
    ce = losses.cross_entropy(inputs.logits, inputs.labels, mask=classes.active)
    kd = losses.distillation(
        inputs.old_head_logits,
        inputs.old_logits,
        temperature=temperature,
        mask=classes.known & inputs.has_old,
    )
    return ce + distillation_weight * kd, {"ce": ce, "distillation": kd}


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
      inputs: see `LossInputs`.
      temperature: of L_ce; not of the source, but that of CVS.
      base_weight: base of λ.
      ranking_weight: w.
      margin: of L_mr.
      num_negatives: classes that each memory sample is ranked against.
    """
    classes = inputs.classes
    softmax = losses.normalized_softmax(
        inputs.features,
        inputs.rows,
        inputs.labels,
        temperature=temperature,
        mask=classes.active,
    )
    fd = losses.feature_distillation(inputs.features, inputs.old_features)
    weight = base_weight * jnp.sqrt(classes.num_earlier / classes.num_new)
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
      inputs: see `LossInputs`.
      scale: of the cosines in L_ce.
      angular_margin: of L_ce, in radians.
      alignment_weight: a.
      boundary_weight: b.
    """
    classes = inputs.classes
    softmax = losses.normalized_softmax(
        inputs.features,
        inputs.rows,
        inputs.labels,
        temperature=1 / scale,
        angular_margin=angular_margin,
        mask=classes.active,
    )
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


_STATIONARY = "Biondi et al., Stationary Representations, CVPR 2024, arXiv:2405.02581"

METHODS: dict[str, Method] = {
    "hoc": Method(hoc, uses_old_model=True, reference=_STATIONARY),
    "simplex": Method(simplex, uses_old_model=False, reference=_STATIONARY),
    "simplex_fd": Method(
        simplex_fd,
        uses_old_model=True,
        reference="Biondi et al., CL²R: Compatible Lifelong Learning Representations, ACM TOMM "
        "2022, arXiv:2211.09032",
    ),
    "er": Method(
        er,
        head=heads.LINEAR,
        uses_old_model=False,
        reference="Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, "
        "arXiv:1902.10486",
    ),
    "bct_er": Method(
        bct_er,
        head=heads.LINEAR,
        uses_old_model=True,
        reference="Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, "
        "arXiv:2003.11942; with replay",
    ),
    "cvs": Method(
        cvs,
        head=heads.COSINE,
        uses_old_model=True,
        uses_centres=True,
        reference="Wan et al., Continual Learning for Visual Search with Backward Consistent "
        "Feature Embedding, CVPR 2022, arXiv:2205.13384",
    ),
    "lwf": Method(
        lwf,
        head=heads.LINEAR,
        uses_old_model=True,
        uses_memory=False,
        reference="Li and Hoiem, Learning without Forgetting, TPAMI 2018, arXiv:1606.09282",
    ),
    "fan": Method(
        lwf,
        head=heads.LINEAR,
        uses_old_model=True,
        uses_memory=False,
        adapts=True,
        reference="Iscen et al., Memory-Efficient Incremental Learning Through Feature Adaptation, "
        "ECCV 2020, arXiv:2004.00713",
    ),
    "lucir": Method(
        lucir,
        head=heads.COSINE,
        uses_old_model=True,
        reference="Hou et al., Learning a Unified Classifier Incrementally via Rebalancing, "
        "CVPR 2019",
    ),
    "lce_er": Method(
        lce_er,
        head=heads.COSINE,
        uses_old_model=False,
        uses_centres=True,
        reference="Meng et al., Learning Compatible Embeddings, ICCV 2021, arXiv:2108.01958; "
        "with replay",
    ),
    "cores": Method(
        simplex,
        uses_old_model=False,
        uses_memory=False,
        retrains=True,
        reference="Biondi et al., CoReS: Compatible Representations via Stationarity, TPAMI 2023, "
        "arXiv:2111.07632",
    ),
}


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
      InputError: if there is none of that name.
    """
    if name not in METHODS:
        raise InputError(f"method={name!r} is unknown; there are {', '.join(METHODS)}")
    return METHODS[name]
