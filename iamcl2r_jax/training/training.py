"""One training step and the epoch that repeats it, as one compiled program."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iamcl2r_jax.data.augment import ImageOptions, augmented_batch
from iamcl2r_jax.data.sampling import (
    Pool,
    epoch_batches,
    epoch_key,
    step_keys,
    steps_per_epoch,
)
from iamcl2r_jax.data.streaming import Block, Dataset, HostDataset, blocks
from iamcl2r_jax.methods import Classes, Loss, LossInputs, heads, optimizers
from iamcl2r_jax.system import parallel
from iamcl2r_jax.system.errors import DivergenceError

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, the latter where there are any
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
    """The frozen teacher, an argument of its own: never differentiated, donated or updated.

    Attributes:
      variables: as `models.create(...).apply` takes them.
      exists: bool scalar; false before the first model, when `variables` only give the shape.
    """

    variables: Variables
    exists: jax.Array


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
      block: in a call of the compiled program the samples of its steps, where `dataset` is on the
        host; None otherwise.
    """

    old: OldModel
    classifier: jax.Array | None
    dataset: Dataset | HostDataset | None
    new: Pool
    memory: Pool
    classes: Classes | None = None
    block: Block | None = None


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
    """

    model: nn.Module
    old_model: nn.Module | None
    loss: Loss
    image_options: ImageOptions
    batch_size: int
    optimizer: optax.GradientTransformation = _SGD
    head: str = heads.SIMPLEX
    batch_sharding: jax.sharding.NamedSharding | None = None

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
    old: OldModel,
    classifier: jax.Array | None,
    images: jax.Array,
    labels: jax.Array,
    from_memory: jax.Array,
    learning_rate: jax.Array,
    classes: Classes | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters: p <- p - learning_rate * direction.

    Args:
      program: what is fixed at compile time.
      state: what is updated.
      old, classifier, classes: see `TaskData`.
      images: network input, float32 [B, H, W, 3].
      labels: rows of the classifier, int32 [B].
      from_memory: bool [B].
      learning_rate: scalar.

    Returns:
      The new state, and the batch's "loss", "accuracy", loss terms and "grad_norm", the L2 norm of
      the loss's gradient.
    """
    learnable = heads.is_learnable(program.head)
    old_features = old_rows = old_logits = None
    if program.old_model is not None:
        old_variables = jax.lax.stop_gradient(old.variables)
        old_features = program.old_model.apply(old_variables, images, train=False)
        if program.head == heads.LINEAR:
            old_rows = heads.rows_of(old_variables)
            old_logits = heads.scores(program.head, old_features, old_rows)

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        features, updates = program.model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        rows = heads.rows_of(variables) if learnable else jax.lax.stop_gradient(classifier)
        logits = heads.scores(program.head, features, rows)
        inputs = LossInputs(
            features=features,
            old_features=old_features,
            has_old=old.exists,
            labels=labels,
            from_memory=from_memory,
            logits=logits,
            rows=rows,
            classes=classes,
            old_head_logits=(
                None if old_rows is None else heads.scores(program.head, features, old_rows)
            ),
            old_logits=old_logits,
        )
        loss, terms = program.loss(inputs)
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


def train_steps(
    program: Program,
    state: TrainState,
    data: TaskData,
    first: jax.Array,
    stop: jax.Array,
    learning_rate: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Metrics, jax.Array]:
    """Draws, augments and trains the batches `first` to `stop` - 1 of an epoch.

    Both are traced and the pools are padded, so that one program serves every part of every epoch
    of every task. Step s uses fold_in(key, s) wherever the parts begin: no key is used twice, and
    an epoch done in parts is the same as one done at once. Where the images are streamed, the
    batches of these steps have been drawn already, by the same keys, and come as `data.block`.

    Args:
      program: what is fixed at compile time.
      state: what is updated.
      data: what the task trains with.
      first: int32 scalar.
      stop: int32 scalar, at most `sampling.steps_per_epoch`.
      learning_rate: scalar, the same for the whole epoch.
      key: random key of this epoch.

    Returns:
      The new state, each metric's sum over the steps, and the first step whose loss or gradient
      is not finite (the last one, if only the parameters are not), -1 if there is none.
    """
    samples = _streamed(data.block, first) if data.block else _resident(program, data, key)

    def one_step(index, state):
        images, indices, labels, from_memory = samples(index)
        _, key_augment = step_keys(key, index)
        images = augmented_batch(key_augment, images, indices, program.image_options)
        batch = images, labels, from_memory
        if program.batch_sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, program.batch_sharding)
        return train_step(
            program, state, data.old, data.classifier, *batch, learning_rate, data.classes
        )

    def accumulate(index, carry):
        state, sums, diverged = carry
        state, metrics = one_step(index, state)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        diverged = jnp.where((diverged < 0) & ~finite, index, diverged)
        return state, jax.tree.map(jnp.add, sums, metrics), diverged

    shapes = jax.eval_shape(one_step, 0, state)[1]
    sums = jax.tree.map(lambda metric: jnp.zeros(metric.shape, metric.dtype), shapes)
    none = jnp.asarray(-1, jnp.int32)
    state, sums, diverged = jax.lax.fori_loop(first, stop, accumulate, (state, sums, none))
    # A finite gradient, too, can lead out of the finite numbers; the next step's loss would tell,
    # but there may be none.
    lost = (diverged < 0) & ~jnp.isfinite(optax.tree.norm(state.params))
    return state, sums, jnp.where(lost, stop - 1, diverged)


