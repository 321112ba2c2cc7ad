"""What the benchmarks share: taking turns, the table, the JSON and the last line."""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from iamcl2r_jax.system import runtime

RESULTS = pathlib.Path("runs/benchmarks")


def parser(description: str, *, repeats: int = 0) -> argparse.ArgumentParser:
    """The options that all benchmarks have.

    Args:
      description: the program's docstring.
      repeats: how often it measures by default; 0 for one that does not repeat.
    """
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--small", action="store_true", help="a tiny case, to see that the program works"
    )
    options.add_argument("--json", type=pathlib.Path, help=f"default: {RESULTS}/NAME.json")
    if repeats:
        options.add_argument("--repeats", type=int, default=repeats, help="rounds measured")
    return options


def cores() -> int:
    """Cores that this process may use; JAX uses as many threads."""
    return len(os.sched_getaffinity(0))


def in_turn(
    actions: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each action, all of them once in every round.

    Taking turns, so that what else the machine does slows all of them alike. An action must not
    return before its work is done.

    Args:
      actions: by name.
      repeats: rounds measured.
      warm_up: rounds before these; the first compiles.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for round_number in range(warm_up + repeats):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def milliseconds(seconds: Sequence[float]) -> str:
    """The median and the range, for a table."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"


def peak_memory() -> int | None:
    """Most bytes that JAX has had on its first device; None where the device does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def gigabytes(number: int | None) -> str:
    """A number of bytes, for a table."""
    return "not told by this device" if number is None else f"{number / 1e9:.3f} GB"


def finish(
    name: str, rows: Sequence[tuple[str, str]], figures: Mapping[str, Any], ratio: float, args: Any
) -> dict[str, Any]:
    """Prints the table and the ratio, and writes what was measured as JSON.

    Args:
      name: of the benchmark.
      rows: of the table.
      figures: what else to write.
      ratio: ours / theirs, below 1 is better.
      args: the program's options.

    Returns:
      What was written.
    """
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")
    record = {
        "benchmark": name,
        "ratio": ratio,
        **figures,
        "small": args.small,
        "cores": cores(),
        "load": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "environment": runtime.environment(),
    }
    path = args.json or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2))
    print(f"written to {path}")
    print(f"ratio: {ratio:.4g}")
    return record
