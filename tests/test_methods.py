"""Every compared system: its loss against a naive loop, its head, and a whole run of it."""

import dataclasses
import math
import shutil
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from ml_collections import ConfigDict

from iamcl2r_jax import config, losses, methods, models, retrieval, simplex
from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.evaluation.features import forward_map
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.centres import ClassCentres
from iamcl2r_jax.models import stored
from iamcl2r_jax.system import files, values
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import context, external, lifelong, reevaluation, runs
from iamcl2r_jax.training import task as task_module
from iamcl2r_jax.training.step import OldModel, Program, TaskData, train_step

K, D, BATCH, SIZE = 10, 9, 8, 8
EARLIER, NEW, UNSEEN = (9, 8, 7), (6, 5), (4, 3, 2, 1, 0)
LEARNABLE = [name for name, m in methods.METHODS.items() if heads.is_learnable(m.head)]


def mask(rows):
    return np.isin(np.arange(K), rows)


def random_inputs(method, seed=0, *, first_task=False):
    """`LossInputs` of one batch, half of it memory; in a first task from scratch nothing is old."""
    rng = np.random.default_rng(seed)
    features, old = rng.normal(size=(2, BATCH, D))
    rows, old_rows, centres = rng.normal(size=(3, K, D))
    earlier = () if first_task else EARLIER
    half = BATCH // 2
    labels = rng.choice(NEW, BATCH)
    if not first_task:
        labels[:half] = rng.choice(EARLIER, half)
    return methods.LossInputs(
        features=features,
        old_features=old,
        has_old=np.asarray(not first_task),
        labels=labels,
        from_memory=np.arange(BATCH) < (0 if first_task else half),
        logits=np.asarray(heads.scores(methods.get(method).head, features, rows)),
        rows=rows,
        classes=methods.Classes(
            active=mask((*earlier, *NEW)),
            new=mask(NEW),
            centres=np.where(mask(earlier)[:, None], centres / 3, 0.0),
            boundaries=rng.uniform(0.2, 0.9, K),
        ),
        known=mask(earlier),
        old_head_logits=features @ old_rows.T,
        old_logits=old @ old_rows.T,
    )


# The naive losses: loops over samples and classes, in float64, from the equations alone.


def unit(vector):
    return vector / math.sqrt(sum(v * v for v in vector))


def cos(a, b):
    return float(np.dot(unit(a), unit(b)))


def nll(logits, label, rows):
    """-log softmax over `rows`."""
    return math.log(sum(math.exp(logits[k]) for k in rows)) - logits[label]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def rows_where(flags):
    return [k for k in range(K) if flags[k]]


def naive_ce(i, rows=range(K)):
    return mean(nll(z, y, rows) for z, y in zip(i.logits, i.labels, strict=True))


def naive_cosine_ce(i, temperature, angular_margin=0.0):
    active = rows_where(i.classes.active)
    terms = []
    for f, y in zip(i.features, i.labels, strict=True):
        angles = [math.acos(cos(f, w)) + angular_margin * (k == y) for k, w in enumerate(i.rows)]
        terms.append(nll([math.cos(angle) / temperature for angle in angles], y, active))
    return mean(terms)


def naive_hoc(i, *, ce_weight=0.1, mu=10.0):
    if not i.has_old:
        return naive_ce(i)
    total = 0.0
    for n in range(BATCH):
        candidates = [
            0.0 if i.labels[m] == i.labels[n] else mu * cos(i.old_features[n], i.features[m])
            for m in range(BATCH)
        ]
        total += math.log(sum(map(math.exp, candidates)))
        total -= mu * cos(i.old_features[n], i.features[n])
    return ce_weight * naive_ce(i) + (1 - ce_weight) * total / BATCH


def naive_fd(i, samples):
    return mean(1 - cos(i.features[n], i.old_features[n]) for n in samples)


