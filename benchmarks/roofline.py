"""The HOC train step against what the device can do: its matrix rate and its memory bandwidth.

    python benchmarks/roofline.py [--batch-sizes 128 1024] [--width=64] [--dtype=bfloat16]

The ceilings are measured, not read from a data sheet: the fastest of some large matrix products in
float32 (at JAX's default precision, which on a GPU may be TF32) and in bfloat16, and of some sums
y + a x of arrays too large for a cache. The step is that of the program that a run trains with.

- Its arithmetic is what XLA counts in the program as lowered for this platform and not optimised:
  afterwards, a GPU's products and convolutions are calls of libraries, which XLA counts as nothing.
  The body of the loop over steps counts once, so this is one step, and the shuffle of an epoch,
  which is not worth mentioning. All arithmetic counts, a few percent of it outside of products.
  Zeros around a map do not count, though a library may multiply them.
- Its traffic is what XLA counts in the compiled program, and the operands and results of the calls
  of libraries, without their scratch. What a cache keeps is counted as if it came from memory, so a
  share of the roofline may exceed 1 where maps fit into a cache.

The roofline, min(matrix rate, intensity x bandwidth), knows two limits. A step far below it has
others: products too small to fill the device, and what a step takes whatever its batch, such as
starting kernels. The line through the smallest and the largest batch tells how much the latter is.

With JAX_PLATFORMS set it needs the CPU beside the GPU, "cuda,cpu", for XLA's count.

ratio: the step's rate / the device's matrix rate in the same dtype, at the largest batch. A share:
1 would be the most, and it has no goal.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import harness
import hlo
import jax
import jax.numpy as jnp
import synthetic

from iamcl2r_jax.training.step import CompiledEpoch

_RATE = 0.01
_DTYPES = ("float32", "bfloat16")
# Rows of a product's matrices, numbers of a sum's arrays, and how many follow each other in a call.
_CPU_WORK, _ACCELERATOR_WORK, _SMALL_WORK = (2048, 2**26, 1), (8192, 2**29, 16), (64, 2**12, 2)


@partial(jax.jit, static_argnames="number")
def _products(x: jax.Array, matrix: jax.Array, number: int) -> jax.Array:
    return jax.lax.fori_loop(0, number, lambda _, x: x @ matrix, x)


@partial(jax.jit, static_argnames="number", donate_argnames="y")
def _sums(y: jax.Array, x: jax.Array, a: jax.Array, number: int) -> jax.Array:
    return jax.lax.fori_loop(0, number, lambda _, y: y + a * x, y)


def products(size: int, dtype: str, number: int) -> Callable:
    """So many products of [size, size] matrices, one after the other.

    They are random: zeros take less power, and a GPU is then faster than it ever is in training.
    """
    x, matrix = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    matrix = matrix / math.sqrt(size)  # or the numbers would grow from product to product
    return lambda: jax.block_until_ready(_products(x, matrix, number))


def sums(length: int, number: int) -> Callable:
    """So many times y + a x in float32, in place: each reads two arrays and writes one."""
    y, x = (jax.random.normal(jax.random.key(seed), (length,)) for seed in range(2))

    def call():
        nonlocal y
        y = jax.block_until_ready(_sums(y, x, jnp.float32(1e-3), number))

    return call


def counted_flops(traced: jax.stages.Traced, platform: str) -> float:
    """XLA's count for a program as lowered for a platform, the bodies of its loops counted once.

    Args:
      traced: from shapes, which lie on no device.
      platform: that JAX lowers for: "cpu", "cuda", "tpu".
    """
    # JAX counts before compilation only for its CPU client, whatever it lowers for.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return traced.lower(lowering_platforms=(platform,)).cost_analysis()["flops"]


def prepared_step(batch_size: int, steps: int, options: Mapping) -> tuple[Callable, dict[str, Any]]:
    """So many steps in one call, run once, and what is known of one of them without its time."""
    case = synthetic.hoc_case(**options | {"batch_size": batch_size})
    state, key = case.program.init_state(case.variables), jax.random.key(0)
    samples = synthetic.drawn(case.data, key, batch_size)
    given = state, case.data, samples
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
    traced = CompiledEpoch(case.program).trace(*shapes, 0, steps, _RATE, key)
    platform = jax.default_backend()
    # JAX's name for a GPU where it lowers is that of its maker's software.
    flops = counted_flops(traced, "cuda" if platform == "gpu" else platform)
    compiled = traced.lower().compile()
    data = case.data.without_samples()
    scalars = jnp.int32(0), jnp.int32(steps), jnp.float32(_RATE)

    def call():
        nonlocal state, key
        key, here = jax.random.split(key)
        state, sums, _ = compiled(state, data, samples, *scalars, here)
        jax.block_until_ready((state, sums))

    call()
    counts = compiled.cost_analysis()
    return call, {
        "flops": flops,
        "flops_after_optimisation": counts["flops"],
        "bytes": counts["bytes accessed"] + hlo.library_bytes(compiled.as_text()),
        "planned_memory": hlo.device_memory(compiled),
        "peak_bytes_in_use": harness.peak_memory(),
    }


def roofline(
    flops: float, traffic: float, seconds: float, matrix_rate: float, bandwidth: float
) -> dict[str, Any]:
    """Where a step lies under the roofline.

    Args:
      flops: of a step.
      traffic: bytes of a step.
      seconds: of a step.
      matrix_rate: the device's, in FLOP/s.
      bandwidth: the device's, in bytes/s.
    """
    intensity, rate = flops / traffic, flops / seconds
    bound = min(matrix_rate, intensity * bandwidth)
    return {
        "flops_per_second": rate,
        "share_of_matrix_rate": rate / matrix_rate,
        "intensity": intensity,
        "bound": bound,
        "limit": "memory" if bound < matrix_rate else "compute",
        "share_of_roofline": rate / bound,
    }


def fixed_seconds(seconds: Mapping[int, float]) -> float | None:
    """What a step takes whatever its batch size, by the line through the smallest and the largest.

    None for a single batch size.
    """
    small, large = min(seconds), max(seconds)
    if small == large:
        return None
    each = (seconds[large] - seconds[small]) / (large - small)
    return seconds[small] - small * each


def step_rows(batch_size: int, step: Mapping[str, Any], fixed: float | None):
    """What the table tells of one batch size."""
    gflop, rate = step["flops"] / 1e9, step["flops_per_second"] / 1e9
    memory = {name: harness.gigabytes(value) for name, value in step["planned_memory"].items()}
    yield f"batch {batch_size}, a step", harness.milliseconds(step["seconds"])
    yield "  arithmetic", f"{gflop:,.4g} GFLOP, {rate:,.4g} GFLOP/s"
    yield "  share of the matrix rate", f"{step['share_of_matrix_rate']:.3f}"
    yield "  traffic", f"{step['bytes'] / 1e9:,.4g} GB, {step['intensity']:.4g} FLOP/byte"
    yield "  roofline", f"{step['bound'] / 1e9:,.4g} GFLOP/s, by {step['limit']}"
    yield "  share of the roofline", f"{step['share_of_roofline']:.3f}"
    if fixed is not None:
        share = fixed / statistics.median(step["seconds"])
        yield "  of its time, whatever the batch", f"{share:.3f}"
    yield "  memory, by XLA's plan", f"{memory['total']}, {memory['temporary']} of it temporary"
    yield "  peak device memory so far", harness.gigabytes(step["peak_bytes_in_use"])


def main(argv: list[str] | None = None):
    on_gpu, on_cpu = (jax.default_backend() == name for name in ("gpu", "cpu"))
    options = harness.parser(__doc__, repeats=10)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    options.add_argument("--width", type=int, default=64, help="channels of the first stage")
    options.add_argument("--steps", type=int, default=5, help="steps measured together")
    options.add_argument(
        "--dtype",
        choices=_DTYPES,
        default=_DTYPES[0] if on_cpu else _DTYPES[1],
        help="that the step computes in; by default bfloat16, on a CPU float32",
    )
    args = options.parse_args(argv)
    sizes, work = {"width": args.width}, _CPU_WORK if on_cpu else _ACCELERATOR_WORK
    if args.small:
        args.batch_sizes, args.steps, sizes, work = [8], 2, synthetic.SMALL, _SMALL_WORK
    if args.dtype != "float32":
        sizes = sizes | {"dtype": args.dtype}
    # From the smallest on, and before the ceilings: the peak of memory never falls.
    prepared = {b: prepared_step(b, args.steps, sizes) for b in sorted(set(args.batch_sizes))}
    size, length, number = work
    ceilings = {dtype: products(size, dtype, number) for dtype in _DTYPES}
    ceilings["bandwidth"] = sums(length, number)
    measured = harness.in_turn(
        ceilings | {batch_size: call for batch_size, (call, _) in prepared.items()}, args.repeats
    )
    rates = {dtype: number * 2 * size**3 / min(measured[dtype]) for dtype in _DTYPES}
    bandwidth = number * 3 * 4 * length / min(measured["bandwidth"])

    steps = {}
    for batch_size, (_, step) in prepared.items():
        step["seconds"] = [value / args.steps for value in measured[batch_size]]
        seconds = statistics.median(step["seconds"])
        given = step["flops"], step["bytes"], seconds, rates[args.dtype], bandwidth
        steps[batch_size] = step | roofline(*given)
    fixed = fixed_seconds({b: statistics.median(step["seconds"]) for b, step in steps.items()})
    rows = [] if on_gpu else [("device", "not measured on a GPU here")]
    rows += [(f"matrix rate, {name}", f"{rate / 1e9:,.4g} GFLOP/s") for name, rate in rates.items()]
    rows.append(("bandwidth", f"{bandwidth / 1e9:,.4g} GB/s"))
    ridge = rates[args.dtype] / bandwidth
    rows.append(("both limits meet at", f"{ridge:.4g} FLOP/byte, {args.dtype}"))
    for batch_size, step in steps.items():
        rows += step_rows(batch_size, step, fixed)
    figures = {
        "matrix_rates": rates,
        "bandwidth": bandwidth,
        "steps": steps,
        "fixed_seconds": fixed,
        "dtype": args.dtype,
        "sizes": sizes,
        "measured_on_gpu": on_gpu,
    }
    ratio = steps[max(steps)]["share_of_matrix_rate"]
    return harness.finish("roofline", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
