"""Drawing the embedded images with a process on each core, against one process.

    python benchmarks/drawing.py [--classes=100] [--repeats=3]

The images are the stream's, 300 of a class. The two take turns; starting the processes is counted.

ratio: seconds with all cores / with one process. Goal on two cores: at most 0.6.
"""

import statistics

import harness

from iamcl2r_jax.data import alphabets, drawing, rendering

PER_CLASS = 300


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--classes", type=int, default=100, help="characters drawn")
    args = options.parse_args(argv)
    per_class = PER_CLASS
    if args.small:
        args.classes, per_class = 2, 3
    characters = (alphabets.LATIN + alphabets.EXTERNAL)[: args.classes]

    def draw(processes):
        images = drawing.draw_classes(
            characters, per_class, rendering.VARIED, "benchmark", processes=processes
        )
        assert sum(map(len, images)) == len(characters) * per_class

    seconds = harness.in_turn(
        {
            "one process": lambda: draw(1),
            f"{harness.cores()} processes": lambda: draw(harness.cores()),
        },
        args.repeats,
        warm_up=0,
    )
    rows = [(name, harness.milliseconds(values)) for name, values in seconds.items()]
    one, all_cores = map(statistics.median, seconds.values())
    return harness.finish("drawing", rows, {"seconds": seconds}, all_cores / one, args)


if __name__ == "__main__":
    main()
