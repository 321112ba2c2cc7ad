"""Losses of training on eight devices and on one.

    python benchmarks/devices.py [--steps=50]

Eight virtual CPU devices in a process of its own for each precision: the batch is split over them,
and batch statistics and HOC candidates are of the whole batch. Both programs do the same steps from
the same parameters on the same batches, and every step's loss is compared.

ratio: the larger of (largest relative difference / tolerance) over float64 (tolerance 1e-9) and
float32 (1e-4, since ReLU's kinks amplify rounding). Goal: below 1.
"""

import dataclasses
import json
import os
import subprocess
import sys

import harness
import jax
import jax.numpy as jnp
import numpy as np
import synthetic

from iamcl2r_jax import parallel, training

_COUNT = 8
_TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
_RATE = 0.01


def losses(case: synthetic.Case, num_steps: int) -> list[float]:
    """Loss of each of the first steps."""
    epoch = training.CompiledEpoch(case.program)
    state, found = case.program.init_state(case.variables), []
    for index in range(num_steps):
        state, sums, _ = epoch(state, case.data, index, index + 1, _RATE, jax.random.key(0))
        found.append(float(sums["loss"]))
    return found


def compare(dtype: str, num_steps: int) -> dict[str, list[float]]:
    """Losses of one device and of all, in this process and precision."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    if jax.device_count() != _COUNT:
        raise RuntimeError(f"there are {jax.device_count()} devices, not {_COUNT}")
    case = synthetic.hoc_case(
        width=8, num_classes=64, batch_size=32, num_new=64, num_memory=40, dtype=dtype
    )

    def in_precision(tree):
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    data = dataclasses.replace(
        case.data,
        old=in_precision(case.data.old),
        classifier=in_precision(case.data.classifier),
    )
    one = dataclasses.replace(case, variables=in_precision(case.variables), data=data)
    sharding = parallel.batch_sharding(case.program.batch_size)
    split = dataclasses.replace(case.program, batch_sharding=sharding)
    all_devices = dataclasses.replace(one, program=split)
    return {"one": losses(one, num_steps), "all": losses(all_devices, num_steps)}


def compare_in_process(dtype: str, num_steps: int) -> dict[str, list[float]]:
    """`compare` in a process that has so many devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={_COUNT}"
    command = [sys.executable, __file__, f"--dtype={dtype}", f"--steps={num_steps}"]
    done = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--dtype", choices=_TOLERANCES, help="one precision, in this process")
    args = options.parse_args(argv)
    if args.dtype:
        found = compare(args.dtype, args.steps)
        print(json.dumps(found))
        return found
    if args.small:
        args.steps = 2
    rows, figures, shares = [], {"steps": args.steps}, []
    for dtype, tolerance in _TOLERANCES.items():
        found = compare_in_process(dtype, args.steps)
        one, everywhere = (np.asarray(found[name]) for name in ("one", "all"))
        difference = float(np.max(np.abs(everywhere - one) / np.abs(one)))
        figures[dtype] = found | {"largest_relative_difference": difference}
        shares.append(difference / tolerance)
        rows.append((f"{dtype}, largest relative difference", f"{difference:.2g} ({tolerance:g})"))
    return harness.finish("devices", rows, figures, max(shares), args)


if __name__ == "__main__":
    main()
