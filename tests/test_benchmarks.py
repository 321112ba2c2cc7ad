"""The benchmarks at their smallest: that they run, and compare like with like. Times prove nothing.

compile_time.py, devices.py, first_step.py and gpu_protocol.py take longer than a test may, and are
not run here.
"""

import importlib
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iamcl2r_jax import losses
from iamcl2r_jax.models.conv import conv2d
from iamcl2r_jax.training.step import CompiledEpoch

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports one of them as `python benchmarks/NAME.py` does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(module, tmp_path, capsys, *options):
    """What it wrote, after a look at what it printed."""
    path = tmp_path / "figures.json"
    module.main(["--small", f"--json={path}", *options])
    written = json.loads(path.read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"ratio: {written['ratio']:.4g}"
    return written


def test_turns_are_taken_and_warming_up_is_not_counted(load):
    calls = []
    actions = {name: lambda n=name: calls.append(n) for name in "ab"}
    seconds = load("harness").in_turn(actions, 2, warm_up=1)
    assert calls == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_both_sides_have_one_loss(load):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(2, 12, 7)).astype(np.float32)
    rows = rng.normal(size=(8, 7)).astype(np.float32)
    labels = rng.integers(0, 4, 12)
    contrast = losses.hoc_loss(jnp.asarray(new), jnp.asarray(old), jnp.asarray(labels))
    ce = losses.cross_entropy(jnp.asarray(new @ rows.T), jnp.asarray(labels))
    arrays = map(torch.from_numpy, (new, old, rows, labels))
    theirs = load("torch_baseline").hoc_objective(*arrays)
    np.testing.assert_allclose(0.1 * ce + 0.9 * contrast, theirs.numpy(), rtol=1e-5)


def test_train_step(load, tmp_path, capsys):
    pytest.importorskip("torch")
    written = run(load("train_step"), tmp_path, capsys, "--repeats=1", "--two-teachers")
    assert set(written["seconds_per_step"]) == {
        "ours",
        "ours, two teachers",
        "PyTorch eager, contiguous",
        "PyTorch eager, channels_last",
    }


def test_a_train_step_that_differs_is_not_timed(load):
    """The teacher is another one; the program is the one that the test above compiled."""
    pytest.importorskip("torch")
    synthetic, train_step = load("synthetic"), load("train_step")
    case = synthetic.hoc_case(**synthetic.SMALL)
    others = synthetic.random_variables(case.program.model, seed=9)
    trainer = load("torch_baseline").Trainer.of(
        others, case.data, case.program.image_options, case.program.batch_size, learning_rate=0.01
    )
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        train_step.assert_same_losses(case, CompiledEpoch(case.program), trainer)


def test_features(load, tmp_path, capsys):
    pytest.importorskip("torch")
    run(load("features"), tmp_path, capsys, "--repeats=1")


def test_evaluation_needs_a_pass_per_model(load, tmp_path, capsys):
    written = run(load("evaluation"), tmp_path, capsys)
    assert written["passes"] == {"ours": 3, "pairwise": 6}


def test_data_path(load, tmp_path, capsys):
    written = run(load("data_path"), tmp_path, capsys)
    assert 0 < written["ratio"] < 1


@pytest.mark.slow  # test_lifelong counts the traces of a run with replacements
def test_one_trace(load, tmp_path, capsys):
    written = run(load("traces"), tmp_path, capsys)
    assert (written["traces"], written["tasks"]) == (1, 4)


def test_roofline(load, tmp_path, capsys):
    """The program is the one that test_train_step compiled."""
    written = run(load("roofline"), tmp_path, capsys, "--repeats=1")
    (step,) = written["steps"].values()
    assert (
        written["ratio"] == step["flops"] / step["seconds"][0] / written["matrix_rates"]["float32"]
    )
    assert step["planned_memory"]["temporary"] > 0