def naive_simplex_fd(i, *, base_weight=5.0):
    memory = [n for n in range(BATCH) if i.from_memory[n]]
    new, earlier = sum(i.classes.new), sum(i.classes.active) - sum(i.classes.new)
    weight = base_weight * math.sqrt(new / earlier) if memory else 0.0
    return naive_ce(i) + weight * naive_fd(i, memory)


def naive_er(i):
    return naive_ce(i, rows_where(i.classes.active))


def naive_bct_er(i, *, influence_weight=1.0):
    known = rows_where(i.known)
    influence = mean(
        nll(i.old_head_logits[n], i.labels[n], known) for n in range(BATCH) if i.labels[n] in known
    )
    return naive_er(i) + influence_weight * influence


def naive_cvs(i, *, temperature=0.05, triplet_weight=10.0, margin=0.1, centre_weight=1.0):
    def distance(a, b):
        return math.sqrt(sum((unit(a) - unit(b)) ** 2))

    triplets, centres = [], []
    for n in range(BATCH):
        others = [m for m in range(BATCH) if i.labels[m] != i.labels[n]]
        if i.has_old and others:
            negative = min(distance(i.features[n], i.old_features[m]) for m in others)
            positive = distance(i.features[n], i.old_features[n])
            triplets.append(max(positive - negative + margin, 0.0))
        if i.classes.active[i.labels[n]] and not i.classes.new[i.labels[n]]:
            centre = i.classes.centres[i.labels[n]]
            centres.append(sum((centre - unit(i.features[n])) ** 2))
    total = naive_cosine_ce(i, temperature) + triplet_weight * mean(triplets)
    return total + centre_weight * mean(centres)


def naive_lwf(i, *, temperature=2.0, distillation_weight=1.0):
    known = rows_where(i.known)
    kd = 0.0
    for n in range(BATCH) if known else ():
        new, old = i.old_head_logits[n] / temperature, i.old_logits[n] / temperature
        mass = sum(math.exp(old[k]) for k in known)
        kd += sum(math.exp(old[k]) / mass * nll(new, k, known) for k in known) / BATCH
    return naive_er(i) + distillation_weight * kd


def naive_lucir(
    i, *, temperature=0.05, base_weight=5.0, ranking_weight=1.0, margin=0.5, num_negatives=2
):
    new, earlier = sum(i.classes.new), sum(i.classes.active) - sum(i.classes.new)
    total = naive_cosine_ce(i, temperature)
    total += base_weight * math.sqrt(earlier / new) * naive_fd(i, range(BATCH))
    terms = []
    for n in range(BATCH):
        if i.from_memory[n]:
            own = cos(i.features[n], i.rows[i.labels[n]])
            others = [cos(i.features[n], i.rows[k]) for k in rows_where(i.classes.new)]
            hardest = sorted(others, reverse=True)[:num_negatives]
            terms += [max(margin - own + other, 0.0) for other in hardest]
    return total + ranking_weight * mean(terms)


def naive_lce_er(i, *, scale=16.0, angular_margin=0.1, alignment_weight=100.0, boundary_weight=1.0):
    earlier = [k for k in range(K) if i.classes.active[k] and not i.classes.new[k]]
    alignment = mean(sum((unit(i.rows[k]) - unit(i.classes.centres[k])) ** 2) / D for k in earlier)
    boundary = mean(
        max(i.classes.boundaries[y] - cos(f, i.classes.centres[y]), 0.0)
        for f, y in zip(i.features, i.labels, strict=True)
        if y in earlier
    )
    total = naive_cosine_ce(i, 1 / scale, angular_margin) + alignment_weight * alignment
    return total + boundary_weight * boundary


