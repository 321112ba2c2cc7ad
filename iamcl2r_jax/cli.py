"""How the programs in launch/ start, and how they tell a person what is wrong."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from iamcl2r_jax import runtime
from iamcl2r_jax.checkpoints import CheckpointError
from iamcl2r_jax.config import ConfigError
from iamcl2r_jax.data.sources import DataError
from iamcl2r_jax.training import DivergenceError

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/iamcl2r_jax",
    "Directory that keeps compiled programs between starts; empty for none.",
)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags and calls `main`; what it returns is the exit status, None being 0.

    What the user can mend is one line on standard error and exit status 2 for bad input, 1 for a
    run that failed; everything else keeps its traceback.
    """
    logging.set_verbosity(logging.WARNING)

    def guarded(argv):
        if _CACHE.value:
            runtime.enable_compilation_cache(_CACHE.value)
        try:
            return main(argv)
        except (ConfigError, DataError, CheckpointError) as error:
            return _fail(error, 2)
        except DivergenceError as error:
            return _fail(error, 1)

    def parse(argv):
        try:
            remaining = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                _ = flags.FLAGS.config.name  # a file that failed to load fails when it is used
            return remaining
        except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
            return _fail(error, 2)

    app.run(guarded, flags_parser=parse)


def _fail(error: Exception, status: int):
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
