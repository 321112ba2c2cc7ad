"""Starts programs of launch/ again and again, and kills them where it is told to.

A process that has imported the package once, and forks a child for each start: that spares the
seconds of importing. In the child it is as if `python launch/NAME.py ARGS` had been typed, but for
the network of `smallworld`. JAX has not begun to work when the child is forked.

Requests come as JSON lines and are answered by JSON lines, see `serve`. `Starter` is the other end.
"""

import contextlib
import io
import itertools
import json
import os
import pathlib
import pty
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback

from iamcl2r_jax.training.step import CompiledEpoch

_BEFORE_IMPORTS = time.monotonic()

import jax  # noqa: E402
import smallworld  # noqa: E402

# All that a program imports, so that its child need not.
from iamcl2r_jax.evaluation import features, pairs  # noqa: E402, F401
from iamcl2r_jax.reports import report  # noqa: E402, F401
from iamcl2r_jax.system import cli, runtime  # noqa: E402, F401
from iamcl2r_jax.training import lifelong  # noqa: E402, F401

_IMPORTING = time.monotonic() - _BEFORE_IMPORTS
ROOT = pathlib.Path(__file__).parents[1]
_WRITES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.link")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR


class Starter:
    """The end of the tests: a context that starts programs."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def __call__(self, program: str, *args: str, **request):
        """Starts launch/PROGRAM.py and waits for its end.

        Args:
          program: name of the program.
          *args: its arguments.
          **request: `environment`, variables to set, or to unset where None; `directory`, to start
            in; `output`, "full", "closed" or "terminal", where standard output goes if not into the
            answer; `encoding`, of standard output; `limit`, seconds until it is killed; `below`, a
            directory; `signal`, to be sent `at` the event of that number (a step
            of training, a pass of a model, a change of a file below the directory), or `after` so
            many seconds; `meanwhile`, another request to be answered while the signal, SIGSTOP,
            holds this one; `largest_file`, beyond which many bytes no file can grow.

        Returns:
          {"pid", "status": exit status, or the signal's number negated, "events": how many there
          were, "seconds", "until_step": seconds from a start, importing included, to the first step
          of training, "after_signal": seconds from the signal to the end, "errors": what stood
          on standard error, "output": on standard output, "meanwhile": the other answer}.
        """
        request = {"program": program, "args": args} | request
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve(requests, answers) -> None:
    """Answers each request with how its child ended."""
    for line in requests:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def answer(request) -> dict:
    """Forks a child for the request and waits for its end."""
    errors, output, notes = map(os.memfd_create, ("errors", "output", "notes"))
    screen, terminal = pty.openpty() if request.get("output") == "terminal" else (None, None)
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        os.dup2(errors, 2)
        os.dup2(output if terminal is None else terminal, 1)
        os._exit(be_program(request, notes))
    timer = threading.Timer(request.get("limit", 3600), os.kill, (pid, signal.SIGKILL))
    timer.start()
    if screen is not None:
        os.close(terminal)
        copying = threading.Thread(target=_copy, args=(screen, output))
        copying.start()
    meanwhile = None
    if "after" in request:
        time.sleep(request["after"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, request["signal"])
    if "meanwhile" in request:
        os.waitpid(pid, os.WUNTRACED)
        meanwhile = answer(request["meanwhile"])
        os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    if screen is not None:
        copying.join()
        os.close(screen)
    ended, at = time.monotonic(), request.get("at", 0)
    noted = _content(notes).split()
    steps = [note for note in noted if note[-1] == "s"]
    told, said = _content(errors), _content(output)
    for file in (errors, output, notes):
        os.close(file)
    return {
        "pid": pid,
        "status": os.waitstatus_to_exitcode(status),
        "events": len(noted),
        "seconds": ended - started,
        "until_step": _IMPORTING + float(steps[0][:-1]) - started if steps else None,
        "after_signal": ended - float(noted[at - 1][:-1]) if 0 < at <= len(noted) else None,
        "errors": told,
        "output": said,
        "meanwhile": meanwhile,
    }


def be_program(request, notes) -> int:
    """What the child does; returns its exit status."""
    count_events(request, notes)
    for name, value in request.get("environment", {}).items():
        os.environ.pop(name, None)
        os.environ |= {} if value is None else {name: value}
    os.chdir(request.get("directory", "."))
    match request.get("output"):
        case "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        case "closed":
            os.close(1)
            sys.stdout = None
    if "encoding" in request:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", False), encoding=request["encoding"])
    if "largest_file" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    sys.argv = [f"launch/{request['program']}.py", *request["args"]]
    status = 0
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # as at the end of Python
        print(f"Exception ignored: {error}", file=sys.stderr, flush=True)
        status = 120
    return status


def count_events(request, notes) -> None:
    """Notes the time of each event from now on, and sends the signal at the one asked for."""
    below = request.get("below", "/nowhere")
    lock, count = threading.Lock(), itertools.count(1)

    def event(kind=b"w"):
        with lock:
            number = next(count)
            os.write(notes, b"%.3f%s " % (time.monotonic(), kind))
        if number == request.get("at"):
            os.kill(os.getpid(), request["signal"])

    def audit(name, args):
        if name == "open":
            happened = isinstance(args[2], int) and args[2] & _WRITE_FLAGS
        else:
            happened = name in _WRITES
        if happened and str(args[0]).startswith(below):
            event()

    def counted(function, kind):
        def call(*args):
            event(kind)
            return function(*args)

        return call

    CompiledEpoch.__call__ = counted(CompiledEpoch.__call__, b"s")
    features.FeatureExtractor.__call__ = counted(features.FeatureExtractor.__call__, b"f")
    sys.addaudithook(audit)


def _content(file) -> str:
    return os.pread(file, 2**20, 0).decode(errors="replace")


def _copy(screen, output) -> None:
    """What a terminal shows, until its last process has ended."""
    with contextlib.suppress(OSError):
        while data := os.read(screen, 2**16):
            os.write(output, data)


def cache_everything(enable=runtime.enable_compilation_cache):
    """The small world's programs compile too fast to be kept otherwise."""

    def enable_all(*directory):
        enable(*directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    runtime.enable_compilation_cache = enable_all


if __name__ == "__main__":
    smallworld.register()
    cache_everything()
    serve(sys.stdin, os.fdopen(os.dup(1), "w"))