# Of a step: uint8 images, which of them are its batch, and the batch's labels and `from_memory`.
_Samples = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array, jax.Array]]


def _resident(program: Program, data: TaskData, key: jax.Array) -> _Samples:
    """The samples of an epoch, drawn from images on the device."""
    draw = epoch_batches(key, data.new, data.memory, program.batch_size)

    def samples(step):
        indices, from_memory = draw(step)
        if program.batch_sharding is not None:
            # Every device draws the whole batch. XLA would rather split the drawing, with
            # communication inside its branches, where it may come in another order on each device:
            # on CPU the devices then wait for each other without end.
            everywhere = parallel.replicated(program.batch_sharding)
            indices, from_memory = jax.lax.with_sharding_constraint(
                (indices, from_memory), everywhere
            )
        return data.dataset.images, indices, data.dataset.labels[indices], from_memory

    return samples


def _streamed(block: Block, first: jax.Array) -> _Samples:
    """The samples of the steps from `first` on, drawn before and read on the host."""

    def samples(step):
        images, labels, from_memory = jax.tree.map(
            lambda of_steps: of_steps[step - first],
            (block.images, block.labels, block.from_memory),
        )
        return images, jnp.arange(len(images)), labels, from_memory

    return samples


class CompiledEpoch:
    """`train_steps` of one program, jitted with the state donated.

    Attributes:
      traces: how often it was traced; one for a whole lifetime.
    """

    def __init__(self, program: Program):
        self.program = program
        self.traces = 0
        everywhere = arguments = None
        if program.batch_sharding is not None:
            # Keys and scalars are everywhere too, as the devices may be other processes'.
            everywhere = parallel.replicated(program.batch_sharding)
            names = [field.name for field in dataclasses.fields(TaskData)]
            data = TaskData(**dict.fromkeys(names, everywhere))
            data = data.replace(block=parallel.split_blocks(program.batch_sharding))
            arguments = (everywhere, data, *[everywhere] * 4)
        self._steps = jax.jit(
            self._traced,
            donate_argnames=("state",),
            in_shardings=arguments,
            out_shardings=everywhere,
        )

    def _traced(self, state: TrainState, *args):
        self.traces += 1  # runs when JAX traces, not when the program runs
        return train_steps(self.program, state, *args)

    def __call__(
        self,
        state: TrainState,
        data: TaskData,
        first: int,
        stop: int,
        learning_rate: float,
        key: jax.Array,
    ) -> tuple[TrainState, Metrics, jax.Array]:
        """Arguments and results as of `train_steps`, without `program`; `state` is consumed."""
        return self._steps(state, data, *_scalars(first, stop, learning_rate), key)

    def trace(
        self,
        state: TrainState,
        data: TaskData,
        first: int,
        stop: int,
        learning_rate: float,
        key: jax.Array,
    ) -> jax.stages.Traced:
        """What such a call runs, to be lowered and looked at; arrays may be shapes.

        Shapes with shardings tell the devices, which need not be there.
        """
        scalars = jax.eval_shape(lambda: _scalars(first, stop, learning_rate))
        return self._steps.trace(state, data, *scalars, key)


