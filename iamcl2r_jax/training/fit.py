"""A whole training: calls of the compiled program from where it stands to the end."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax

from iamcl2r_jax.data.sampling import draw_epoch, epoch_key, steps_per_epoch
from iamcl2r_jax.data.streaming import Block, Drawn, HostDataset, blocks
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.system import parallel
from iamcl2r_jax.system.errors import DivergenceError, PreemptedError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.resume import Means, ProgressStore
from iamcl2r_jax.training.step import CompiledEpoch, TaskData


def cosine_schedule(learning_rate: float, final_learning_rate: float, epochs: int) -> list[float]:
    """Learning rate of each epoch: lr at the first, falling along a half cosine.

    lr_e = final + (lr - final) (1 + cos(π e / epochs)) / 2, constant within an epoch, as PyTorch's
    CosineAnnealingLR stepped once an epoch.
    """
    schedule = optax.cosine_decay_schedule(
        learning_rate, decay_steps=epochs, alpha=final_learning_rate / learning_rate
    )
    return [float(schedule(epoch)) for epoch in range(epochs)]


def history_of_seed(history: Sequence[Means], index: int) -> list[dict[str, float]]:
    """The metrics of each epoch for one of several seeds trained at once, or for the only one."""
    return [
        {name: value[index] if isinstance(value, list) else value for name, value in of.items()}
        for of in history
    ]


def fit(
    title: str,
    epoch: CompiledEpoch,
    variables: Variables,
    data: TaskData,
    learning_rates: Sequence[float],
    key: jax.Array,
    *,
    store: ProgressStore,
    steps_per_call: int,
    reporter: Reporter,
    preemption: Preemption,
    seeds: Sequence[int] = (),
    on_epoch: Callable[[Sequence[Means]], None] = lambda history: None,
) -> tuple[Variables, Sequence[Means]]:
    """Trains to the end, from where an earlier start of the same training stopped.

    Epoch e uses fold_in(key, e), so that training from a saved state and position goes on exactly
    as if it had never stopped. An epoch's batches are drawn before its first step. Images on the
    host are streamed to the device, a call ahead, with the same results.

    Args:
      title: what is shown as under way, and named in errors.
      epoch: the compiled program.
      variables: where the training begins, if no earlier start left anything.
      data: what the task trains with.
      learning_rates: of each epoch, see `cosine_schedule`.
      key: random key of this task, or of each seed, [S].
      store: what earlier starts left, and where this one saves.
      steps_per_call: steps between two returns to Python; an epoch's last call may do fewer.
      reporter: shows the progress.
      preemption: saves and raises `PreemptedError` once requested.
      seeds: those trained at once, if there are several.
      on_epoch: gets the metrics of all epochs so far, first those of an earlier start, then again
        after every epoch.

    Returns:
      The variables after the last epoch, as NumPy arrays, and the metrics of each epoch.

    Raises:
      DivergenceError: if a loss or gradient is not finite.
    """
    state, position = store.latest(epoch.program.init_state(variables))
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
    with (
        contextlib.closing(of_calls),
        reporter.stage(title, len(learning_rates), done=position.epoch) as stage,
    ):
        if position.epoch or position.step:
            reporter.message(
                f"{title}: continuing after epoch {position.epoch}, step {position.step}"
            )
            on_epoch(position.history)
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
                error = DivergenceError(number, int(of_seeds[earliest]), which)
                store.note_divergence(error, learning_rates)
                raise error
            position = position.after(sums, stop, num_steps, rate)
            if not position.step:
                stage.epoch({name: np.mean(v) for name, v in position.history[-1].items()})
                on_epoch(position.history)
            asked_to_stop = preemption.agreed()
            if asked_to_stop or store.due(position):
                store.save(state, position)
            if asked_to_stop:
                store.wait()
                raise PreemptedError
    store.wait()
    return jax.device_get(state.variables), position.history


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
