"""How the programs in launch/ start, and how they tell a person what is wrong."""

import difflib
import logging as standard_logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from iamcl2r_jax.system import flag_types, paths, streams
from iamcl2r_jax.system.errors import DivergenceError, InputError, PreemptedError, WriteError

_CACHE = flag_types.path(
    "compilation_cache",
    None,
    "Directory that keeps compiled programs between starts, empty for none; by default "
    f"{paths.CACHE} if there is a home directory.",
)


def run(main: Callable[[list[str]], int | None], *, joins_job: bool = False) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status, None being 0.

    What the user can mend is one line on standard error and exit status 2 for bad input, 1 for a
    run that failed; everything else keeps its traceback.

    Args:
      main: of the program.
      joins_job: whether it may be one of several processes, see `distributed.join`.
    """
    # But that JAX found no driver for the GPU, and goes on without one, is not told elsewhere.
    standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)
    sys.unraisablehook = _without_late_writes
    streams.tolerate_any_text()
    if joins_job:
        _define_job_flags()

    def guarded(argv):
        # What goes wrong is told once, below; Orbax would tell it page after page.
        logging.set_verbosity(logging.FATAL)
        # JAX is imported once the flags are known to be good.
        from iamcl2r_jax.system import distributed, runtime

        try:
            runtime.enable_compilation_cache(_CACHE.value)
            if joins_job:
                values = flags.FLAGS
                distributed.join(values.coordinator, values.num_processes, values.process_id)
            status = main(argv)
            streams.flush()
            if joins_job:
                distributed.wait_for_all("end")  # the first may still be writing
            return status
        except (DivergenceError, InputError, PreemptedError, WriteError) as error:
            return _fail(str(error), error.exit_status)
        except KeyboardInterrupt:
            return _fail("interrupted; a run continues when the same command is given again", 130)
        except OSError as error:  # a full disk, a directory that cannot be read
            if error.errno is None:
                raise
            return _fail(": ".join(map(str, filter(None, (error.filename, error.strerror)))), 1)
        except (AssertionError, RuntimeError) as error:
            if not _without_device(error):
                raise
            asked = os.environ.get("JAX_PLATFORMS", "")
            return _fail(f"JAX_PLATFORMS={asked}: JAX finds no such device here", 2)

    def parse(argv):
        if problem := _wrong_flag(argv):
            return _fail(problem, 2)
        try:
            remaining = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                _ = flags.FLAGS.config.name  # a file that failed to load fails when it is used
            return remaining
        except Exception as error:  # whatever a config file and its overrides can raise
            return _fail(_unknown_field(argv) or str(error), 2)

    app.run(guarded, flags_parser=parse)


def _wrong_flag(argv: Sequence[str]) -> str | None:
    """What is wrong with flags other than those of --config, whose file takes longer to load."""
    of_config = [argument for argument in argv if re.match(r"--?config\b", argument)]
    try:
        flags.FLAGS([argument for argument in argv if argument not in of_config])
    except flags.Error as error:
        required = re.search(r"Flag (--\w+) must have a value other than None", str(error))
        if not required:
            return str(error)
        if required[1] != "--config" or not of_config:
            return f"{required[1]} is required"
    finally:
        flags.FLAGS.unparse_flags()
    return None


def run_installed(
    define: Callable[[], None], main: Callable[[dict[str, Any]], int | None], description: str
) -> None:
    """Runs a program that is also an installed command; see `run`.

    Args:
      define: defines its flags; called once the program starts, so that several programs can be
        imported together.
      main: of the program, given the values of these flags by name.
      description: what --help begins with, where the file that was started says nothing.
    """
    before = set(flags.FLAGS)
    define()
    names = set(flags.FLAGS) - before
    for name in names:  # or --help would not list them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    started = sys.modules["__main__"]
    started.__doc__ = started.__doc__ or description
    run(lambda _: main({name: flags.FLAGS[name].value for name in names}))


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


def _without_device(error: Exception) -> bool:
    """Whether JAX could not start any device that it was asked for."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return os.path.basename(last.filename) == "xla_bridge.py"


def _unknown_field(argv: Sequence[str]) -> str | None:
    """What is wrong with the first flag --config.FIELD=VALUE that names no field, if one does.

    ml_collections says so in many ways, some of which do not name the field.
    """
    given = re.search(r"^--?config[=\n](.+)$", "\n".join(argv), re.MULTILINE)
    if not given:
        return None
    try:
        config = ConfigFileFlagParser("config").parse(given[1])
    except Exception:
        return None
    fields = [re.match(r"--?config\.([^=]+)", argument) for argument in argv]
    problems = [_problem(config, field[1]) for field in fields if field]
    return next(filter(None, problems), None)


def _problem(config: ConfigDict, field: str) -> str | None:
    section, place = config, "config"
    for name in field.split("."):
        if not isinstance(section, ConfigDict):
            return f"--{place}: is one value, without a field {name}"
        whole = name.partition("[")[0]
        if name != whole and isinstance(section.get(whole), tuple):
            return f"--{place}.{name}: set all items, as --{place}.{whole}='{section[whole]}'"
        if name not in section:
            near = difflib.get_close_matches(name, section)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(section)}"
            return f"--{place}.{name}: unknown field; {hint}"
        section, place = section[name], f"{place}.{name}"
    return None


def _fail(message: str, status: int):
    # ml_collections puts a config file's traceback into its message; the end says what is wrong.
    if "Traceback" in message:
        last = message.strip().splitlines()[-1]
        message = message.partition("Traceback")[0] + re.sub(r"^[\w.]*\.InputError: ", "", last)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if (distributed := sys.modules.get("iamcl2r_jax.system.distributed")) is not None:
        distributed.leave(status)
    sys.exit(status)