def _scalars(first: int, stop: int, learning_rate: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of fixed dtypes, or another kind of number would be traced again."""
    return (
        jnp.asarray(first, jnp.int32),
        jnp.asarray(stop, jnp.int32),
        jnp.asarray(learning_rate, jnp.float32),
    )


def cosine_schedule(learning_rate: float, final_learning_rate: float, epochs: int) -> list[float]:
    """Learning rate of each epoch: lr at the first, falling along a half cosine.

    lr_e = final + (lr - final) (1 + cos(π e / epochs)) / 2, constant within an epoch, as PyTorch's
    CosineAnnealingLR stepped once an epoch.
    """
    schedule = optax.cosine_decay_schedule(
        learning_rate, decay_steps=epochs, alpha=final_learning_rate / learning_rate
    )
    return [float(schedule(epoch)) for epoch in range(epochs)]


@dataclasses.dataclass(frozen=True)
class Position:
    """How far the training of a task has come.

    Attributes:
      history: metrics of each finished epoch, means over its steps.
      step: finished steps of the epoch after these.
      sums: of the metrics over these steps.
    """

    history: tuple[dict[str, float], ...] = ()
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def after(
        self, sums: dict[str, float], stop: int, num_steps: int, learning_rate: float
    ) -> "Position":
        """The position after the steps up to `stop`, with the metrics' sums over them."""
        sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        if stop < num_steps:
            return Position(self.history, stop, sums)
        means = {name: total / num_steps for name, total in sums.items()}
        return Position((*self.history, means | {"learning_rate": learning_rate}))


def _calls(
    position: Position, num_epochs: int, num_steps: int, steps_per_call: int
) -> list[tuple[int, int, int]]:
    """Epoch, first step and one past the last of each call from a position to the end."""
    return [
        (epoch, first, min(first + steps_per_call, num_steps))
        for epoch in range(position.epoch, num_epochs)
        for first in range(
            position.step if epoch == position.epoch else 0, num_steps, steps_per_call
        )
    ]


def _data_of_calls(
    program: Program,
    data: TaskData,
    calls: Sequence[tuple[int, int, int]],
    key: jax.Array,
    steps_per_call: int,
) -> Iterator[TaskData]:
    """What each call is given, on the devices."""
    if not isinstance(data.dataset, HostDataset):
        data = parallel.replicate(data, program.batch_sharding)
        yield from itertools.repeat(data, len(calls))
        return
    streamed = blocks(
        data.dataset,
        data.new,
        data.memory,
        [(epoch, first) for epoch, first, _ in calls],
        key,
        batch_size=program.batch_size,
        steps_per_call=steps_per_call,
        batch_sharding=program.batch_sharding,
    )
    data = parallel.replicate(data.replace(dataset=None), program.batch_sharding)
    with contextlib.closing(streamed):
        for block in streamed:
            yield data.replace(block=block)


def fit(
    epoch: CompiledEpoch,
    state: TrainState,
    data: TaskData,
    learning_rates: Sequence[float],
    key: jax.Array,
    *,
    steps_per_call: int,
    position: Position = Position(),
) -> Iterator[tuple[TrainState, Position]]:
    """Trains from a position to the end, in calls of the compiled program.

    Epoch e uses fold_in(key, e), so that training from a saved state and position goes on exactly
    as if it had never stopped. Images on the host are streamed to the device, a call ahead, with
    the same results; close the generator, where it is not taken to its end, to stop that.

    Args:
      epoch: the compiled program.
      state: what is updated; consumed.
      data: what the task trains with.
      learning_rates: of each epoch, see `cosine_schedule`.
      key: random key of this task.
      steps_per_call: steps between two returns to Python; an epoch's last call may do fewer.
      position: where `state` stands.

    Yields:
      The state after each call, good until the next one is asked for, and its position.

    Raises:
      DivergenceError: if a loss or gradient is not finite.
    """
    num_steps = steps_per_epoch(int(data.new.size), int(data.memory.size), epoch.program.batch_size)
    if epoch.program.batch_sharding is not None:
        # As it comes out of a call, or the next one would be traced and compiled again.
        state = parallel.replicate(state, epoch.program.batch_sharding)
    calls = _calls(position, len(learning_rates), num_steps, steps_per_call)
    with contextlib.closing(
        _data_of_calls(epoch.program, data, calls, key, steps_per_call)
    ) as data_of_calls:
        for (number, first, stop), given in zip(calls, data_of_calls, strict=True):
            rate = learning_rates[number]
            state, sums, diverged = epoch(state, given, first, stop, rate, epoch_key(key, number))
            sums, diverged = jax.device_get((sums, diverged))
            if np.any(diverged >= 0):
                members = np.atleast_1d(diverged)
                earliest = np.where(members < 0, num_steps, members).argmin()
                raise DivergenceError(number, int(members[earliest]), member=int(earliest))
            sums = {name: float(value) for name, value in sums.items()}
            position = position.after(sums, stop, num_steps, rate)
            yield state, position
