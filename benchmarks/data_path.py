"""Time of an epoch that is spent outside the compiled program.

    python benchmarks/data_path.py [--epochs=3] [--batch-size=128] [--width=64]

Trains an epoch after the other as a run does, saving included, with the task of the paper's size
(4,500 new images of 15 classes, 200 remembered). Drawing and augmenting are part of the program,
so what is outside is the loop in Python, the metrics' way to the host, and saving. The first epoch
compiles and is left out.

ratio: time outside / time of the epochs. Goal: below 0.02.
"""

import tempfile
import time

import harness
import jax
import synthetic

from iamcl2r_jax import config
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training.fit import cosine_schedule, fit
from iamcl2r_jax.training.resume import ProgressStore
from iamcl2r_jax.training.step import CompiledEpoch, Program


class TimedEpoch(CompiledEpoch):
    """Notes when each call of the compiled program began and ended."""

    def __init__(self, program: Program):
        super().__init__(program)
        self.calls: list[tuple[float, float]] = []

    def __call__(self, *args):
        started = time.perf_counter()
        result = jax.block_until_ready(super().__call__(*args))
        self.calls.append((started, time.perf_counter()))
        return result


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__)
    options.add_argument("--epochs", type=int, default=3, help="epochs measured")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--width", type=int, default=64, help="channels of the first stage")
    args = options.parse_args(argv)
    sizes = {"batch_size": args.batch_size, "width": args.width}
    if args.small:
        sizes = synthetic.SMALL
    case = synthetic.hoc_case(**sizes)
    saving = config.default().saving
    epoch, reporter = TimedEpoch(case.program), Reporter()
    num_steps = (int(case.data.new.size) + int(case.data.memory.size)) // case.program.batch_size
    with tempfile.TemporaryDirectory() as directory:
        fit(
            "epochs",
            epoch,
            case.variables,
            case.data,
            cosine_schedule(1e-3, 1e-5, 1 + args.epochs),
            jax.random.key(0),
            store=ProgressStore(directory, saving, reporter),
            steps_per_call=saving.steps_per_call,
            reporter=reporter,
            preemption=Preemption(),
        )
        ended = time.perf_counter()
    calls_per_epoch = -(-num_steps // saving.steps_per_call)
    measured = epoch.calls[calls_per_epoch:]
    total = ended - epoch.calls[calls_per_epoch - 1][1]  # from the end of the first epoch
    inside = sum(stop - start for start, stop in measured)
    outside = total - inside
    rows = [
        ("inside the program, an epoch", f"{1e3 * inside / args.epochs:.1f} ms"),
        ("outside, an epoch", f"{1e3 * outside / args.epochs:.2f} ms"),
        ("steps of an epoch", str(num_steps)),
    ]
    figures = {"inside": inside, "outside": outside, "epochs": args.epochs, "sizes": sizes}
    return harness.finish("data_path", rows, figures, outside / total, args)


if __name__ == "__main__":
    main()