@pytest.mark.parametrize(
    ("platform", "size", "pairs"),
    [("cpu", 1, 16), ("cuda", 1, 16), ("cpu", 3, 16 * 9), ("cuda", 3, 10 * 10)],
)
def test_the_body_of_a_loop_counts_once(load, platform, size, pairs):
    """On a 4x4 map; `pairs` of positions are multiplied, on a GPU those within the image."""

    @jax.jit
    def program(maps, kernel, number):
        def body(_, x):
            return conv2d(x, kernel, padding=size // 2)

        return jax.lax.fori_loop(0, number, body, maps)

    traced = program.trace(jnp.zeros((5, 4, 4, 16)), jnp.zeros((size, size, 16, 16)), 7)
    found = load("roofline").counted_flops(traced, platform)
    assert found == pytest.approx(5 * pairs * 2 * 16 * 16, abs=5)  # and the loop's own arithmetic


def test_calls_of_libraries_are_counted_without_their_scratch(load):
    text = """
ENTRY %main (a: bf16[4,8], b: f32[8,2]) -> f32[4,2] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b.1 = f32[8,2]{1,0} parameter(1)
  %call = (f32[4,2]{1,0}, u8[1024]{0}) custom-call(%a, %b.1), custom_call_target="__cublas$gemm"
  ROOT %first = f32[4,2]{1,0} get-tuple-element(%call), index=0
}
"""
    assert load("hlo").library_bytes(text) == 2 * 32 + 4 * 16 + 4 * 8


def test_the_longest_loop_is_what_a_round_of_it_executes(load):
    text = """
%body.1 (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4]{0} get-tuple-element(%s), index=1
  %f = f32[4]{0} fusion(%x), kind=kLoop, backend_config={"estimated_cycles":"70"}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %f)
}
%short (s: (s32[])) -> (s32[]) {
  %s.1 = (s32[]) parameter(0)
  ROOT %copy = (s32[]) copy(%s.1)
}
ENTRY %main (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %w = (s32[]) while(%q), condition=%never, body=%short
  ROOT %while = (s32[], f32[4]{0}) while(%p), condition=%cond, body=%body.1
}
"""
    steps = load("hlo").longest_loop(text)
    assert [(s.name, s.operation, s.cycles) for s in steps] == [
        ("%f", "fusion", 70),
        ("%next", "add", 0),
    ]
    assert steps[1].operands == ["%i", "%one"]
    assert load("hlo").operations(steps) == {"fusion": 1, "add": 1}
    with pytest.raises(ValueError, match="no loop"):
        load("hlo").longest_loop("ENTRY %main (a: s32[]) -> s32[] {")


def test_what_starts_and_is_done_later_is_one_operation(load):
    text = """
%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %id = u32[] partition-id()
  %r = (f32[4]{0}, f32[4]{0}) all-reduce-start(%x), to_apply=%add
  %c = (f32[4]{0}, f32[4]{0}, u32[]) copy-start(%x)
  %g = f32[8]{0} all-gather(%x), dimensions={0}
  %b = f32[4]{0} custom-call(%x), custom_call_target="ConcatBitcast"
  %rd = f32[4]{0} all-reduce-done(%r)
  ROOT %cd = f32[4]{0} copy-done(%c)
}
ENTRY %main (x: f32[4]) -> f32[4] {
  ROOT %w = f32[4]{0} while(%x), condition=%cond, body=%body
}
"""
    hlo = load("hlo")
    found = hlo.operations(hlo.longest_loop(text))
    assert found == {"all-reduce": 1, "copy": 1, "all-gather": 1}
    assert hlo.exchanges(found) == 2


def test_a_batch_that_devices_cannot_share_is_refused(load, capsys):
    with pytest.raises(SystemExit):
        load("ahead_of_time").main(["--devices=8", "--batch-size=12"])
    assert "--batch-size=12: must be a multiple of --devices" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_program_for_other_devices_is_traced_from_shapes(load, seeds):
    traced = load("ahead_of_time").train_program(
        jax.devices()[:1], seeds, **load("synthetic").SMALL
    )
    options = {"xla_backend_optimization_level": 0}
    assert load("hlo").longest_loop(traced.lower().compile(compiler_options=options).as_text())


def test_a_missing_compiler_is_named(load, monkeypatch, capsys):
    ahead = load("ahead_of_time")

    def refuse(*_, **__):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(ahead.topologies, "get_topology_desc", refuse)
    assert ahead.main(["--target=v5e"]) is None
    assert capsys.readouterr().out == (
        "not compiled for v5e: pip install -e '.[tpu]' (no such compiler)\n"
    )


def test_which_side_of_the_roofline_limits(load):
    roofline = load("roofline")
    low = roofline.roofline(100.0, 50.0, 2.0, matrix_rate=1000.0, bandwidth=100.0)
    assert (low["limit"], low["bound"], low["share_of_roofline"]) == ("memory", 200.0, 0.25)
    assert (low["share_of_matrix_rate"], low["intensity"]) == (0.05, 2.0)
    high = roofline.roofline(100.0, 5.0, 2.0, matrix_rate=1000.0, bandwidth=100.0)
    assert (high["limit"], high["bound"], high["share_of_roofline"]) == ("compute", 1000.0, 0.05)
    assert roofline.fixed_seconds({8: 3.0, 16: 5.0}) == 1.0
    assert roofline.fixed_seconds({8: 3.0}) is None


def test_peak_memory_where_the_device_tells(load, monkeypatch):
    harness = load("harness")
    for told, expected in ((None, None), ({"peak_bytes_in_use": 3}, 3)):
        device = types.SimpleNamespace(memory_stats=lambda told=told: told)
        monkeypatch.setattr(harness.jax, "devices", lambda device=device: [device])
        assert harness.peak_memory() == expected


@pytest.mark.slow
def test_drawing(load, tmp_path, capsys):
    written = run(load("drawing"), tmp_path, capsys, "--repeats=1")
    assert len(written["seconds"]) == 2


def test_service(load, tmp_path, capsys):
    written = run(load("service"), tmp_path, capsys)
    assert written["many"] > 0
    assert written["ratio"] == written["one"] / written["many"]


def test_gallery(load, tmp_path, capsys):
    """Exact search finds what FAISS finds, and an index most of it."""
    pytest.importorskip("faiss")
    written = run(load("gallery"), tmp_path, capsys, "--count=11000")
    assert written["exact recall@10"] == 1
    assert written["IVF16,Flat: recall@10"] > 0.5
    assert written["added meanwhile, items a second"] > 0
