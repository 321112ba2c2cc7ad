"""Two teachers at a replacement: the external model, and the model that is replaced."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from iamcl2r_jax import config, methods, models, simplex
from iamcl2r_jax.methods import heads
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import lifelong
from iamcl2r_jax.training.step import OldModel, Program, TaskData, train_step
from iamcl2r_jax.training.task import teachers

K, SIZE, BATCH = 12, 8, 8
READS_OLD = [name for name, method in methods.METHODS.items() if method.uses_old_model]


def program_of(method, weight=None):
    """The program of a method for one teacher, or for two with this share of the replaced one."""
    method, module = methods.get(method), small_runs.Small(K - 1)
    return Program(
        model=module,
        old_model=module,
        loss=method.loss,
        image_options=None,  # only an epoch augments
        batch_size=BATCH,
        head=method.head,
        replaced_model=None if weight is None else module,
        replaced_weight=weight or 0.0,
    )


def world(program):
    """Variables of the new model and of two teachers, the data without teachers, and a batch."""
    rng = np.random.default_rng(0)
    made = []
    for seed in range(3):
        variables = models.init_variables(program.model, jax.random.key(seed), SIZE)
        if heads.is_learnable(program.head):
            variables = heads.attach(variables, heads.random_rows(jax.random.key(seed), K, K - 1))
        made.append(variables)
    row = np.arange(K)
    classes = methods.Classes(
        active=jnp.asarray(row > 3),
        new=jnp.asarray((row > 3) & (row < 8)),
        centres=jnp.asarray(rng.normal(size=(K, K - 1)), jnp.float32),
        boundaries=jnp.zeros(K),
    )
    batch = (
        jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32),
        jnp.asarray(rng.integers(4, K, BATCH), jnp.int32),
        jnp.asarray(np.arange(BATCH) < BATCH // 2),
    )
    frozen = None if heads.is_learnable(program.head) else jnp.asarray(simplex.dsimplex(K))
    return made, TaskData(None, frozen, classes=classes), (*batch, jnp.float32(0.1))


def teacher(variables, known, exists=True):
    row, (first, stop) = np.arange(K), known
    return OldModel(variables, jnp.asarray(exists), jnp.asarray((first <= row) & (row < stop)))


EXTERNAL, DEPLOYED = (0, 4), (8, K)  # the rows that each teacher was trained on


@pytest.mark.parametrize("method", READS_OLD)
def test_terms_of_both_teachers_are_averaged(method):
    weight = 0.25
    one, two = program_of(method), program_of(method, weight)
    (new, external, deployed), data, batch = world(one)
    external, deployed = teacher(external, EXTERNAL), teacher(deployed, DEPLOYED)
    state = one.init_state(new)
    by_external, by_deployed = (
        train_step(one, state, data.replace(old=old), *batch)[1] for old in (external, deployed)
    )
    both = data.replace(old=external, replaced=deployed)
    _, by_both = train_step(two, state, both, *batch)
    assert by_external["loss"] != by_deployed["loss"]
    for name in by_both.keys() - {"grad_norm"}:  # the gradient is linear, its norm is not
        expected = (1 - weight) * by_external[name] + weight * by_deployed[name]
        np.testing.assert_allclose(by_both[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["hoc", "bct_er"])
def test_gradient_is_the_average_and_reaches_no_teacher(method):
    weight = 0.25
    one, two = program_of(method), program_of(method, weight)
    (new, external, deployed), data, batch = world(one)
    external, deployed = teacher(external, EXTERNAL), teacher(deployed, DEPLOYED)
    state = one.init_state(new)

    def moved(program, **teachers):  # momentum starts at zero: a step along the gradient
        after, _ = train_step(program, state, data.replace(**teachers), *batch)
        return jax.tree.map(jnp.subtract, after.params, state.params)

    steps = moved(one, old=external), moved(one, old=deployed)
    averaged = jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, *steps)
    found = moved(two, old=external, replaced=deployed)
    for step, expected in zip(jax.tree.leaves(found), jax.tree.leaves(averaged), strict=True):
        np.testing.assert_allclose(step, expected, atol=1e-6)

    def loss(first, second):
        old, replaced = external.replace(variables=first), deployed.replace(variables=second)
        both = data.replace(old=old, replaced=replaced)
        return train_step(two, state, both, *batch)[1]["loss"]

    for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(external.variables, deployed.variables)):
        assert np.all(np.asarray(leaf) == 0)


@pytest.mark.parametrize("method", ["hoc", "lwf"])
def test_without_a_replaced_model_the_step_is_that_of_one_teacher(method):
    """To rounding, whatever the second teacher's variables hold: they are not read."""
    one, two = program_of(method), program_of(method, 0.5)
    (new, external, other), data, batch = world(one)
    external = teacher(external, EXTERNAL)
    state = one.init_state(new)
    not_there = teacher(jax.tree.map(lambda x: x * np.nan, other), DEPLOYED, exists=False)
    data = data.replace(old=external)
    expected = jax.jit(partial(train_step, one))(state, data, *batch)
    found = jax.jit(partial(train_step, two))(state, data.replace(replaced=not_there), *batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_who_teaches():
    origin, deployed = object(), object()
    c = config.default()

    def of(weight, predecessor, method="hoc"):
        c.method, c.replacements.replaced_weight = method, weight
        return teachers(c, origin, predecessor)

    assert of(0.0, deployed) == (origin,)  # the paper
    assert of(1.0, deployed) == (deployed,)
    assert of(0.5, deployed) == (origin, deployed)
    assert of(0.0, None) == of(1.0, None) == (origin,)
    assert of(0.5, None) == (origin, origin)  # one program for all tasks; it runs once
    assert of(0.0, deployed, "simplex") == ()


def test_a_method_without_an_old_model_refuses_a_second_teacher():
    c = config.default()
    c.method, c.replacements.replaced_weight = "er", 0.5
    with pytest.raises(InputError, match=r"replaced_weight=0\.5: must be 0 with method='er'"):
        config.validate(c)


def run(c, workdir):
    return lifelong.run(c, str(workdir), Reporter())


@pytest.fixture
def replaced_config(tmp_path, monkeypatch):
    """A run of three tasks, replaced at the first and the last, by its share of the old model."""
    small_runs.register(monkeypatch)
    small_runs.write_images(tmp_path)

    def make(weight, method="hoc", backbones=("small", "small")):
        c = small_runs.small_config(tmp_path, method)
        c.replacements.tasks = (0, 2)
        c.replacements.replaced_weight = weight
        c.replacements.checkpoints = tuple(
            small_runs.save_external(
                tmp_path / f"{method}-{weight}-{n}-{name}", c, 3 + n, seed=n, backbone=name
            )
            for n, name in enumerate(backbones)
        )
        return c

    return make


@pytest.mark.parametrize("method", ["hoc", "bct_er"])
def test_runs_with_any_share_in_one_trace(replaced_config, tmp_path, method):
    """Tasks before the second replacement do not depend on the share; that one does."""
    losses = {}
    for weight in (0.0, 0.5, 1.0):
        results = run(replaced_config(weight, method), tmp_path / f"run{weight}")
        assert results["train_traces"] == 1
        records = [
            json.loads((tmp_path / f"run{weight}" / "tasks" / str(t) / "metadata.json").read_text())
            for t in range(3)
        ]
        losses[weight] = [record["about"]["history"][-1]["loss"] for record in records]
    before, last = np.split(np.asarray(list(losses.values())), [2], axis=1)
    np.testing.assert_allclose(before, np.broadcast_to(before[0], before.shape), rtol=1e-3)
    assert np.abs(np.diff(last, axis=0)).min() > 1e-2


def test_runs_across_architectures_and_seeds(replaced_config, tmp_path):
    across = run(replaced_config(0.5, backbones=("small", "wide")), tmp_path / "across")
    assert across["train_traces"] == 2
    c = replaced_config(0.25)
    alone = run(c, tmp_path / "alone")
    c.num_seeds = 2
    run(c, tmp_path / "seeds")
    of_first = json.loads((tmp_path / "seeds" / "seed0" / "results.json").read_text())
    np.testing.assert_allclose(of_first["task_accuracy"], alone["task_accuracy"], atol=0.2)
    matrices = [r["evaluations"]["open"]["matrix"] for r in (of_first, alone)]
    for a, b in zip(*matrices, strict=True):
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), atol=0.2, equal_nan=True
        )
