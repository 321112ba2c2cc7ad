"""How the programs in launch/ start, and how they tell a person what is wrong."""

import logging as standard_logging
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from iamcl2r_jax.system import distributed, preemption, runtime
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.files import WriteError
from iamcl2r_jax.system.preemption import PreemptedError
from iamcl2r_jax.training.training import DivergenceError

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/iamcl2r_jax",
    "Directory that keeps compiled programs between starts; empty for none.",
)


def run(main: Callable[[list[str]], int | None], *, joins_job: bool = False) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status, None being 0.

    What the user can mend is one line on standard error and exit status 2 for bad input, 1 for a
    run that failed; everything else keeps its traceback.

    Args:
      main: of the program.
      joins_job: whether it may be one of several processes, see `distributed.join`.
    """
    # What goes wrong is told once, below; Orbax would tell it page after page.
    logging.set_verbosity(logging.FATAL)
    # But that JAX found no driver for the GPU, and goes on without one, is not told elsewhere.
    standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)
    sys.unraisablehook = _without_late_writes
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # an encoding that lacks a sign ends no program
    if joins_job:
        _define_job_flags()

    def guarded(argv):
        if _CACHE.value:
            runtime.enable_compilation_cache(_CACHE.value)
        try:
            if joins_job:
                values = flags.FLAGS
                distributed.join(values.coordinator, values.num_processes, values.process_id)
            status = main(argv)
            if joins_job:
                distributed.wait_for_all("end")  # the first may still be writing
            return status
        except InputError as error:
            return _fail(str(error), 2)
        except PreemptedError as error:
            return _fail(str(error), preemption.EXIT_STATUS)
        except (DivergenceError, WriteError) as error:
            return _fail(str(error), 1)
        except KeyboardInterrupt:
            return _fail("interrupted; a run continues when the same command is given again", 130)
        except OSError as error:  # a full disk, a directory that cannot be read
            if error.errno is None:
                raise
            return _fail(": ".join(filter(None, (error.filename, error.strerror))), 1)

    def parse(argv):
        try:
            remaining = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                _ = flags.FLAGS.config.name  # a file that failed to load fails when it is used
            return remaining
        except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
            return _fail(_message(error), 2)

    app.run(guarded, flags_parser=parse)


def _without_late_writes(unraisable: Any) -> None:
    """The interpreter's hook, but for what TensorStore's threads print when a save has failed.

    Their other writes end after Orbax has closed the event loop that they report to.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def command() -> str:
    """How this program was started, to be pasted into a shell in the same directory."""
    return shlex.join(["python", *sys.argv])


def _define_job_flags() -> None:
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process; not on TPU or SLURM.")
    flags.DEFINE_integer("num_processes", None, "How many processes the job has.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def _message(error: Exception) -> str:
    # An unknown field is an AttributeError around a KeyError, whose text would be a repr.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return str(error.args[0] if isinstance(error, KeyError) else error)


def _fail(message: str, status: int):
    # ml_collections puts a config file's traceback into its message; the end says what is wrong.
    if "Traceback" in message:
        message = message.partition("Traceback")[0] + message.strip().splitlines()[-1]
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    distributed.leave(status)
    sys.exit(status)
