"""The map of FAN: a small network that brings stored features forward, without their images.

As a method of a run, ψ_t is trained after task t on pairs (o, f) of features of the task's own
training images, o by the model of task t-1 and f by that of task t: when the images are there, and
kept with the model. A gallery that model k made reaches model t as ψ_t(… ψ_{k+1}(gallery)). At a
replacement, too, o is by the model of the task before, whose galleries are what is stored, and not
by the external model. As a map after the fact there is no classifier, and the pairs are any.

Reference: Iscen et al., "Memory-Efficient Incremental Learning Through Feature Adaptation" (FAN),
ECCV 2020, arXiv:2004.00713. Its abstract says: features are kept instead of images; a multi-layer
perceptron trained on feature pairs of the current task's images maps them to the updated space; the
classifier is then optimised over adapted old and new features. From memory of its text, unverified
(there is no public code): two layers with a ReLU between, and the loss of `loss` with α = 100.
Ours, since the text was not at hand: hidden width, input scale, Adam and its schedule. A departure:
the classifier is not trained again on adapted features. That leaves retrieval as it is, and makes
`task_accuracy` of early classes what distillation alone keeps.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iamcl2r_jax import losses
from iamcl2r_jax.methods import heads

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the network is made and trained.

    Attributes:
      hidden: width of its hidden layer.
      steps: of Adam; the learning rate falls to zero along a half cosine.
      batch_size: pairs in a step, drawn with replacement.
      learning_rate: of the first step.
      similarity_weight: α of `loss`.
    """

    hidden: int
    steps: int
    batch_size: int
    learning_rate: float
    similarity_weight: float


@flax.struct.dataclass
class Pairs:
    """Features of the same images by two models, padded to one shape for all tasks.

    Attributes:
      old: by the earlier model, float32 [N, D].
      new: by the later model, float32 [N, D].
      labels: row of the classifier that belongs to each image's class, int32 [N].
      size: int32 scalar; only the first `size` rows count.
    """

    old: jax.Array
    new: jax.Array
    labels: jax.Array
    size: jax.Array


def make_pairs(old: np.ndarray, new: np.ndarray, labels: np.ndarray, capacity: int) -> Pairs:
    """Pads features [n, D] and labels [n] to `capacity` rows.

    Raises:
      ValueError: if they are more than `capacity`.
    """
    chex.assert_rank([old, new, labels], [2, 2, 1])
    chex.assert_equal_shape_prefix([old, new, labels], 1)
    if len(labels) > capacity:
        raise ValueError(f"a capacity of {capacity} cannot hold {len(labels)} pairs")

    def padded(rows, dtype):
        filled = np.zeros((capacity, *rows.shape[1:]), dtype)
        filled[: len(rows)] = rows
        return jnp.asarray(filled)

    return Pairs(
        padded(old, np.float32),
        padded(new, np.float32),
        padded(labels, np.int32),
        jnp.asarray(len(labels), jnp.int32),
    )


def init(key: jax.Array, num_features: int, hidden: int, num_out: int | None = None) -> Params:
    """A random network, D -> hidden -> num_out, by default D."""
    key_hidden, key_out = jax.random.split(key)
    draw = jax.nn.initializers.he_normal()

    def layer(key, num_in, num_out):
        return {"kernel": draw(key, (num_in, num_out)), "bias": jnp.zeros(num_out)}

    return {
        "hidden": layer(key_hidden, num_features, hidden),
        "out": layer(key_out, hidden, num_out or num_features),
    }


def expected(num_features: int, hidden: int) -> Params:
    """Names, shapes and dtypes of an adapter, without computing them."""
    return jax.eval_shape(lambda: init(jax.random.key(0), num_features, hidden))


@jax.jit
def apply(params: Params, features: jax.Array) -> jax.Array:
    """ψ(o) = V relu(U √D o/‖o‖ + a) + b.

    Retrieval stores and compares directions, so the network reads no more than these; √D gives its
    input coordinates of unit variance. The length of its output means nothing to a next one.

    Args:
      params: see `init`.
      features: o, [N, D].
    """
    chex.assert_rank(features, 2)

    def layer(x, weights):
        product = jnp.matmul(x, weights["kernel"], precision=jax.lax.Precision.HIGHEST)
        return product + weights["bias"][jnp.newaxis, :]

    scaled = math.sqrt(features.shape[1]) * losses.normalize(features)
    return layer(jax.nn.relu(layer(scaled, params["hidden"])), params["out"])


