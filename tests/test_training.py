import dataclasses
import types
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fitted

from iamcl2r_jax import losses, methods, models, simplex
from iamcl2r_jax.data.augment import ImageOptions, augmented_batch, crop_flip
from iamcl2r_jax.data.sampling import draw_epoch, make_pool, sample_batch, shuffled
from iamcl2r_jax.data.streaming import Dataset, Drawn
from iamcl2r_jax.system.errors import DivergenceError
from iamcl2r_jax.training.fit import cosine_schedule
from iamcl2r_jax.training.step import CompiledEpoch, OldModel, Program, TaskData, train_step

K, SIZE, BATCH = 12, 16, 8
IMAGE = ImageOptions((0.5,) * 3, (0.25,) * 3, partial(crop_flip, padding=2, flip=True))


class Tiny(nn.Module):
    """One linear layer and a normalisation: all kinds of variables, next to no compile time."""

    num_features: int = K - 1

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(self.num_features)(images.reshape(len(images), -1))
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def make_program(method="hoc", **changes):
    model = Tiny()
    program = Program(
        model=model,
        old_model=model if methods.get(method).uses_old_model else None,
        loss=methods.get(method).loss,
        image_options=IMAGE,
        batch_size=BATCH,
    )
    return dataclasses.replace(program, **changes)


def make_arguments(program):
    """What an epoch of the program takes, by argument name."""
    rng = np.random.default_rng(0)
    other = models.init_variables(program.model, jax.random.key(1), SIZE)
    return {
        "variables": models.init_variables(program.model, jax.random.key(0), SIZE),
        "old": OldModel(other, jnp.asarray(True)),
        "classifier": jnp.asarray(simplex.dsimplex(K)),
        "dataset": Dataset.of(
            jnp.asarray(rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)),
            jnp.asarray(rng.integers(0, K, 40), jnp.int32),
        ),
        "new": make_pool(np.arange(20), 24),
        "memory": make_pool(np.arange(20, 30), 16),
    }


@pytest.fixture(scope="module")
def setting():
    program = make_program()
    return program, make_arguments(program)


@pytest.fixture(scope="module")
def epoch(setting):
    return CompiledEpoch(setting[0])


def task_data(given):
    return TaskData(
        given["old"], given["classifier"], given["dataset"], given["new"], given["memory"]
    )


def drawn(data, key):
    """The batches of an epoch, as they are drawn before it."""
    return Drawn(data.dataset, *draw_epoch(key, data.new, data.memory, BATCH))


def run_epoch(epoch, given, *, steps=3, rate=0.1, seed=2, **changes):
    """The state and the metrics' means over the steps."""
    given = given | changes
    state = epoch.program.init_state(given["variables"])
    key, data = jax.random.key(seed), task_data(given)
    state, sums, diverged = epoch(state, data, drawn(data, key), 0, steps, rate, key)
    assert diverged == -1
    return state, {name: total / steps for name, total in sums.items()}


def one_batch(seed=3):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, K, BATCH), jnp.int32), jnp.zeros(BATCH, bool)


def test_no_gradient_reaches_old_model_or_classifier(setting):
    program, given = setting
    state = program.init_state(given["variables"])

    def loss(old_variables, classifier):
        old = OldModel(old_variables, jnp.asarray(True))
        data = TaskData(old, classifier)
        _, metrics = train_step(program, state, data, *one_batch(), jnp.asarray(0.1))
        return metrics["loss"]

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(given["old"].variables, given["classifier"])
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.asarray(leaf) == 0)


def test_only_the_state_is_consumed(setting, epoch):
    _, given = setting
    before = jax.device_get((given["old"], given["classifier"], given["dataset"]))
    run_epoch(epoch, given)
    chex.assert_trees_all_equal(
        jax.device_get((given["old"], given["classifier"], given["dataset"])), before
    )


