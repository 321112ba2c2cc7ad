"""The train program of an accelerator that is not here: compiled ahead of time, and looked at.

    pip install -e '.[cuda]'    # or '.[tpu]'
    python benchmarks/ahead_of_time.py [--target={h100,h200,v5e,v6e}] [--devices=1] [--seeds=1]
                                       [--batch-size=128] [--dtype=bfloat16]

XLA compiles for a device from its description. So this tells whether the program compiles, how many
instructions the loop over steps holds, on a GPU mostly a kernel or a call of a library each, what
it plans to keep in memory and how often devices exchange what they share. The batches are drawn
before the loop, by another program. It measures no time of a step: on a GPU nothing is tuned
without one, and for a TPU the compiler's own estimate of cycles is given, which leaves out gathers.

ratio: memory planned on a device / memory of that device.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import harness
import hlo
import jax
import synthetic
from jax.experimental import topologies

from iamcl2r_jax.system import parallel
from iamcl2r_jax.training.step import CompiledEpoch

# What XLA knows of a Hopper GPU, in the terms of its GpuTargetConfigProto.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: JAX's name for what lowers to it, and the extra that installs the compiler.
      memory: bytes of one device.
      bandwidth: of its memory, in bytes/s; only a GPU's description asks for it.
    """

    platform: str
    memory: int
    bandwidth: int = 0


TARGETS = {
    "h100": Target("cuda", 80 * 10**9, 3352 * 10**9),
    "h200": Target("cuda", 141 * 10**9, 4800 * 10**9),
    "v5e": Target("tpu", 16 * 2**30),
    "v6e": Target("tpu", 32 * 2**30),
}
# TPUs come in rectangles; of the smallest, fewer devices may be used.
_TPU_SHAPES = {1: "2x2", 2: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_STREAM = 30_000  # images of CIFAR100R


def described_devices(name: str, count: int) -> list[Any]:
    """Devices that need not be there.

    Raises:
      RuntimeError: if the compiler for them is not installed.
    """
    target = TARGETS[name]
    if target.platform == "cuda":
        shape = f"1x1x{count}"  # slices, hosts, and GPUs of a host
        description = _HOPPER.format(
            name=f"NVIDIA {name.upper()}", bandwidth=target.bandwidth, memory=target.memory
        )
        topology = topologies.get_topology_desc(
            shape, "cuda", topology=shape, target_config=description
        )
    else:
        # Without these, libtpu asks a metadata server who it is.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        topology = topologies.get_topology_desc(f"{name}:{_TPU_SHAPES[count]}", "tpu")
    return topology.devices[:count]


def train_program(devices: Sequence[Any], seeds: int, **sizes) -> jax.stages.Traced:
    """An epoch of d-Simplex-HOC on these devices, a batch split over them, traced from shapes."""
    case = synthetic.hoc_case(**sizes)
    split = parallel.split_over(devices)
    whole = parallel.replicated(split) if split else jax.sharding.SingleDeviceSharding(devices[0])
    program = dataclasses.replace(case.program, batch_sharding=split)
    epoch = CompiledEpoch(program, seeds)
    variables, data, key = case.variables, case.data, jax.random.key(0)
    if seeds > 1:
        variables, data, key = jax.eval_shape(lambda: synthetic.at_once(case, seeds))
    samples = jax.eval_shape(lambda d, k: synthetic.drawn(d, k, program.batch_size), data, key)
    state, data, samples, key = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole),
        (jax.eval_shape(program.init_state, variables), data, samples, key),
    )
    return epoch.trace(state, data, samples, 0, 1, 0.01, key)


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__)
    options.add_argument("--target", choices=TARGETS, default="h200")
    options.add_argument("--devices", type=int, choices=_TPU_SHAPES, default=1)
    options.add_argument("--seeds", type=int, default=1, help="trained at once")
    options.add_argument("--batch-size", type=int, default=128, help="over all devices")
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = options.parse_args(argv)
    if args.small:
        args.batch_size = synthetic.SMALL["batch_size"]
    if args.batch_size % args.devices:
        options.error(f"--batch-size={args.batch_size}: must be a multiple of --devices")
    # The arrays that tell the shapes are on the CPU, and no accelerator is looked for.
    jax.config.update("jax_platforms", "cpu")
    target = TARGETS[args.target]
    try:
        devices = described_devices(args.target, args.devices)
    except RuntimeError as error:
        print(f"not compiled for {args.target}: pip install -e '.[{target.platform}]' ({error})")
        return None
    # The images of all tasks are on the device.
    sizes = synthetic.SMALL if args.small else {"num_new": _STREAM - 200, "num_memory": 200}
    sizes = sizes | {"batch_size": args.batch_size, "dtype": args.dtype}
    traced = train_program(devices, args.seeds, **sizes)
    lowered = traced.lower(lowering_platforms=(target.platform,))
    started = time.perf_counter()
    # Tuning would run candidates on the device.
    untuned = {"xla_gpu_autotune_level": 0} if target.platform == "cuda" else {}
    compiled = lowered.compile(untuned)
    seconds = time.perf_counter() - started
    step = hlo.longest_loop(compiled.as_text())
    operations = hlo.operations(step)
    memory = hlo.device_memory(compiled)
    kinds = ", ".join(f"{count} {name}" for name, count in operations.most_common())
    cycles = sum(each.cycles for each in step)
    rows = [
        ("target", f"{args.devices} x {args.target}, not measured on it"),
        ("compiling, without tuning", f"{seconds:.1f} s"),
        ("a step", f"{operations.total()} instructions"),
        ("  of them", kinds),
        ("  exchanges between devices", str(hlo.exchanges(operations))),
        ("memory planned on a device", harness.gigabytes(memory["total"])),
        ("  of it temporary", harness.gigabytes(memory["temporary"])),
    ]
    if cycles:
        rows.append(("a step, by the compiler's estimate", f"{cycles / 1e6:.2f} million cycles"))
    figures = {
        "target": args.target,
        "devices": args.devices,
        "seeds": args.seeds,
        "sizes": sizes,
        "compile_seconds": seconds,
        "operations": dict(operations),
        "planned_memory": memory,
        "estimated_cycles": cycles or None,
    }
    return harness.finish("ahead_of_time", rows, figures, memory["total"] / target.memory, args)


if __name__ == "__main__":
    main()
