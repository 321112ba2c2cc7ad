"""Every method with every backbone, as student and as teacher.

Traced only, not run: a training step of each method on each backbone, taught by the backbone after
it, so that each is a teacher too and never of the student's architecture. Shapes and dtypes of the
new state must be those of the state before, which is what the loop over steps needs. A step of each
method and of each backbone is lowered for GPUs and TPUs, too.

Run: a step of the paper's method on those kinds of backbones that no run of `test_scenarios.py`
trains. Whole runs of every method are in `test_methods.py`, and of every scenario in
`test_scenarios.py`, on networks of two layers.

The networks are cut to two blocks, of the first and of a later stage; how many there are is the
business of the backbones' own tests.
"""

import dataclasses
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import initial_variables, run

from iamcl2r_jax import methods, models, simplex
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.methods import heads
from iamcl2r_jax.training.step import OldModel, Program, TaskData, train_step

K, SIZE, BATCH = 12, 8, 4
NAMES = list(models.BACKBONES)


@cache
def cut(name):
    """The backbone of that name, small."""
    module = models.create(name, K - 1, width=4)
    if hasattr(module, "depth"):
        return module.clone(depth=1)
    # RegNet's stages are four, but may be empty.
    return module.clone(stage_sizes=(1, 0, 0, 1) if hasattr(module, "stage_widths") else (1, 1))


@cache
def expected(name):
    return models.expected_variables(cut(name), SIZE)


def make_program(method, student, teacher):
    method = methods.get(method)
    return Program(
        model=cut(student),
        old_model=cut(teacher) if method.uses_old_model else None,
        loss=method.loss,
        head=method.head,
        image_options=ImageOptions((0.5,) * 3, (0.25,) * 3),
        batch_size=BATCH,
    )


def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes_of_step(program, student, teacher):
    """The arguments of a step."""
    variables, old = (
        heads.attach_expected(expected(name), program.head, K, K - 1) for name in (student, teacher)
    )
    rows = array(bool, K)
    return (
        jax.eval_shape(program.init_state, variables),
        TaskData(
            OldModel(old if program.old_model else {}, array(bool), rows),
            None if heads.is_learnable(program.head) else array(np.float32, K, K - 1),
            classes=methods.Classes(rows, rows, array(np.float32, K, K - 1), array(np.float32, K)),
        ),
        array(np.float32, BATCH, SIZE, SIZE, 3),
        array(np.int32, BATCH),
        array(bool, BATCH),
        array(np.float32),
    )


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("method", methods.METHODS)
def test_traced_step(method, student):
    teacher = NAMES[(NAMES.index(student) + 1) % len(NAMES)]
    program = make_program(method, student, teacher)
    state, *arguments = shapes_of_step(program, student, teacher)
    after, metrics = jax.eval_shape(partial(train_step, program), state, *arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    variables = heads.attach_expected(expected(student), program.head, K, K - 1)
    assert jax.tree.structure(after.variables) == jax.tree.structure(variables)
    assert {(m.shape, m.dtype) for m in jax.tree.leaves(metrics)} == {((), jnp.dtype("float32"))}


@pytest.mark.parametrize(
    ("method", "student"),
    [(method, "resnet18") for method in methods.METHODS] + [("hoc", name) for name in NAMES],
)
def test_a_step_can_be_lowered_for_accelerators(method, student):
    """That every operation has a rule there; no compiler of theirs is needed."""
    program = make_program(method, student, student)
    traced = jax.jit(partial(train_step, program)).trace(*shapes_of_step(program, student, student))
    for platform in ("cuda", "tpu"):
        assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnety_400mf"])
def test_step(name):
    program = make_program("hoc", name, name)
    # RegNet's attention has a bottleneck of one unit, so narrow; with this seed it is alive.
    variables = initial_variables(expected(name), seed=3)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    state = program.init_state(variables)
    after, metrics = run(
        partial(train_step, program),
        state,
        TaskData(OldModel(variables, jnp.asarray(True)), jnp.asarray(simplex.dsimplex(K))),
        images,
        jnp.asarray([11, 10, 9, 9]),
        jnp.zeros(BATCH, bool),
        jnp.asarray(0.1),
    )
    assert all(np.isfinite(value) for value in metrics.values())
    before = dataclasses.replace(state, opt_state=after.opt_state)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, before)
    assert all(jax.tree.leaves((moved.params, moved.batch_stats)))
