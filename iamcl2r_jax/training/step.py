"""One training step, and the compiled program that repeats it over the batches of an epoch."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iamcl2r_jax.data.augment import ImageOptions, augmented_batch
from iamcl2r_jax.data.sampling import Pool, augmentation_key
from iamcl2r_jax.data.streaming import Block, Dataset, Drawn, HostDataset
from iamcl2r_jax.methods import Classes, Loss, LossInputs, heads, optimizers
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.system import parallel

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a step updates.

    Attributes:
      params: parameters of the model, a learnable head among them.
      batch_stats: running statistics of its normalisation layers; {} for a model without any.
      opt_state: of the optimiser, such as SGD's momentum.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> Variables:
        """As `models.create(...)` makes and takes them: without statistics if it has none."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params} | statistics


@flax.struct.dataclass
class OldModel:
    """A frozen teacher, an argument of its own: never differentiated, donated or updated.

    Attributes:
      variables: as `models.create(...).apply` takes them.
      exists: bool scalar; false where there is no such model, when `variables` only give the shape.
      known: rows of the classifier that it was trained on, bool [K]; None for a loss without a use
        for them.
    """

    variables: Variables
    exists: jax.Array
    known: jax.Array | None = None


@flax.struct.dataclass
class TaskData:
    """What a task trains with; no step changes it.

    Attributes:
      old: the frozen teacher.
      classifier: frozen rows W, [K, D]; logits are W z, without scale or bias. None for a program
        whose head is learnable: its rows are part of the state.
      dataset: the images of all tasks, on the device, or on the host to be streamed.
      new: the current task's samples.
      memory: samples of earlier tasks, possibly none.
      classes: what the task knows of the classes; None for a loss and head that need none of it.
      replaced: the second teacher, the model that this task replaces; None for a program with one.
    """

    old: OldModel
    classifier: jax.Array | None
    dataset: Dataset | HostDataset | None = None
    new: Pool | None = None
    memory: Pool | None = None
    classes: Classes | None = None
    replaced: OldModel | None = None

    def without_samples(self) -> "TaskData":
        """What a step reads of it, beside the batch."""
        return self.replace(dataset=None, new=None, memory=None)


_SGD = optimizers.sgd()


@dataclasses.dataclass(frozen=True)
class Program:
    """All that is fixed when the train program is compiled.

    Attributes:
      model: the feature extractor in training.
      old_model: architecture of the teacher; None if the loss uses none.
      loss: of a method, its options bound.
      image_options: augmentation and normalisation.
      batch_size: B, over all devices.
      optimizer: of gradients, the direction of a step.
      head: classifier, see `heads`.
      batch_sharding: how a batch lies on the devices; None leaves it where the data are.
      replaced_model: architecture of the second teacher; None for one teacher.
      replaced_weight: α, its share of the terms that read an old model.
    """

    model: nn.Module
    old_model: nn.Module | None
    loss: Loss
    image_options: ImageOptions
    batch_size: int
    optimizer: optax.GradientTransformation = _SGD
    head: str = heads.SIMPLEX
    batch_sharding: jax.sharding.NamedSharding | None = None
    replaced_model: nn.Module | None = None
    replaced_weight: float = 0.0

    @partial(jax.jit, static_argnums=0)  # one program to compile instead of dozens
    def init_state(self, variables: Variables) -> TrainState:
        """A fresh optimiser around a copy of `variables`, since the state is donated."""
        params, batch_stats = jax.tree.map(
            jnp.copy, (variables["params"], variables.get("batch_stats", {}))
        )
        return TrainState(params, batch_stats, self.optimizer.init(params))