def test_step_is_pytorch_sgd(setting):
    """v <- m v + (g + wd p) without decay on vectors; p <- p - lr v; two steps, by hand."""
    program, given = setting
    state = program.init_state(given["variables"])
    rate = jnp.asarray(0.05)

    @jax.jit
    def gradient(state, batch):
        images, labels, _ = batch
        old = program.old_model.apply(given["old"].variables, images, train=False)

        def loss(params):
            z, _ = program.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            ce = losses.cross_entropy(z @ given["classifier"].T, labels)
            return 0.1 * ce + 0.9 * losses.hoc_loss(z, old, labels)

        return jax.grad(loss)(state.params)

    step = jax.jit(partial(train_step, program))
    velocity = jax.tree.map(jnp.zeros_like, state.params)
    for seed in (3, 4):
        batch = one_batch(seed)
        velocity = jax.tree.map(
            lambda v, g, p: 0.9 * v + g + (5e-4 * p if p.ndim > 1 else 0.0),
            velocity,
            gradient(state, batch),
            state.params,
        )
        expected = jax.tree.map(lambda p, v: p - rate * v, state.params, velocity)
        state, _ = step(state, TaskData(given["old"], given["classifier"]), *batch, rate)
        chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)


def test_without_old_model_hoc_is_cross_entropy(setting):
    program, given = setting
    images, labels, from_memory = one_batch()
    absent = OldModel(given["old"].variables, jnp.asarray(False))
    state = program.init_state(given["variables"])
    _, hoc = jax.jit(partial(train_step, program))(
        state,
        TaskData(absent, given["classifier"]),
        images,
        labels,
        from_memory,
        jnp.asarray(0.1),
    )
    np.testing.assert_allclose(hoc["loss"], hoc["ce"], rtol=1e-6)


def test_metrics_are_means_over_the_steps(setting, epoch):
    """One epoch of three steps equals three epochs' worth of single steps by hand."""
    program, given = setting
    state, metrics = run_epoch(epoch, given, steps=3)
    by_hand = program.init_state(given["variables"])
    step = jax.jit(partial(train_step, program))
    data = TaskData(given["old"], given["classifier"])
    key_shuffle, key_steps = jax.random.split(jax.random.key(2))
    new = shuffled(key_shuffle, given["new"])
    sums = []
    for index in range(3):
        key_sample, key_augment = jax.random.split(jax.random.fold_in(key_steps, index))
        indices, from_memory = sample_batch(key_sample, index, new, given["memory"], BATCH)
        images = augmented_batch(
            key_augment, given["dataset"].images, indices, program.image_options
        )
        labels = given["dataset"].labels[indices]
        by_hand, one = step(by_hand, data, images, labels, from_memory, 0.1)
        sums.append(one)
    chex.assert_trees_all_close(state.params, by_hand.params, rtol=1e-4, atol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, np.mean([one[name] for one in sums]), rtol=1e-4)


def test_one_trace_for_all_sizes_rates_and_keys(setting):
    """Of the epoch's program, and in it of the step."""
    program, given = setting
    steps_traced = []

    def loss(*args):
        steps_traced.append(1)
        return program.loss(*args)

    epoch = CompiledEpoch(dataclasses.replace(program, loss=loss))
    for size, steps, rate in ((20, 2, 0.1), (5, 1, 0.01), (24, 3, 0.001)):
        for memory in (0, 10):
            run_epoch(
                epoch,
                given,
                steps=steps,
                rate=rate,
                seed=size,
                new=make_pool(np.arange(size), 24),
                memory=make_pool(np.arange(20, 20 + memory), 16),
            )
    assert epoch.traces == len(steps_traced) == 1


