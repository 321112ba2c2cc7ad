"""Training several seeds at once against one alone.

    python benchmarks/many_seeds.py [--seeds=8] [--batch-size=128] [--width=64]

The vectorised program of `--config.num_seeds` against the ordinary one, on the train step of
d-Simplex-HOC. A GPU that one seed does not fill takes others beside it; a CPU is full with one. On
a CPU the table says so, and the figure is none for the goal.

ratio: time for each seed together / time of one alone. Goal on a GPU: at most 0.35 for 8 seeds.
"""

import statistics

import harness
import jax
import synthetic

from iamcl2r_jax.training.step import CompiledEpoch

_RATE = 0.01


def going_on(epoch, state, data, key, steps: int):
    """So many steps by a compiled program, from where the call before ended; batches are drawn."""
    samples = synthetic.drawn(data, key, epoch.program.batch_size)

    def call():
        nonlocal state
        state, sums, _ = epoch(state, data, samples, 0, steps, _RATE, key)
        jax.block_until_ready((state, sums))

    return call


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=10)
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--width", type=int, default=64, help="channels of the first stage")
    options.add_argument("--steps", type=int, default=5, help="steps measured together")
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    args = options.parse_args(argv)
    sizes = {"batch_size": args.batch_size, "width": args.width, "dtype": args.dtype}
    if args.small:
        args.seeds, args.steps = 2, 1
        sizes = synthetic.SMALL
    case = synthetic.hoc_case(**sizes)
    init = case.program.init_state
    alone = init(case.variables), case.data, jax.random.key(0)
    one = going_on(CompiledEpoch(case.program), *alone, args.steps)
    variables, data, keys = synthetic.at_once(case, args.seeds)
    epoch = CompiledEpoch(case.program, args.seeds)
    together = going_on(epoch, init(variables), data, keys, args.steps)
    seconds = {
        name: [value / args.steps for value in values]
        for name, values in harness.in_turn({"one": one, "all": together}, args.repeats).items()
    }
    seconds["all"] = [value / args.seeds for value in seconds["all"]]
    rows = [
        ("one alone, a step", harness.milliseconds(seconds["one"])),
        (f"each of {args.seeds}, a step", harness.milliseconds(seconds["all"])),
    ]
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu:
        rows.append(("device", "not measured on a GPU here"))
    ratio = statistics.median(seconds["all"]) / statistics.median(seconds["one"])
    figures = {"seconds": seconds, "seeds": args.seeds, "measured_on_gpu": on_gpu}
    return harness.finish("many_seeds", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