def loss(
    params: Params,
    old: jax.Array,
    new: jax.Array,
    labels: jax.Array,
    rows: jax.Array | None,
    active: jax.Array | None,
    *,
    head: str = heads.LINEAR,
    similarity_weight: float = 100.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """α · mean (1 - cos(ψ(o), f)) + CE(W ψ(o), y), W the new model's classifier.

    Args:
      params: of ψ, the only argument that receives a gradient.
      old: o, [B, D].
      new: f, [B, D].
      labels: y, rows of the classifier, integer [B].
      rows: W, [K, D]; None leaves its term out.
      active: bool [K], the rows in use; None for all.
      head: what the rows are, see `heads`.
      similarity_weight: α.

    Returns:
      The scalar, and its two terms.
    """
    chex.assert_equal_shape_prefix([old, new], 1)
    carried = apply(params, jax.lax.stop_gradient(old))
    distance = losses.feature_distillation(carried, new)
    if rows is None:
        return similarity_weight * distance, {"distance": distance}
    logits = heads.scores(head, carried, jax.lax.stop_gradient(rows))
    ce = losses.cross_entropy(logits, labels, mask=active)
    return similarity_weight * distance + ce, {"distance": distance, "ce": ce}


@partial(jax.jit, static_argnames=("hidden", "steps", "batch_size", "learning_rate"))
def fan_fit(
    source: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    hidden: int = 1024,
    steps: int = 500,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> Params:
    """ψ by mean (1 - cos(ψ(o), f)) alone, as a map after the fact; its settings are a run's.

    There is nothing in it of the identity but what it learns: on equal features it comes near.

    Args:
      source, target: o [N, S] and f [N, D].
      key: of the initialisation and the batches.
      hidden, steps, batch_size, learning_rate: see `Settings`.
    """
    count = len(source)
    pairs = Pairs(source, target, jnp.zeros(count, jnp.int32), jnp.asarray(count, jnp.int32))
    settings = Settings(hidden, steps, batch_size, learning_rate, similarity_weight=1.0)
    return fit(settings, heads.LINEAR, pairs, None, None, key)[0]


@partial(jax.jit, static_argnames=("settings", "head"))
def fit(
    settings: Settings,
    head: str,
    pairs: Pairs,
    rows: jax.Array | None,
    active: jax.Array | None,
    key: jax.Array,
) -> tuple[Params, dict[str, jax.Array], jax.Array]:
    """Trains the network; one program for all tasks, whose pairs are of one shape.

    Args:
      settings: see `Settings`.
      head, rows, active: the new model's classifier, see `loss`.
      pairs: what it is trained on.
      key: random key of initialisation and batches.

    Returns:
      Its parameters; over all pairs the mean "cosine_after" of ψ(o) and f, and "cosine_before" of o
      and f where their widths are equal; and the first step whose gradient is not finite (the
      last one, if only the network is not), -1 if there is none.
    """
    key_init, key_steps = jax.random.split(key)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.adam(schedule)
    gradient = jax.grad(
        partial(loss, head=head, similarity_weight=settings.similarity_weight), has_aux=True
    )

    def step(index, carry):
        params, state, diverged = carry
        key_step = jax.random.fold_in(key_steps, index)
        drawn = jax.random.randint(key_step, (settings.batch_size,), 0, pairs.size)
        batch = pairs.old[drawn], pairs.new[drawn], pairs.labels[drawn]
        gradients, _ = gradient(params, *batch, rows, active)
        finite = jnp.isfinite(optax.tree.norm(gradients))
        diverged = jnp.where((diverged < 0) & ~finite, index, diverged)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, diverged

    params = init(key_init, pairs.old.shape[1], settings.hidden, pairs.new.shape[1])
    carry = params, optimizer.init(params), jnp.asarray(-1, jnp.int32)
    params, _, diverged = jax.lax.fori_loop(0, settings.steps, step, carry)
    lost = (diverged < 0) & ~jnp.isfinite(optax.tree.norm(params))
    diverged = jnp.where(lost, settings.steps - 1, diverged)
    counts = jnp.arange(len(pairs.labels)) < pairs.size
    met = {"cosine_after": apply(params, pairs.old)}
    if pairs.old.shape == pairs.new.shape:
        met["cosine_before"] = pairs.old
    cosines = {
        name: 1.0 - losses.feature_distillation(features, pairs.new, weight=counts)
        for name, features in met.items()
    }
    return params, cosines, diverged
