"""Losses: pure functions of features, logits and labels that return one scalar.

Conventions, the same everywhere:
  * B batch, D feature, K classifier rows. Features are normalised inside; zero features and batches
    of one class or one sample give finite values and gradients.
  * Inputs below float32 are raised to float32 before any arithmetic; results are float32, or
    float64 for float64 inputs.
  * `weight` [B] selects or weighs samples: the result is Σ wₙ ℓₙ / Σ wₙ, so that a 0/1 weight gives
    the loss of the selected samples alone, and 0 if there are none. None selects all.
  * What belongs to the old model (features, logits, centres) never receives a gradient.
"""

import math

import chex
import jax
import jax.numpy as jnp
import optax

_ZERO_NORM = 1e-12  # a feature shorter than this has no direction


def _wide(x):
    """At least float32: sums of many products in bfloat16 or float16 lose too much."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _frozen(x):
    return jax.lax.stop_gradient(_wide(x))


def _weighted_mean(values, weight):
    if weight is None:
        return jnp.mean(values)
    chex.assert_equal_shape([values, weight])
    weight = jnp.asarray(weight, values.dtype)
    # `where`, not a product: 0 · inf of a deselected sample would be NaN.
    total = jnp.sum(jnp.where(weight > 0, weight * values, 0.0))
    mass = jnp.sum(weight)
    return total / jnp.where(mass > 0, mass, 1.0)


def normalize(x):
    """Scales the last axis to unit length; vectors shorter than 1e-12 become zero.

    Differs from the usual x / ‖x‖, which makes a zero vector and its gradient NaN: here both are
    zero. [..., D] to [..., D], float32 or wider.
    """
    x = _wide(x)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squared > _ZERO_NORM**2
    # The inner `where` keeps the gradient of the branch not taken finite.
    return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, squared, 1.0)), 0.0)


def cosine_similarities(a, b):
    """Cosine of every row of a [A, D] with every row of b [B, D]: [A, B].

    At full float32 precision on every device: temperatures of 0.05 and μ = 10 magnify what the
    default products of GPU and TPU round away.
    """
    chex.assert_rank([a, b], 2)
    return jnp.matmul(normalize(a), normalize(b).T, precision=jax.lax.Precision.HIGHEST)


def cross_entropy(logits, labels, *, mask=None, weight=None):
    """Softmax cross-entropy, mean over samples of -log softmax(logits)_y.

    Args:
      logits: [B, K].
      labels: integer [B], rows of the classifier.
      mask: bool [K], the rows in use; the others are left out of the softmax, so that a head can
        grow inside a fixed shape. A sample whose label is not in use has probability zero and
        infinite loss: deselect it by `weight`.
      weight: [B], see the module.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    logits = _wide(logits)
    if mask is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        chex.assert_shape(mask, logits.shape[1:])
        rows = jnp.broadcast_to(mask, logits.shape)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=rows)
        losses = jnp.where(jnp.asarray(mask)[labels], losses, jnp.inf)
    return _weighted_mean(losses, weight)


def _diagonal(scores: jax.Array) -> jax.Array:
    """Of [B, B]: [B], also where the rows are split over devices.

    `jnp.diagonal` gathers them inside a branch. There the devices may communicate in another order
    than elsewhere, and on CPU then wait for each other without end.
    """
    own = jnp.eye(len(scores), dtype=bool)
    return jnp.sum(scores, axis=1, where=own)


def hoc_loss(new, old, labels, *, mu=10.0, exclude_same_class=False):
    """Higher-order compatibility: contrasts each old feature with all new features of the batch.

    With unit features o = old, f = new,
      ℓₙ = -μ⟨oₙ, fₙ⟩ + log( Σ_{m: y_m ≠ y_n} exp(μ⟨oₙ, f_m⟩) + cₙ ),   L = mean over n.
    The official code multiplies the similarity of same-class candidates, the positive included, by
    zero instead of removing them; each then adds exp(0), so that cₙ = #{m: y_m = y_n}. That is the
    default here, and always finite. `exclude_same_class` removes them (cₙ = 0), the evident intent.
    The loss may be negative.

    Reference: Biondi et al., "Stationary Representations: Optimally Approximating Compatibility and
    Implications for Improved Model Replacements", CVPR 2024, https://arxiv.org/abs/2405.02581

    Args:
      new: [B, D], features of the model in training.
      old: [B, D], features of the frozen model for the same images.
      labels: integer [B]. With a batch sharded over devices all of it is the candidate set.
      mu: inverse temperature.
      exclude_same_class: leave same-class candidates out. A batch of one class then has nothing to
        contrast with: its loss and gradient are zero, where the formula gives -∞.
    """
    chex.assert_rank([new, old, labels], [2, 2, 1])
    chex.assert_equal_shape([new, old])
    chex.assert_equal_shape_prefix([new, labels], 1)
    scores = mu * cosine_similarities(_frozen(old), new)
    same_class = labels[:, jnp.newaxis] == labels[jnp.newaxis, :]
    if not exclude_same_class:
        candidates = jax.nn.logsumexp(jnp.where(same_class, 0.0, scores), axis=1)
        return jnp.mean(candidates - _diagonal(scores))
    candidates = jax.nn.logsumexp(scores, axis=1, where=~same_class)
    # The logarithm of an empty sum is -∞; weight 0 drops it together with its gradient.
    has_negative = jnp.any(~same_class, axis=1)
    return _weighted_mean(candidates - _diagonal(scores), has_negative)


