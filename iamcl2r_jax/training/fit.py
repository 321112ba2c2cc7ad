"""A whole training: calls of the compiled program from a position to the end, and its schedule."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import optax

from iamcl2r_jax.data.sampling import draw_epoch, epoch_key, steps_per_epoch
from iamcl2r_jax.data.streaming import Block, Drawn, HostDataset, blocks
from iamcl2r_jax.system import parallel
from iamcl2r_jax.system.errors import DivergenceError
from iamcl2r_jax.training.step import CompiledEpoch, TaskData, TrainState

# Of one epoch, by name; of several seeds a list with the value of each.
Means = dict[str, float | list[float]]


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

    history: tuple[Means, ...] = ()
    step: int = 0
    sums: Means = dataclasses.field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def after(
        self, sums: dict[str, np.ndarray], stop: int, num_steps: int, learning_rate: float
    ) -> "Position":
        """The position after the steps up to `stop`, with the metrics' sums over them."""
        sums = {
            name: np.float64(self.sums.get(name, 0.0)) + np.float64(value)
            for name, value in sums.items()
        }
        if stop < num_steps:
            return Position(self.history, stop, {name: sums[name].tolist() for name in sums})
        means = {name: (total / num_steps).tolist() for name, total in sums.items()}
        return Position((*self.history, means | {"learning_rate": learning_rate}))


def history_of_seed(history: Sequence[Means], index: int) -> list[dict[str, float]]:
    """The metrics of each epoch for one of several seeds trained at once, or for the only one."""
    return [
        {name: value[index] if isinstance(value, list) else value for name, value in of.items()}
        for of in history
    ]


def fit(
    epoch: CompiledEpoch,
    state: TrainState,
    data: TaskData,
    learning_rates: Sequence[float],
    key: jax.Array,
    *,
    steps_per_call: int,
    position: Position = Position(),
    title: str = "training",
    seeds: Sequence[int] = (),
) -> Iterator[tuple[TrainState, Position]]:
    """Trains from a position to the end, in calls of the compiled program.

    Epoch e uses fold_in(key, e), so that training from a saved state and position goes on exactly
    as if it had never stopped. An epoch's batches are drawn before its first step. Images on the
    host are streamed to the device, a call ahead, with the same results; close the generator, where
    it is not taken to its end, to stop that.

    Args:
      epoch: the compiled program.
      state: what is updated; consumed.
      data: what the task trains with.
      learning_rates: of each epoch, see `cosine_schedule`.
      key: random key of this task, or of each seed, [S].
      steps_per_call: steps between two returns to Python; an epoch's last call may do fewer.
      position: where `state` stands.
      title, seeds: name the training in errors.

    Yields:
      The state after each call, good until the next one is asked for, and its position.

    Raises:
      DivergenceError: if a loss or gradient is not finite.
    """
    num_steps = steps_per_epoch(int(data.new.size), int(data.memory.size), epoch.program.batch_size)
    if epoch.program.batch_sharding is not None:
        # As it comes out of a call, or the next one would be traced and compiled again.
        state = parallel.replicate(state, epoch.program.batch_sharding)
    calls = [
        (number, first, min(first + steps_per_call, num_steps))
        for number in range(position.epoch, len(learning_rates))
        for first in range(
            position.step if number == position.epoch else 0, num_steps, steps_per_call
        )
    ]
    of_calls = _samples_of_calls(epoch, data, calls, key, steps_per_call)
    with contextlib.closing(of_calls):
        for (number, first, stop), (data, samples) in zip(calls, of_calls, strict=True):
            rate = learning_rates[number]
            state, sums, diverged = epoch(
                state, data, samples, first, stop, rate, epoch_key(key, number)
            )
            sums, diverged = jax.device_get((sums, diverged))
            if np.any(diverged >= 0):
                of_seeds = np.atleast_1d(diverged)
                earliest = int(np.where(of_seeds < 0, num_steps, of_seeds).argmin())
                which = f"{title}, seed {seeds[earliest]}" if seeds else title
                raise DivergenceError(number, int(of_seeds[earliest]), which)
            position = position.after(sums, stop, num_steps, rate)
            yield state, position


def _samples_of_calls(
    epoch: CompiledEpoch,
    data: TaskData,
    calls: Sequence[tuple[int, int, int]],
    key: jax.Array,
    steps_per_call: int,
) -> Iterator[tuple[TaskData, Drawn | Block]]:
    """The data on the devices and, for each call, the batches of its steps."""
    size, sharding = epoch.program.batch_size, epoch.program.batch_sharding
    new, memory = data.new, data.memory
    if not isinstance(data.dataset, HostDataset):
        data, drawn_epoch = parallel.replicate(data, sharding), None
        for number, *_ in calls:
            if number != drawn_epoch:
                drawn = draw_epoch(epoch_key(key, number), new, memory, size)
                samples = Drawn(data.dataset, *parallel.replicate(drawn, sharding))
                drawn_epoch = number
            yield data, samples
        return
    streamed = blocks(
        data.dataset,
        new,
        memory,
        [(number, first) for number, first, _ in calls],
        key,
        batch_size=size,
        steps_per_call=steps_per_call,
        batch_sharding=sharding,
    )
    data = parallel.replicate(data.replace(dataset=None), sharding)
    with contextlib.closing(streamed):
        for block in streamed:
            yield data, block
