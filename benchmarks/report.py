"""Processor time of the report of a finished run.

    python launch/main.py --config=configs/glyphs.py --config.train.epochs=1 --workdir=DIR
    python benchmarks/report.py --workdir=DIR [--repeats=5]

At the end of a run its images and compiled programs are there, so a first page, which loads and
compiles them, is left out. What the page imports beyond what a run has imported is counted.

ratio: seconds of processor time. Goal: at most 1.
"""

import os
import statistics
import time

import harness

from iamcl2r_jax.system import files
from iamcl2r_jax.training import context, inputs, runs


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--workdir", required=True, help="directory of a finished run")
    args = options.parse_args(argv)
    began = time.process_time()
    from iamcl2r_jax.reports import page  # as a run does, once it has something to report

    imports = time.process_time() - began
    config = runs.read_config(args.workdir)
    results = files.read_json(os.path.join(args.workdir, "results.json"))
    made = {
        "programs": context.ProgramsByArchitecture(config),
        "stream": inputs.load_stream(config),
        "evaluations": inputs.load_evaluations(config),
    }
    seconds = []
    for _ in range(1 + args.repeats):
        began = time.process_time()
        page.write(config, args.workdir, results, **made)
        seconds.append(time.process_time() - began)
    seconds = seconds[1:]
    rows = [
        ("imports", harness.milliseconds([imports])),
        ("page", harness.milliseconds(seconds)),
    ]
    figures = {"imports": imports, "seconds": seconds}
    return harness.finish("report", rows, figures, imports + statistics.median(seconds), args)


if __name__ == "__main__":
    main()