def train_step(
    program: Program,
    state: TrainState,
    data: TaskData,
    images: jax.Array,
    labels: jax.Array,
    from_memory: jax.Array,
    learning_rate: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters: p <- p - learning_rate * direction.

    With two teachers the loss is (1-α) L(old) + α L(replaced), each as if it were the only one: the
    terms that read an old model are averaged, the others are the same in both. Where no model is
    replaced it is L(old), and the second teacher does not run. This is ours; in the paper the
    external model alone teaches (α = 0).

    Args:
      program: what is fixed at compile time.
      state: what is updated.
      data: of the task; its samples are not read.
      images: network input, float32 [B, H, W, 3].
      labels: rows of the classifier, int32 [B].
      from_memory: bool [B].
      learning_rate: scalar.

    Returns:
      The new state, and the batch's "loss", "accuracy", loss terms and "grad_norm", the L2 norm of
      the loss's gradient.
    """
    old, replaced, classes = data.old, data.replaced, data.classes
    learnable = heads.is_learnable(program.head)
    taught = also_taught = _Taught()
    if program.old_model is not None:
        taught = _teach(program.old_model, program.head, old, images)
    if program.replaced_model is not None:
        also_taught = jax.lax.cond(
            replaced.exists,
            lambda: _teach(program.replaced_model, program.head, replaced, images),
            lambda: taught,
        )

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        features, updates = program.model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        rows = heads.rows_of(variables) if learnable else jax.lax.stop_gradient(data.classifier)
        logits = heads.scores(program.head, features, rows)

        def loss_by(teacher, taught):
            inputs = LossInputs(
                features=features,
                old_features=taught.features,
                has_old=teacher.exists,
                labels=labels,
                from_memory=from_memory,
                logits=logits,
                rows=rows,
                classes=classes,
                known=teacher.known,
                old_head_logits=(
                    None
                    if taught.rows is None
                    else heads.scores(program.head, features, taught.rows)
                ),
                old_logits=taught.logits,
            )
            return program.loss(inputs)

        loss, terms = loss_by(old, taught)
        if program.replaced_model is not None:
            weight = jnp.where(replaced.exists, program.replaced_weight, 0.0)
            loss, terms = jax.tree.map(
                lambda by_old, by_replaced: (1 - weight) * by_old + weight * by_replaced,
                (loss, terms),
                loss_by(replaced, also_taught),
            )
        if learnable:
            logits = jnp.where(classes.active[jnp.newaxis, :], logits, -jnp.inf)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return loss, (updates.get("batch_stats", {}), {"accuracy": accuracy} | terms)

    (loss, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    direction, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    if learnable:
        params = heads.keep_unseen(params, state.params, classes.active)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)} | metrics
    return TrainState(params, batch_stats, opt_state), metrics


@flax.struct.dataclass
class _Taught:
    """What an old model gives a batch: features [B, D], and of a linear head rows and logits."""

    features: jax.Array | None = None
    rows: jax.Array | None = None
    logits: jax.Array | None = None


def _teach(module: nn.Module, head: str, old: OldModel, images: jax.Array) -> _Taught:
    variables = jax.lax.stop_gradient(old.variables)
    features = module.apply(variables, images, train=False)
    if head != heads.LINEAR:
        return _Taught(features)
    rows = heads.rows_of(variables)
    return _Taught(features, rows, heads.scores(head, features, rows))


def train_steps(
    program: Program,
    state: TrainState,
    data: TaskData,
    samples: Drawn | Block,
    first: jax.Array,
    stop: jax.Array,
    learning_rate: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Metrics, jax.Array]:
    """Augments and trains the batches `first` to `stop` - 1 of an epoch, drawn before.

    Both are traced and the samples are of one shape, so that one program serves every part of every
    epoch of every task. Step s augments with fold_in(key, s) wherever the parts begin: no key is
    used twice, and an epoch done in parts is the same as one done at once.

    Args:
      program: what is fixed at compile time.
      state: what is updated.
      data: of the task, without its samples.
      samples: the batches.
      first: int32 scalar.
      stop: int32 scalar, at most `sampling.steps_per_epoch`.
      learning_rate: scalar, the same for the whole epoch.
      key: random key of this epoch.

    Returns:
      The new state, each metric's sum over the steps, and the first step whose loss or gradient
      is not finite (the last one, if only the parameters are not), -1 if there is none.
    """

    @partial(jax.jit, inline=True)  # traced once for its metrics' shapes and the loop
    def one_step(step, state):
        images, indices, labels, from_memory = samples.batch(step)
        images = augmented_batch(
            augmentation_key(key, step), images, indices, program.image_options
        )
        batch = images, labels, from_memory
        if program.batch_sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, program.batch_sharding)
        return train_step(program, state, data, *batch, learning_rate)

    def accumulate(step, carry):
        state, sums, diverged = carry
        state, metrics = one_step(step, state)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        diverged = jnp.where((diverged < 0) & ~finite, step, diverged)
        return state, jax.tree.map(jnp.add, sums, metrics), diverged

    shapes = jax.eval_shape(one_step, jnp.asarray(first), state)[1]
    sums = jax.tree.map(lambda metric: jnp.zeros(metric.shape, metric.dtype), shapes)
    none = jnp.asarray(-1, jnp.int32)
    state, sums, diverged = jax.lax.fori_loop(first, stop, accumulate, (state, sums, none))
    # A finite gradient, too, can lead out of the finite numbers; the next step's loss would show
    # it, but there may be none.
    lost = (diverged < 0) & ~jnp.isfinite(optax.tree.norm(state.params))
    return state, sums, jnp.where(lost, stop - 1, diverged)


def axes_of_seeds(data: TaskData) -> TaskData:
    """Of several seeds' data: 0 for what differs and has a leading axis, None for the rest."""
    teacher = OldModel(variables=0, exists=None)
    return TaskData(
        old=teacher,
        classifier=None,
        memory=None if data.memory is None else Pool(indices=0, size=None),
        classes=None if data.classes is None else Classes(None, None, centres=0, boundaries=0),
        replaced=None if data.replaced is None else teacher,
    )


class CompiledEpoch:
    """`train_steps` of one program, jitted with the state donated, for one or several seeds.

    For S seeds everything that differs between them has a leading axis S: state, key, the teacher's
    variables, class centres, batches, and in what it returns metrics and first step that is not
    finite. One seed has no such axis: a vectorised product adds in another order, so its bits, and
    on CPU its speed, would be others.

    Attributes:
      program: what is compiled.
      num_seeds: S.
      traces: how often it was traced; one for a whole lifetime.
    """

    def __init__(self, program: Program, num_seeds: int = 1):
        self.program, self.num_seeds = program, num_seeds
        self.traces = 0
        everywhere = arguments = None
        if program.batch_sharding is not None:
            # Keys and scalars are everywhere too, as the devices may be other processes'.
            everywhere = parallel.replicated(program.batch_sharding)
            arguments = (everywhere, everywhere, None, *(everywhere,) * 4)
        self._steps = jax.jit(
            self._traced,
            donate_argnums=0,
            in_shardings=arguments,
            out_shardings=everywhere,
        )

    def _traced(self, state, data, samples, *others):
        self.traces += 1  # runs when JAX traces, not when the program runs
        steps = partial(train_steps, self.program)
        if self.num_seeds > 1:
            batches = Drawn(dataset=None, indices=0, from_memory=0)
            steps = jax.vmap(steps, (0, axes_of_seeds(data), batches, None, None, None, 0))
        return steps(state, data, samples, *others)

    def __call__(
        self,
        state: TrainState,
        data: TaskData,
        samples: Drawn | Block,
        first: int,
        stop: int,
        learning_rate: float,
        key: jax.Array,
    ) -> tuple[TrainState, Metrics, jax.Array]:
        """Arguments and results as of `train_steps`; `state` is consumed."""
        return self._steps(*_arguments(state, data, samples, first, stop, learning_rate, key))

    def trace(self, *args) -> jax.stages.Traced:
        """What a call with these arguments runs, to be lowered; arrays may be shapes.

        Shapes with shardings describe devices that need not be there.
        """
        return self._steps.trace(*_arguments(*args))


def _arguments(state, data, samples, first, stop, learning_rate, key) -> tuple[Any, ...]:
    # Scalars of fixed dtypes, or another kind of number would be traced again.
    scalars = np.int32(first), np.int32(stop), np.float32(learning_rate)
    return state, data.without_samples(), samples, *scalars, key