NAIVE = {
    "hoc": (naive_hoc, {"ce_weight": 0.3, "mu": 4.0}),
    "simplex": (naive_ce, {}),
    "simplex_fd": (naive_simplex_fd, {"base_weight": 2.0}),
    "er": (naive_er, {}),
    "bct_er": (naive_bct_er, {"influence_weight": 0.7}),
    "cvs": (
        naive_cvs,
        {"temperature": 0.2, "triplet_weight": 3.0, "margin": 0.4, "centre_weight": 2.0},
    ),
    "lwf": (naive_lwf, {"temperature": 1.5, "distillation_weight": 0.6}),
    "fan": (naive_lwf, {"temperature": 1.5, "distillation_weight": 0.6}),
    "lucir": (
        naive_lucir,
        {
            "temperature": 0.2,
            "base_weight": 2.0,
            "ranking_weight": 3.0,
            "margin": 0.8,
            "num_negatives": 1,
        },
    ),
    "lce_er": (
        naive_lce_er,
        {"scale": 4.0, "angular_margin": 0.3, "alignment_weight": 7.0, "boundary_weight": 2.0},
    ),
    "cores": (naive_ce, {}),
}


def test_every_method_has_a_naive_loop_and_every_option_another_value():
    assert NAIVE.keys() == methods.METHODS.keys()
    for name, (_, others) in NAIVE.items():
        defaults = values.defaults(methods.get(name).loss)
        assert all(defaults[option] != value for option, value in others.items())
        assert defaults.keys() - others.keys() <= {"exclude_same_class"}  # see test_losses.py


@pytest.mark.parametrize("first_task", [False, True])
@pytest.mark.parametrize("name", methods.METHODS)
def test_total_equals_the_naive_loop(name, first_task):
    naive, others = NAIVE[name]
    loss = methods.get(name).loss
    with jax.enable_x64(True):
        for options in ({}, others):
            inputs = random_inputs(name, first_task=first_task)
            total, terms = jax.jit(partial(loss, **options))(inputs)
            np.testing.assert_allclose(total, naive(inputs, **options), rtol=1e-9)
            assert all(np.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("first_task", [False, True])
@pytest.mark.parametrize("name", ["bct_er", "cvs", "lwf", "lucir", "lce_er", "simplex_fd"])
def test_gradient_against_finite_differences(name, first_task):
    """Through features, head and what follows from them; and finite when nothing is old."""
    head, loss = methods.get(name).head, methods.get(name).loss
    step = 1e-6
    with jax.enable_x64(True):
        inputs = random_inputs(name, seed=1, first_task=first_task)
        old_rows = jnp.asarray(np.random.default_rng(5).normal(size=(K, D)))

        @jax.jit
        @jax.value_and_grad
        def total(learned):
            features, rows = learned
            return loss(
                inputs.replace(
                    features=features,
                    rows=rows,
                    logits=heads.scores(head, features, rows),
                    old_head_logits=features @ old_rows.T,
                )
            )[0]

        rng = np.random.default_rng(2)
        here = (inputs.features, inputs.rows)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), here)
        _, gradient = total(here)
        ahead, behind = (
            total(jax.tree.map(lambda x, d: x + sign * step * d, here, direction))[0]  # noqa: B023
            for sign in (1, -1)
        )
        along = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
        assert all(np.isfinite(g).all() for g in gradient)
        np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5)


def one_step(name):
    """A program of the method and the arguments of its step after `state`, in mid-stream."""
    method = methods.get(name)
    model = small_runs.Small(D)
    program = Program(
        model=model,
        old_model=model if method.uses_old_model else None,
        loss=method.loss,
        image_options=ImageOptions((0.5,) * 3, (0.25,) * 3),
        batch_size=BATCH,
        head=method.head,
    )

    def variables(seed):
        key = jax.random.key(seed)
        drawn = models.init_variables(model, key, SIZE)
        if heads.is_learnable(method.head):
            drawn = heads.attach(drawn, heads.random_rows(jax.random.fold_in(key, 1), K, D))
        return drawn

    rng = np.random.default_rng(3)
    inputs = jax.tree.map(jnp.asarray, random_inputs(name))
    images = jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
    classifier = None if heads.is_learnable(method.head) else jnp.asarray(simplex.dsimplex(K))
    old = OldModel(variables(1), jnp.asarray(True), inputs.known)
    batch = images, inputs.labels, inputs.from_memory, jnp.asarray(0.1)
    data = TaskData(old, classifier, classes=inputs.classes)
    return program, program.init_state(variables(0)), data, batch


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_gradient_reaches_what_is_old_or_fixed(name):
    program, state, data, batch = one_step(name)
    old, classes = data.old, data.classes

    def loss(variables, classifier, centres, boundaries):
        given = data.replace(
            old=old.replace(variables=variables),
            classifier=classifier,
            classes=classes.replace(centres=centres, boundaries=boundaries),
        )
        _, metrics = train_step(program, state, given, *batch)
        return metrics["loss"]

    frozen = old.variables, data.classifier, classes.centres, classes.boundaries
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*frozen)
    for leaf in jax.tree.leaves(gradients):
        assert np.all(np.asarray(leaf) == 0)


