"""Time to compile the full-size train program, cold and from the persistent cache.

    python benchmarks/compile_time.py [--repeats=3]

Each start is a process of its own. What is timed is the first call of the program with no step to
do: tracing, lowering, and compiling or reading the cache. Starts with an empty cache and with the
one left by the start before take turns.

ratio: cached / cold. Goals: at most 15 s cold and 2 s from the cache.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import harness
import jax
import synthetic

from iamcl2r_jax.system import runtime
from iamcl2r_jax.training.step import CompiledEpoch


def start(cache: str, small: bool) -> dict[str, float]:
    """Seconds of a program's first call in this process, and of these lowering and compiling."""
    runtime.enable_compilation_cache(cache)
    sizes = synthetic.SMALL if small else {}
    if small:  # its program compiles too fast to be kept otherwise
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    case = synthetic.hoc_case(**sizes)
    epoch = CompiledEpoch(case.program)
    state = jax.block_until_ready(case.program.init_state(case.variables))
    with runtime.measure_compilation() as compilation:
        started = time.perf_counter()
        key = jax.random.key(0)
        samples = synthetic.drawn(case.data, key, case.program.batch_size)
        jax.block_until_ready(epoch(state, case.data, samples, 0, 0, 0.01, key))
        seconds = time.perf_counter() - started
    return {"first_call": seconds, "lower_and_compile": compilation.seconds}


def start_in_process(cache: str, small: bool) -> dict[str, float]:
    """`start` in a new process."""
    command = [sys.executable, __file__, "--start", cache, *(["--small"] if small else [])]
    # The persistent cache is this program's own, whatever the environment says.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--start", metavar="CACHE", help="one start only, with this cache")
    args = options.parse_args(argv)
    if args.start:
        figures = start(args.start, args.small)
        print(json.dumps(figures))
        return figures
    starts = {"cold": [], "cached": []}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for kind in starts:
                starts[kind].append(start_in_process(cache, args.small))
    rows, medians = [], {}
    for kind, measured in starts.items():
        for part in measured[0]:
            medians[kind, part] = statistics.median(m[part] for m in measured)
            rows.append((f"{kind}, {part.replace('_', ' ')}", f"{medians[kind, part]:.2f} s"))
    ratio = medians["cached", "first_call"] / medians["cold", "first_call"]
    return harness.finish("compile_time", rows, {"seconds": starts}, ratio, args)


if __name__ == "__main__":
    main()