def feature_distillation(new, old, *, weight=None):
    """Feature distillation: mean of 1 - cos(new, old).

    Reference: Biondi et al., "CL2R: Compatible Lifelong Learning Representations", 2022, there on
    the samples from memory; Hou et al., "Learning a Unified Classifier Incrementally via
    Rebalancing" (LUCIR), CVPR 2019, there on all samples.

    Args:
      new: [B, D], features of the model in training.
      old: [B, D], features of the frozen model for the same images.
      weight: [B], see the module; 1 for memory samples and 0 for others in the first reference.
    """
    chex.assert_rank([new, old], 2)
    chex.assert_equal_shape([new, old])
    cosines = jnp.sum(normalize(new) * normalize(_frozen(old)), axis=-1)
    return _weighted_mean(1.0 - cosines, weight)


def distillation(new_logits, old_logits, *, temperature=2.0, mask=None, weight=None):
    """Knowledge distillation: mean of -Σ_k softmax(old/T)_k · log softmax(new/T)_k.

    Reference: Li and Hoiem, "Learning without Forgetting", TPAMI 2018. As there, the targets'
    entropy is not subtracted and the loss is not multiplied by T².

    Args:
      new_logits: [B, K], the old head on new features.
      old_logits: [B, K], the old head on old features.
      temperature: T.
      mask: bool [K], the rows in use by the old head; the others are left out of both softmaxes.
        With no row in use (there is no old head yet) the loss is 0.
      weight: [B], see the module.
    """
    chex.assert_rank([new_logits, old_logits], 2)
    chex.assert_equal_shape([new_logits, old_logits])
    rows = None
    if mask is not None:
        chex.assert_shape(mask, new_logits.shape[1:])
        rows = jnp.broadcast_to(mask, new_logits.shape)
    targets = jax.nn.softmax(_frozen(old_logits) / temperature, where=rows)
    losses = optax.softmax_cross_entropy(_wide(new_logits) / temperature, targets, where=rows)
    return _weighted_mean(losses, weight)


def normalized_softmax(
    new, prototypes, labels, *, temperature=0.05, angular_margin=0.0, mask=None, weight=None
):
    """Normalised softmax: `cross_entropy` of cos(f, p_k)/T, of cos(θ_y + m)/T for the own class.

    θ_y is the angle of f and p_y, m the additive angular margin.

    Reference: Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC
    2019; L_c of CVS (see `triplet_loss`); with a margin, Deng et al., "ArcFace", CVPR 2019.

    Args:
      new: [B, D].
      prototypes: [K, D], learned classifier rows; they do receive gradients.
      labels, mask, weight: as for `cross_entropy`.
      temperature: T; 1/T is ArcFace's scale s.
      angular_margin: m, in radians. θ_y + m is not cut off at π, where the cosine rises again.
    """
    cosines = cosine_similarities(new, prototypes)
    if angular_margin:
        own = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
        squared_sine = 1.0 - jnp.square(cosines)
        apart = squared_sine > 0  # the sine has no derivative where two directions coincide
        sine = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared_sine, 1.0)), 0.0)
        behind = cosines * math.cos(angular_margin) - sine * math.sin(angular_margin)
        cosines = jnp.where(own, behind, cosines)
    return cross_entropy(cosines / temperature, labels, mask=mask, weight=weight)