@pytest.mark.parametrize("name", LEARNABLE)
def test_rows_of_unseen_classes_stay_and_take_no_part(name):
    program, state, data, batch = one_step(name)
    step = jax.jit(partial(train_step, program))
    before = np.asarray(heads.rows_of(state.variables))
    after, metrics = step(state, data, *batch)
    again, _ = step(after, data, *batch)  # with momentum
    rows = np.asarray(heads.rows_of(again.variables))
    np.testing.assert_array_equal(rows[list(UNSEEN)], before[list(UNSEEN)])
    assert np.all(np.any(rows[[*EARLIER, *NEW]] != before[[*EARLIER, *NEW]], axis=1))

    # Whatever unseen rows hold, the step is the same.
    other = jnp.where(data.classes.active[:, None], before, 100.0)
    state = program.init_state(heads.attach(state.variables, other))
    changed, changed_metrics = step(state, data, *batch)
    chex.assert_trees_all_equal(metrics, changed_metrics)
    chex.assert_trees_all_equal({**changed.params, "head": None}, {**after.params, "head": None})


@pytest.mark.parametrize("head", [heads.LINEAR, heads.COSINE])
def test_only_active_rows_are_predicted(head):
    features = np.asarray([[1.0, 0.0], [0.1, 1.0]], np.float32)
    rows = np.asarray([[9.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 3.0]], np.float32)
    # W z prefers the long row, the cosine the nearest direction.
    expected = [3, 3] if head == heads.LINEAR else [1, 2]
    active = np.asarray([False, True, True, True])
    np.testing.assert_array_equal(heads.predict(head, features, rows, active), expected)
    assert heads.predict(head, features, rows)[0] == 0


def test_random_rows_are_pytorchs_default():
    rows = np.asarray(heads.random_rows(jax.random.key(0), 100, 64))
    assert np.abs(rows).max() <= 1 / 8
    assert rows.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)


