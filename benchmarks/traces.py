"""How often the train program is traced over a lifetime of tasks.

    python benchmarks/traces.py [--tasks=31]

The run's own procedure over a stream of random images: 31 tasks with a memory that grows with each
and two replacements after the start by networks of the same architecture, as in the paper's longer
protocol, at a size that only takes seconds to train.

ratio: traces / tasks. Goal: 1 trace in all.
"""

import tempfile
import time

import harness
import synthetic

from iamcl2r_jax.config import recipes
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import lifelong
from iamcl2r_jax.training.context import Context, ProgramsByArchitecture, stream_dataset


class Silent(Reporter):
    """Prints no line for each task."""

    def message(self, text: str) -> None:
        pass


def context_of(config, num_classes: int, per_class: int, workdir: str) -> Context:
    """The context of a run on random images."""
    stream = synthetic.stream(config, num_classes, per_class)
    programs = ProgramsByArchitecture(config)
    dataset = stream_dataset(config, stream, programs)
    external = synthetic.external_models(config)
    return Context(config, workdir, stream, dataset, external, programs, Silent(), Preemption())


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__)
    options.add_argument("--tasks", type=int, default=31)
    args = options.parse_args(argv)
    if args.small:
        args.tasks = 4
    third = args.tasks // 3
    config = recipes.cifar100r(increment=1, replaced=(0, third, 2 * third))
    config.num_slots, config.model.options.width = 64, 4
    config.train.epochs, config.train.batch_size = 2, 16
    config.stream.initial_classes, config.memory_per_class = 4, 2
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        context = context_of(config, 3 + args.tasks, 8, workdir)
        (records,) = lifelong.train_stream([context], workdir)
    seconds = time.perf_counter() - started
    traces, memory = context.programs.traces(), [len(record["memory"]) for record in records]
    if len(records) != args.tasks or len(set(memory)) != args.tasks:
        raise AssertionError(f"{len(records)} tasks with memories {memory}: no growing lifetime")
    rows = [
        ("tasks", str(len(records))),
        ("replacements", str(config.replacements.tasks)),
        ("memory after first and last task", f"{memory[0]} and {memory[-1]} images"),
        ("traces", str(traces)),
        ("seconds in all", f"{seconds:.1f}"),
    ]
    figures = {"traces": traces, "tasks": args.tasks, "seconds": seconds}
    return harness.finish("traces", rows, figures, traces / args.tasks, args)


if __name__ == "__main__":
    main()