def test_same_key_same_result_other_key_other_result(setting, epoch):
    _, given = setting
    first, _ = run_epoch(epoch, given, seed=2)
    again, _ = run_epoch(epoch, given, seed=2)
    other, _ = run_epoch(epoch, given, seed=5)
    chex.assert_trees_all_equal(first.params, again.params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(first.params, other.params)


def test_learning_rate_zero_changes_no_parameter(setting, epoch):
    _, given = setting
    state, _ = run_epoch(epoch, given, rate=0.0)
    chex.assert_trees_all_equal(state.params, given["variables"]["params"])
    with pytest.raises(AssertionError):  # but running statistics are tracked
        chex.assert_trees_all_equal(state.batch_stats, given["variables"]["batch_stats"])


def test_simplex_training_learns():
    """A separable toy set, through the compiled epoch: from chance to nearly all right."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 16).astype(np.int32)
    colours = np.asarray([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]])
    images = np.clip(
        colours[labels][:, None, None] + rng.normal(0, 20, (64, SIZE, SIZE, 3)), 0, 255
    )
    epoch = CompiledEpoch(make_program("simplex"))
    variables = models.init_variables(epoch.program.model, jax.random.key(0), SIZE)
    data = TaskData(
        OldModel({}, jnp.asarray(False)),
        jnp.asarray(simplex.dsimplex(K)),
        Dataset.of(jnp.asarray(images, jnp.uint8), jnp.asarray(labels)),
        make_pool(np.arange(64), 64),
        make_pool(np.zeros(0, np.int32), 64),
    )
    rates = cosine_schedule(0.02, 0.001, 8)
    *_, (_, position) = fitted(epoch, variables, data, rates, jax.random.key(1), steps_per_call=100)
    history = position.history
    assert len(history) == 8
    assert history[0]["accuracy"] < 0.6
    assert history[-1]["accuracy"] > 0.9
    assert history[-1]["loss"] < history[0]["loss"]


def test_cosine_schedule_by_hand():
    rates = cosine_schedule(1.0, 0.2, 4)
    expected = [0.2 + 0.8 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[0] == pytest.approx(1.0)


def test_divergence_names_epoch_and_step(setting, epoch):
    _, given = setting
    arguments = given["variables"], task_data(given), [1e20] * 5, jax.random.key(0)
    with pytest.raises(DivergenceError, match=r"epoch \d+, step \d+: loss or gradient"):
        fitted(epoch, *arguments, steps_per_call=2)


@pytest.mark.parametrize(
    ("told", "step", "seed"), [([-1, 3, 2], 2, 9), ([2, 2, 3], 2, 7), ([-1, 0, -1], 0, 8)]
)
def test_of_seeds_trained_at_once_the_first_to_diverge_is_named(setting, told, step, seed):
    _, given = setting

    class Told:
        """Stands in for the compiled program."""

        program = types.SimpleNamespace(
            batch_size=2, batch_sharding=None, init_state=lambda variables: None
        )

        def __call__(self, state, *_):
            return state, {"loss": np.float32(np.nan)}, np.asarray(told, np.int32)

    options = {"steps_per_call": 4, "title": "all", "seeds": [7, 8, 9]}
    with pytest.raises(DivergenceError) as error:
        fitted(Told(), None, task_data(given), [0.1], jax.random.key(0), **options)
    found = error.value.epoch, error.value.step, error.value.training
    assert found == (0, step, f"all, seed {seed}")


def test_first_step_with_a_gradient_that_is_not_finite_is_told(setting, epoch):
    """From parameters that are not finite, the first; the steps after it do not hide it."""
    _, given = setting
    broken = jax.tree.map(lambda p: p * jnp.nan, given["variables"])
    state = epoch.program.init_state(broken)
    key, data = jax.random.key(0), task_data(given)
    _, _, diverged = epoch(state, data, drawn(data, key), 1, 4, 0.1, key)
    assert diverged == 1


def test_parameters_that_a_finite_gradient_leads_out_of_the_numbers_are_told(setting, epoch):
    """At the last step no further loss would show it."""
    _, given = setting
    state = epoch.program.init_state(given["variables"])
    key, data = jax.random.key(0), task_data(given)
    state, sums, diverged = epoch(state, data, drawn(data, key), 0, 1, 3e38, key)
    assert all(np.isfinite(value) for value in sums.values())
    assert diverged == 0


@pytest.mark.parametrize("steps_per_call", [1, 2, 100])
def test_training_in_parts_is_training_at_once(setting, epoch, steps_per_call):
    """Whatever the parts, and when it goes on from any state and position in between."""
    _, given = setting
    rates, key = [0.1, 0.05], jax.random.key(3)

    def trained(**options):
        return fitted(epoch, given["variables"], task_data(given), rates, key, **options)

    expected, at_once = trained(steps_per_call=100)[-1]
    options = {"steps_per_call": steps_per_call}
    for state, position in trained(**options):
        rest = trained(start=jax.tree.map(jnp.array, state), position=position, **options)
        state, position = [(state, position), *rest][-1]
        chex.assert_trees_all_equal(state, expected)
        for ours, theirs in zip(position.history, at_once.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
