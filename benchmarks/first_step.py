"""From `python launch/main.py` to the first training step, with data drawn and programs compiled.

    python benchmarks/first_step.py [--config=configs/glyphs.py] [--repeats=3]

Each start is a process of its own, which is ended after its second epoch. The first step is taken
to begin one epoch, as long as the second one was, before the first epoch is reported. A start that
is not counted comes first: it draws the data and fills the compilation cache.

ratio: median seconds to the first step / 8, the goal.
"""

import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

import harness
import psutil

GOAL = 8.0  # seconds
ROOT = pathlib.Path(__file__).parents[1]


def start(config: str, workdir: str) -> None:
    """Runs the program here until its second epoch, and prints the time of the first step."""
    from iamcl2r_jax.system.progress import Stage

    reported, of_stage = [], Stage.epoch

    def epoch(stage, *args):
        of_stage(stage, *args)
        reported.append(time.time())
        if len(reported) == 2:
            first, second = (at - psutil.Process().create_time() for at in reported)
            print(json.dumps(first - (second - first)), flush=True)
            os._exit(0)

    Stage.epoch = epoch
    sys.argv = ["launch/main.py", f"--config={config}", f"--workdir={workdir}"]
    runpy.run_path(str(ROOT / "launch" / "main.py"), run_name="__main__")


def start_in_process(config: str) -> float:
    """`start` in a new process, with a workdir of its own."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, __file__, f"--config={config}", "--start", workdir]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--config", help="by default configs/glyphs.py, with --small tiny.py")
    options.add_argument("--start", metavar="WORKDIR", help="one start only, in this process")
    args = options.parse_args(argv)
    config = args.config or f"configs/{'tiny' if args.small else 'glyphs'}.py"
    if args.start:
        return start(config, args.start)
    start_in_process(config)
    seconds = [start_in_process(config) for _ in range(args.repeats)]
    rows = [("to the first step", harness.milliseconds(seconds))]
    ratio = statistics.median(seconds) / GOAL
    return harness.finish("first_step", rows, {"seconds": seconds}, ratio, args)


if __name__ == "__main__":
    main()
