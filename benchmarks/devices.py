"""Losses of training on eight devices and on one.

    python benchmarks/devices.py [--steps=50]

Eight virtual CPU devices in a process of its own for each precision: the batch is split over them,
and batch statistics and HOC candidates are of the whole batch. Both programs do the same steps from
the same parameters on the same batches, and every step's loss is compared.

The steps are those of an update in the protocol: real images (scikit-learn's digits 5 to 9, and
memory of 0 to 4), from a model that was trained on 0 to 4 and is also the frozen teacher. A random
network that begins to learn noise amplifies any rounding instead, and float32 then says nothing.

ratio: the larger of (largest relative difference / tolerance) over float64 (tolerance 1e-9) and
float32 (1e-4, since ReLU's kinks amplify rounding). Goal: below 1.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import synthetic

from iamcl2r_jax import config, methods, simplex
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.sampling import make_pool
from iamcl2r_jax.data.streaming import Dataset
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.system import parallel
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter, plain_console
from iamcl2r_jax.training.fit import cosine_schedule, fit
from iamcl2r_jax.training.resume import ProgressStore
from iamcl2r_jax.training.step import CompiledEpoch, OldModel, TaskData

_COUNT = 8
_TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
_WIDTH, _NUM_SLOTS, _BATCH_SIZE = 16, 320, 128  # network and K of the embedded default
_RATE = 0.01  # ten times the paper's
_EPOCHS, _PRETRAINING_RATE = 12, 0.1  # of the model that the update starts from
_EARLIER, _PER_CLASS = 5, 20  # digits known before the update, images remembered of each


def update_case(num_epochs: int) -> synthetic.Case:
    """An update of the protocol: new digits and memory, from a model that knows the old ones."""
    case = synthetic.hoc_case(width=_WIDTH, num_slots=_NUM_SLOTS, batch_size=_BATCH_SIZE)
    digits = sources.load("handwriting", "train", image_size=32)
    slots = simplex.downstream_slot(digits.labels, _NUM_SLOTS)
    of_class = [np.flatnonzero(digits.labels == digit) for digit in range(10)]
    earlier = np.concatenate(of_class[:_EARLIER])
    new = np.concatenate(of_class[_EARLIER:])
    memory = np.concatenate([images[:_PER_CLASS] for images in of_class[:_EARLIER]])
    data = case.data.replace(
        dataset=Dataset.of(jnp.asarray(digits.images), jnp.asarray(slots, jnp.int32)),
    )
    start = pretrained(case, data.replace(**pools(earlier, memory[:0])), num_epochs)
    old = OldModel(jax.device_put(start), jnp.asarray(True))
    data = data.replace(old=old, **pools(new, memory))
    return dataclasses.replace(case, variables=start, data=data)


def pools(new: np.ndarray, memory: np.ndarray) -> dict[str, Any]:
    """Both pools of a task, as fields of `TaskData`."""
    return {
        name: make_pool(indices, max(len(indices), _BATCH_SIZE))
        for name, indices in (("new", new), ("memory", memory))
    }


def pretrained(case: synthetic.Case, data: TaskData, num_epochs: int) -> Variables:
    """Variables after training with the simplex alone, on one device."""
    program = dataclasses.replace(case.program, old_model=None, loss=methods.get("simplex").loss)
    rates = cosine_schedule(_PRETRAINING_RATE, _PRETRAINING_RATE / 100, num_epochs)
    reporter = Reporter(plain_console(quiet=True))
    with tempfile.TemporaryDirectory() as directory:
        variables, _ = fit(
            "pre-training",
            CompiledEpoch(program),
            case.variables,
            data,
            rates,
            jax.random.key(1),
            store=ProgressStore(directory, config.default().saving, reporter),
            steps_per_call=50,
            reporter=reporter,
            preemption=Preemption(),
        )
    return variables


def losses(case: synthetic.Case, num_steps: int) -> list[float]:
    """Loss of each of the first steps."""
    epoch = CompiledEpoch(case.program)
    state, found = case.program.init_state(case.variables), []
    for index in range(num_steps):
        # Each the first of an epoch of its own: what an epoch has depends on the pools.
        key = jax.random.key(index)
        samples = synthetic.drawn(case.data, key, case.program.batch_size)
        state, sums, _ = epoch(state, case.data, samples, 0, 1, _RATE, key)
        found.append(float(sums["loss"]))
    return found


def compare(dtype: str, num_steps: int, num_epochs: int) -> dict[str, list[float]]:
    """Losses of one device and of all, in this process and precision."""
    if jax.device_count() != _COUNT:
        raise RuntimeError(f"there are {jax.device_count()} devices, not {_COUNT}")
    case = update_case(num_epochs)  # always in float32: both precisions start from one model
    jax.config.update("jax_enable_x64", dtype == "float64")

    def in_precision(tree):
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    data = case.data.replace(
        old=in_precision(case.data.old), classifier=in_precision(case.data.classifier)
    )
    model = case.program.model.clone(dtype=dtype)
    program = dataclasses.replace(case.program, model=model, old_model=model)
    one = synthetic.Case(program, in_precision(case.variables), data)
    sharding = parallel.batch_sharding(program.batch_size)
    split = dataclasses.replace(program, batch_sharding=sharding)
    return {
        "one": losses(one, num_steps),
        "all": losses(dataclasses.replace(one, program=split), num_steps),
    }


def compare_in_process(dtype: str, num_steps: int, num_epochs: int) -> dict[str, list[float]]:
    """`compare` in a process that has so many devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={_COUNT}"
    command = [sys.executable, __file__, f"--dtype={dtype}", f"--steps={num_steps}"]
    command.append(f"--epochs={num_epochs}")
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
    options.add_argument("--epochs", type=int, default=_EPOCHS, help="of the model to start from")
    options.add_argument("--dtype", choices=_TOLERANCES, help="one precision, in this process")
    args = options.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    if args.dtype:
        found = compare(args.dtype, args.steps, args.epochs)
        print(json.dumps(found))
        return found
    if args.small:
        args.steps, args.epochs = 2, 1
    rows, figures, shares = [], {"steps": args.steps, "epochs": args.epochs}, []
    for dtype, tolerance in _TOLERANCES.items():
        found = compare_in_process(dtype, args.steps, args.epochs)
        one, everywhere = (np.asarray(found[name]) for name in ("one", "all"))
        difference = float(np.max(np.abs(everywhere - one) / np.abs(one)))
        figures[dtype] = found | {"largest_relative_difference": difference}
        shares.append(difference / tolerance)
        rows.append((f"{dtype}, largest relative difference", f"{difference:.2g} ({tolerance:g})"))
    return harness.finish("devices", rows, figures, max(shares), args)


if __name__ == "__main__":
    main()