def test_angular_margin_is_finite_where_directions_coincide():
    def loss(new):
        rows = jnp.eye(3)[:2]
        return losses.normalized_softmax(new, rows, jnp.asarray([0, 1]), angular_margin=0.1)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray([[2.0, 0, 0], [3.0, 0, 0]]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


# Whole runs, on a folder of images and the small network.

STREAM, EXTERNAL = 6, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of the stream, of the external models and of the evaluation."""
    root = tmp_path_factory.mktemp("images")
    small_runs.write_images(root, stream=STREAM, external=EXTERNAL, open=4)
    return root


@pytest.fixture(scope="module")
def small_network():
    name = "small"
    models.BACKBONES[name] = partial(small_runs.Small)
    yield name
    del models.BACKBONES[name]


def small_config(folders, backbone, method):
    """Three tasks of two classes, replaced at the first and the last; two recipes in all."""
    c = config.default()
    c.name, c.method, c.num_slots = "small", method, 12
    c.stream.dataset = f"folder:{folders / 'stream'}"
    c.stream.initial_classes = c.stream.increment = 2
    c.memory_per_class = 2
    c.adapter.hidden, c.adapter.steps, c.adapter.batch_size = 16, 300, 4
    c.adapter.learning_rate = 0.01
    c.replacements.tasks = (0, 2)
    c.replacements.classes = (2, 3)
    c.replacements.directory = str(folders / "models")
    c.replacements.recipe.dataset = f"folder:{folders / 'external'}"
    for part in (c, c.replacements.recipe):
        part.image.size, part.image.augmentation_options.crop_flip.padding = SIZE, 1
        part.model.backbone = backbone
        with c.unlocked():
            part.model.options = ConfigDict()
        part.train.epochs, part.train.batch_size = 2, 4
        part.train.learning_rate, part.train.final_learning_rate = 0.05, 0.01
    with c.unlocked():
        c.evaluations = ConfigDict({"open": config.evaluation(f"folder:{folders / 'open'}")})
    c.metrics = ("identification",)
    return c


@pytest.fixture(scope="module")
def run_of(folders, small_network, tmp_path_factory):
    """Runs a method once: its config, workdir and results."""
    done = {}

    def run(method):
        if method not in done:
            c = small_config(folders, small_network, method)
            workdir = tmp_path_factory.mktemp("runs") / method
            done[method] = c, workdir, lifelong.run(c, str(workdir))
        return done[method]

    return run


@pytest.mark.parametrize("name", methods.METHODS)
def test_whole_run_in_one_trace(run_of, name):
    _, workdir, results = run_of(name)
    method = methods.get(name)
    assert results["method"] == name
    assert results["train_traces"] == 1
    assert len(results["task_accuracy"]) == results["num_tasks"] == 3
    assert all(0 <= accuracy <= 1 for accuracy in results["task_accuracy"])
    assert files.read_json(str(workdir / "results.json")) == results
    for path in results["external_models"].values():
        assert stored.load_metadata(path).head == method.external_head
    for task, record in enumerate(runs.task_records(str(workdir))):
        assert stored.load_metadata(runs.task_path(workdir, task)).head == method.head
        assert len(record["memory"]) == (4 * (task + 1) if method.uses_memory else 0)
        assert all(np.isfinite(list(epoch.values())).all() for epoch in record["history"])


@pytest.mark.parametrize("name", LEARNABLE)
def test_head_grows_and_restarts(run_of, name):
    """Random rows until their class arrives; all of them again where the model is replaced."""
    c, workdir, results = run_of(name)
    first, second, replaced = (
        heads.rows_of(runs.load_task(c, str(workdir), task).variables) for task in range(3)
    )
    slots = np.arange(12)
    np.testing.assert_array_equal(first[slots < 8], second[slots < 8])  # classes 4, 5 and no one's
    assert np.all(np.any(first[slots >= 8] != second[slots >= 8], axis=1))  # classes 0 to 3
    assert np.all(np.any(second != replaced, axis=1))
    # The restart is random, not the external model's head, which knew other classes.
    external = load_external(c, results)
    assert np.all(np.any(heads.rows_of(external.variables) != replaced, axis=1))
    start = heads.rows_of(task_module.start_variables(c, 2, external, replaced=True))
    np.testing.assert_array_equal(start[slots < 6], replaced[slots < 6])
    assert np.abs(start).max() <= 1 / math.sqrt(11)


def test_accuracy_is_among_the_classes_seen_so_far(run_of):
    c, workdir, results = run_of("er")
    stream = lifelong.inputs.load_stream(c)
    model = runs.load_task(c, str(workdir), 0)
    setting = setting_of(c, stream)
    extract = setting.programs.features(model.architecture)
    images = stream.test.images[stream.seen_test_indices(0)]
    rows = heads.rows_of(model.variables).copy()
    rows[:10] = 100 * extract(model.variables, images).mean(axis=0)  # wins if it may
    loud = dataclasses.replace(model, variables=heads.attach(model.variables, rows))
    accuracy = task_module.task_accuracy(setting, 0, loud)
    assert accuracy == results["task_accuracy"][0] > 0


def setting_of(c, stream):
    programs = context.ProgramsByArchitecture(c)
    dataset = context.stream_dataset(c, stream, programs)
    return context.Context(c, "", stream, dataset, {}, programs, Reporter(), Preemption())


def load_external(c, results):
    return external.load_external(c, results["external_models"]["2"])


@pytest.mark.parametrize("name", ["cvs", "lce_er", "cores", "fan"])
def test_resumed_run_equals_the_uninterrupted_one(run_of, tmp_path, name):
    """The centres of earlier tasks are found again; the fresh network is the same."""
    c, workdir, results = run_of(name)
    for name in ("config.json", "data.json", "numerics.json"):
        shutil.copy(workdir / name, tmp_path)
    shutil.copytree(workdir / "tasks" / "0", tmp_path / "tasks" / "0")
    resumed = lifelong.run(c, str(tmp_path))
    assert resumed["task_accuracy"] == results["task_accuracy"]
    assert resumed["evaluations"] == results["evaluations"]
    whole, again = (
        runs.load_task(c, str(directory), 2).variables for directory in (workdir, tmp_path)
    )
    chex.assert_trees_all_equal(whole, again)


def test_fan_carries_every_gallery_through_all_later_maps(run_of):
    c, workdir, results = run_of("fan")
    evaluation = lifelong.inputs.load_evaluations(c)["open"]
    models = [runs.load_task(c, str(workdir), task) for task in range(3)]
    programs = context.ProgramsByArchitecture(c)
    matrix = results["evaluations"]["open"]["matrix"]
    for t, model in enumerate(models):
        features = programs.features(model.architecture)
        query = features(model.variables, evaluation.query.images)
        for k in range(t + 1):
            gallery = features(models[k].variables, evaluation.gallery.images)
            for later in models[k + 1 : t + 1]:  # the replaced model is the last
                gallery = forward_map(later)(gallery)
            expected = retrieval.identification_accuracy(
                np.asarray(gallery), evaluation.gallery.labels, query, evaluation.query.labels
            )
            assert matrix[t][k] == expected
    again = reevaluation.reevaluate(str(workdir))
    assert again["evaluations"] == results["evaluations"]


def test_fan_adapts_from_the_model_of_the_task_before(run_of):
    """Also where the model is replaced: from the stored galleries' model, not the external one."""
    c, workdir, _ = run_of("fan")
    records = runs.task_records(str(workdir))
    assert [record["adapter"] is None for record in records] == [True, False, False]
    stream = lifelong.inputs.load_stream(c)
    programs = context.ProgramsByArchitecture(c)
    for task in (1, 2):
        images = stream.train.images[stream.train_indices(task)]
        before, after = (
            programs.features(m.architecture)(m.variables, images)
            for m in (runs.load_task(c, str(workdir), t) for t in (task - 1, task))
        )
        carried = forward_map(runs.load_task(c, str(workdir), task))(before)
        for name, features in (("before", before), ("after", carried)):
            mean_cosine = mean(cos(o, f) for o, f in zip(features, after, strict=True))
            written = records[task]["adapter"][f"cosine_{name}"]
            assert written == pytest.approx(mean_cosine, abs=1e-5)
    assert records[2]["adapter"]["cosine_after"] > 0.9 > records[2]["adapter"]["cosine_before"]


def test_tasks_with_a_learnable_head_can_be_evaluated_again(run_of):
    _, workdir, results = run_of("er")
    assert reevaluation.reevaluate(str(workdir))["evaluations"] == results["evaluations"]


def test_cores_trains_a_fresh_network_on_all_images_so_far(run_of):
    c, workdir, _ = run_of("cores")
    stream = lifelong.inputs.load_stream(c)
    previous = runs.load_task(c, str(workdir), 0)
    fresh = task_module.start_variables(c, 1, previous, replaced=False)
    kernels = [v["params"]["projection"]["kernel"] for v in (fresh, previous.variables)]
    assert np.abs(np.corrcoef(np.ravel(kernels[0]), np.ravel(kernels[1]))[0, 1]) < 0.3
    for task, count in enumerate((10, 20, 30)):
        assert len(task_module.task_indices(c, stream, task)) == count
    assert len(task_module.task_indices(run_of("er")[0], stream, 2)) == 10


def test_centres_are_mean_unit_features():
    rng = np.random.default_rng(0)
    features, more = rng.normal(size=(2, 6, 4)).astype(np.float32)
    rows = np.asarray([3, 3, 1, 3, 1, 1])
    first = ClassCentres.none(5, 4).with_classes(features, rows)
    both = first.with_classes(more, np.full(6, 0))  # of another model: what is there stays
    for row in (1, 3):
        units = [unit(f) for f in features[rows == row]]
        expected = np.mean(units, axis=0)
        np.testing.assert_allclose(both.centres[row], expected, atol=1e-6)
        smallest = min(cos(u, expected) for u in units)
        assert both.boundaries[row] == pytest.approx(smallest, abs=1e-6)
    np.testing.assert_allclose(both.centres[0], np.mean([unit(f) for f in more], 0), atol=1e-6)
    assert not both.centres[[2, 4]].any()
    assert not first.centres[0].any()


def test_earlier_classes_have_centres_and_the_old_head_knows_the_right_rows(run_of):
    c, workdir, results = run_of("cvs")
    stream = lifelong.inputs.load_stream(c)
    model = runs.load_task(c, str(workdir), 0)
    none = ClassCentres.none(12, 11)
    centres = task_module.with_task_centres(setting_of(c, stream), 0, model, none)
    slots = np.arange(12)
    assert (centres.centres.any(axis=1) == (slots >= 10)).all()

    continued = task_module.task_classes(c, stream, 1, centres)
    np.testing.assert_array_equal(continued.earlier, slots >= 10)
    np.testing.assert_array_equal(continued.new, (slots >= 8) & (slots < 10))
    known = model.metadata.known_rows
    np.testing.assert_array_equal(known, slots >= 10)

    external = load_external(c, results)
    replaced = task_module.task_classes(c, stream, 2, centres)
    known = external.metadata.known_rows
    np.testing.assert_array_equal(known, slots < 3)  # its own classes, none of the stream
    np.testing.assert_array_equal(replaced.active, slots >= 6)

    scratch = task_module.task_classes(c, stream, 0, none)
    assert not task_module.first_model(c).metadata.known_rows.any()
    assert not scratch.earlier.any()


@pytest.mark.parametrize("name", ["bct_er", "cvs"])
def test_from_scratch_without_external_models(folders, small_network, tmp_path, name):
    c = small_config(folders, small_network, name)
    c.replacements.tasks = ()
    results = lifelong.run(c, str(tmp_path / "run"))
    assert results["train_traces"] == 1
    assert results["external_models"] == {}
    first = runs.task_records(str(tmp_path / "run"))[0]
    for term in {"influence", "triplet", "centre"} & first["history"][0].keys():
        assert all(epoch[term] == 0 for epoch in first["history"])  # there is nothing old yet


def test_external_model_with_another_head_is_refused(run_of, folders, small_network, tmp_path):
    _, _, results = run_of("hoc")
    c = small_config(folders, small_network, "er")
    c.replacements.checkpoints = tuple(results["external_models"].values())
    with pytest.raises(InputError, match="head='simplex', the run's method needs head='linea"):
        lifelong.run(c, str(tmp_path / "run"))


def test_recipe_with_another_head_is_refused(folders, small_network):
    c = small_config(folders, small_network, "hoc")
    c.replacements.recipe.head = "linear"
    with pytest.raises(InputError, match=r"replacements\.recipe\.head='linear': method='hoc'"):
        config.validate(c)
    c.method = "er"
    config.validate(c)
    c.replacements.recipe.head = "round"
    with pytest.raises(InputError, match="head='round'"):
        config.validate(c)
