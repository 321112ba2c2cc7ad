"""What a loss may look at, and what else a method trains with."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import flax.struct
import jax

from iamcl2r_jax import losses
from iamcl2r_jax.system.values import number

# What an option may be; one without such an annotation may be any finite value of its kind.
Positive = Annotated[float, number("(0, 1e6]")]
Weight = Annotated[float, number("[0, 1e6]")]

SIMPLEX, LINEAR, COSINE = "simplex", "linear", "cosine"  # classifiers, see `heads`


def is_learnable(head: str) -> bool:
    """Whether a head's rows are parameters of the model."""
    return head != SIMPLEX


@flax.struct.dataclass
class Classes:
    """What a task knows of the K classes, by row of the classifier.

    Attributes:
      active: classes seen so far, the current task's among them, bool [K].
      new: classes of the current task, bool [K].
      centres: of the classes of earlier tasks, the mean of the unit features of their training
        images, each by the model that first learned the class, [K, D]; zero for other classes.
        None for a method that uses no centres.
      boundaries: the smallest cosine of such a feature with its centre, [K], or None as well.
    """

    active: jax.Array
    new: jax.Array
    centres: jax.Array | None = None
    boundaries: jax.Array | None = None

    @property
    def earlier(self) -> jax.Array:
        """Classes of earlier tasks, bool [K]."""
        return self.active & ~self.new


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
      known: rows that the old model was trained on, bool [K]; None where no loss reads it.
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
    known: jax.Array | None = None
    old_head_logits: jax.Array | None = None
    old_logits: jax.Array | None = None

    def normalized_softmax(self, temperature: float, **options: float) -> jax.Array:
        """`losses.normalized_softmax` of the features over the classes seen so far."""
        options |= {"temperature": temperature, "mask": self.classes.active}
        return losses.normalized_softmax(self.features, self.rows, self.labels, **options)


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
      adapts: whether stored galleries are mapped to each new model, see `maps.fan`. Otherwise
        they stay as they are.
    """

    loss: Loss
    uses_old_model: bool
    reference: str
    head: str = SIMPLEX
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
        return LINEAR if is_learnable(self.head) else SIMPLEX
