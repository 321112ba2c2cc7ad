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
from typing import Any

from iamcl2r_jax.gallery import Gallery, backfill
from iamcl2r_jax.gallery.embedder import Embedders, describe
from iamcl2r_jax.gallery.service.answers import STATUS, WorkError, status_of

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
      gallery: to work on.
      embedders: of its models.
      verb: "gate" or "backfill".
      options: of the verb, see `upgrading`.
      stop: ends a backfill after the batch it is at.

    Returns:
      The gate's figures, or how far the backfill is.

    Raises:
      WorkError: with the status of what went wrong.
    """
    try:
        return _VERBS[verb](gallery, embedders, options, stop)
    except tuple(STATUS) as error:
        raise WorkError(" ".join(str(error).split()), status_of(error)) from error


def _gate(gallery, embedders, options, stop) -> dict[str, Any]:
    from iamcl2r_jax.evaluation.gate import Split
    from iamcl2r_jax.gallery import gate  # imports all of the evaluation

    options = dict(options)
    name, model = options.pop("name", None), options.pop("model")
    if os.path.isdir(model):
        model = gallery.register(describe(model), name).name
    searched = options.pop("gallery")
    asked = options.pop("query", None) or searched
    found = gate.run(
        gallery,
        embedders,
        gallery.model(model).name,
        Split(searched, options.pop("gallery_split", "gallery")),
        Split(asked, options.pop("query_split", "query")),
        accept=options.pop("accept_incompatible", False),
        **options,
    )
    return {"model": model, **found}


def _backfill(gallery, embedders, options, stop) -> dict[str, Any]:
    def report(_: backfill.Progress) -> None:
        if stop.is_set():
            raise _Stopped

    try:
        progress = backfill.run(gallery, embedders, report=report, **options)
    except _Stopped:
        return {"stopped": True}
    return {
        "total": progress.total,
        "done": progress.done,
        "unreadable": progress.unreadable,
        "state": progress.state,
        "paused": progress.paused,
    }


_VERBS = {"gate": _gate, "backfill": _backfill}


def in_process(
    directory: str, verb: str, options: Mapping[str, Any], stop: threading.Event
) -> dict[str, Any]:
    """Does a piece of work in a process of its own, which ends when `stop` is set; see `do`."""
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
        return {"stopped": True}
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
    except WorkError as error:
        print(json.dumps({"error": str(error), "status": error.status}))
    except tuple(STATUS) as error:  # the gallery cannot be opened
        print(json.dumps({"error": " ".join(str(error).split()), "status": status_of(error)}))


if __name__ == "__main__":
    main()