def _distance(a, b):
    squared = jnp.sum(jnp.square(a - b), axis=-1)
    apart = squared > 0  # the distance has no derivative where two points coincide: zero there
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def triplet_loss(new, old, labels, *, margin=0.1):
    """Model coherence: each new feature nearer to its own old one than to any other class's.

    With unit features f = new, o = old and h(n) the sample of another class whose old feature is
    nearest to fₙ (the hardest negative),
      mean over n of max( ‖fₙ - oₙ‖ - ‖fₙ - o_h(n)‖ + margin, 0 ).

    Reference: Wan et al., "Continual Learning for Visual Search with Backward Consistent Feature
    Embedding" (CVS), CVPR 2022, L_m. Departs from its code in a batch of one class: 0 here, an
    arbitrary negative there.

    Args:
      new: [B, D], features of the model in training.
      old: [B, D], features of the frozen model for the same images.
      labels: integer [B].
      margin: in units of distance between unit vectors.
    """
    chex.assert_rank([new, old, labels], [2, 2, 1])
    chex.assert_equal_shape([new, old])
    chex.assert_equal_shape_prefix([new, labels], 1)
    anchors, positives = normalize(new), normalize(_frozen(old))
    other_class = labels[:, jnp.newaxis] != labels[jnp.newaxis, :]
    # Only for the choice: √(2 - 2cos) would lose the small distances to rounding.
    cosines = jnp.where(other_class, cosine_similarities(anchors, positives), -jnp.inf)
    negatives = positives[jnp.argmax(cosines, axis=1)]
    hinge = jax.nn.relu(_distance(anchors, positives) - _distance(anchors, negatives) + margin)
    return _weighted_mean(hinge, jnp.any(other_class, axis=1))


def centre_loss(new, labels, centres, *, weight=None):
    """Data coherence: mean of ‖c_y - f‖², f the unit feature.

    Reference: Wan et al., CVS, CVPR 2022, L_d, where c_y is the mean of the stored unit features of
    class y, not itself normalised. On classifier rows instead of features, with unit centres and
    divided by D, it is the alignment term of LCE (see `boundary_loss`).

    Args:
      new: [B, D].
      labels: integer [B], rows of `centres`.
      centres: [C, D], used as they are, never differentiated.
      weight: [B], see the module; 0 for samples whose class has no centre yet.
    """
    chex.assert_rank([new, labels, centres], [2, 1, 2])
    chex.assert_equal_shape_prefix([new, labels], 1)
    squared = jnp.sum(jnp.square(_frozen(centres)[labels] - normalize(new)), axis=-1)
    return _weighted_mean(squared, weight)


def boundary_loss(new, labels, centres, boundaries, *, weight=None):
    """Keeps new features within the old class: mean of max( b_y - cos(f, c_y), 0 ).

    Reference: Meng et al., "Learning Compatible Embeddings" (LCE), ICCV 2021, where b_y is the
    smallest cosine of an old training feature of class y with its centre.

    Args:
      new: [B, D].
      labels: integer [B], rows of `centres`.
      centres: [C, D], old class centres, normalised inside, never differentiated.
      boundaries: [C], cosines, never differentiated.
      weight: [B], see the module; 0 for samples whose class has no centre yet.
    """
    chex.assert_rank([new, labels, centres, boundaries], [2, 1, 2, 1])
    chex.assert_equal_shape_prefix([new, labels], 1)
    chex.assert_equal_shape_prefix([centres, boundaries], 1)
    cosines = jnp.sum(normalize(new) * normalize(_frozen(centres))[labels], axis=-1)
    return _weighted_mean(jax.nn.relu(_frozen(boundaries)[labels] - cosines), weight)


def margin_ranking_loss(cosines, labels, candidates, *, margin=0.5, num_negatives=2, weight=None):
    """Margin ranking: the own class ahead of the most similar candidate classes by a margin.

    Mean, over samples and their `num_negatives` candidates k of largest cosine, of
      max( margin - cos(f, w_y) + cos(f, w_k), 0 ).

    Reference: Hou et al., "Learning a Unified Classifier Incrementally via Rebalancing" (LUCIR),
    CVPR 2019, there for memory samples against the classes of the current task.

    Args:
      cosines: [B, C], cosines of features and classifier rows, before any scale.
      labels: integer [B], columns of `cosines`.
      candidates: bool [C], classes that may be negatives; a sample's own class never is. With fewer
        of them than `num_negatives`, those that there are.
      margin: in units of cosine.
      num_negatives: K of the reference.
      weight: [B], see the module; 1 for memory samples and 0 for others in the reference.
    """
    chex.assert_rank([cosines, labels, candidates], [2, 1, 1])
    chex.assert_equal_shape_prefix([cosines, labels], 1)
    chex.assert_shape(candidates, cosines.shape[1:])
    cosines = _wide(cosines)
    own = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    negatives = jnp.where(candidates[jnp.newaxis, :] & ~own, cosines, -jnp.inf)
    hardest, _ = jax.lax.top_k(negatives, min(num_negatives, cosines.shape[1]))
    positives = jnp.take_along_axis(cosines, labels[:, jnp.newaxis], axis=1)
    pair_weight = jnp.isfinite(hardest).astype(cosines.dtype)
    if weight is not None:
        chex.assert_equal_shape([labels, weight])
        pair_weight *= jnp.asarray(weight, cosines.dtype)[:, jnp.newaxis]
    return _weighted_mean(jax.nn.relu(margin - positives + hardest), pair_weight)
