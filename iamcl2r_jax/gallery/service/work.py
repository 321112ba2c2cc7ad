"""The gate and the backfill, as a service starts them: in a process of their own, or in a thread.

As a program it reads {"directory", "verb", "options"} as JSON from its standard input, and writes
{"result"} or {"error", "status"} as the last line of its standard output.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from iamcl2r_jax.gallery import Gallery, backfill
from iamcl2r_jax.gallery.embedder import Embedders, describe
from iamcl2r_jax.gallery.service.answers import STATUS, WorkError, status_of
from iamcl2r_jax.system.errors import one_line

_POLL = 0.1  # seconds between looks whether the work is to stop


class _Stopped(Exception):
    """The service ends; a backfill goes on from here when it is started again."""


def do(
    gallery: Gallery,
    embedders: Embedders,
    verb: str,
    options: Mapping[str, Any],
    stop: threading.Event,
) -> dict[str, Any]:
    """Does a piece of work in this process.

    Args:
      gallery, embedders: to work on.
      verb: "gate" or "backfill".
      options: of the verb, see `upgrading`.
      stop: ends a backfill after the batch it is at.

    Returns:
      The gate's figures; nothing of a backfill, whose progress is in the gallery.
    """
    if verb == "gate":
        return _gate(gallery, embedders, options)

    def report(_: backfill.Progress) -> None:
        if stop.is_set():
            raise _Stopped

    with suppress(_Stopped):
        backfill.run(gallery, embedders, report=report, **options)
    return {}


def _gate(gallery, embedders, options) -> dict[str, Any]:
    from iamcl2r_jax.evaluation.gate import Split
    from iamcl2r_jax.gallery import gate  # imports all of the evaluation

    options = dict(options)
    name, model = options.pop("name", None), options.pop("model")
    if os.path.isdir(model):
        model = gallery.register(describe(model), name).name
    model = gallery.model(model).name
    searched = options.pop("gallery")
    asked = options.pop("query", None) or searched
    found = gate.run(
        gallery,
        embedders,
        model,
        Split(searched, options.pop("gallery_split", "gallery")),
        Split(asked, options.pop("query_split", "query")),
        accept=options.pop("accept_incompatible", False),
        **options,
    )
    return {"model": model, **found}


def in_process(
    directory: str, verb: str, options: Mapping[str, Any], stop: threading.Event
) -> dict[str, Any]:
    """Does a piece of work in a process of its own, which ends when `stop` is set; see `do`.

    Raises:
      WorkError: with the status of what went wrong.
    """
    # On a GPU both processes hold models; neither may take all of the memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    request = json.dumps({"directory": directory, "verb": verb, "options": dict(options)})
    while True:
        try:
            output, _ = child.communicate(request, timeout=_POLL)
            break
        except subprocess.TimeoutExpired:
            request = None
            if stop.is_set():
                child.terminate()
    if stop.is_set() and child.returncode:
        return {}
    answer = json.loads(output.strip().rpartition("\n")[2] or "{}") if not child.returncode else {}
    if "result" in answer:
        return answer["result"]
    raise WorkError(
        answer.get("error", f"{verb} ended with status {child.returncode}; the log says more"),
        answer.get("status", 500),
    )


def main() -> None:
    """Does one piece of work, as the module says."""
    from iamcl2r_jax.programs import start

    start.prepare_jax()
    request = json.load(sys.stdin)
    try:
        with Gallery(request["directory"]) as gallery:
            result = do(
                gallery, Embedders(), request["verb"], request["options"], threading.Event()
            )
        print(json.dumps({"result": result}))
    except tuple(STATUS) as error:
        print(json.dumps({"error": one_line(error), "status": status_of(error)}))


if __name__ == "__main__":
    main()
