"""DIR/report.html: when and whether it is written; `page` says what is in it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.system import distributed
from iamcl2r_jax.system.progress import Reporter

FILE = "report.html"


def write_or_tell(
    config: ConfigDict, workdir: str, results: Mapping[str, Any], reporter: Reporter, **loaded
) -> None:
    """`page.write`, or one line that says why there is no report.

    What was measured is in results.json by then, so that nothing is lost with a page that can be
    made again. Of a job of several processes the first alone writes it.
    """
    again = f"results.json is complete, and launch/evaluate.py --workdir={workdir} tries again"
    with or_message(reporter, f"{os.path.join(workdir, FILE)} was not written", again):
        if distributed.is_first():
            from iamcl2r_jax.reports import page  # matplotlib, only where something is drawn

            page.write(config, workdir, results, **loaded)


@contextmanager
def or_message(reporter: Reporter, failed: str, consequence: str) -> Iterator[None]:
    """Turns whatever goes wrong with a picture into one line: no picture ends a run."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reporter.message(f"{failed} ({reason}); {consequence}")
