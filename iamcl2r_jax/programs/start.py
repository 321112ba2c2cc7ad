"""What the programs without absl's flags do before they use JAX."""

import argparse
import sys
from collections.abc import Sequence

from iamcl2r_jax.system import paths
from iamcl2r_jax.system.errors import InputError


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; bad ones end the program with status 2. None stands for `sys.argv`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for argument in arguments:
        # argparse takes the two dashes for the end of the options, and the option for a list.
        if argument.startswith("-") and argument.endswith("=--"):
            parser.error(f"argument {argument.partition('=')[0]}: -- is not a value")
    return parser.parse_args(arguments)


def path(text: str) -> str:
    """A path among the arguments, with ~ expanded; for `add_argument(type=path)`."""
    try:
        return paths.expand(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def prepare_jax() -> None:
    """Keeps compiled programs between starts, and libraries from logging what we say ourselves."""
    import jax
    from absl import logging

    from iamcl2r_jax.system import runtime

    logging.set_verbosity(logging.FATAL)  # what goes wrong is one line of ours
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR names another
        runtime.enable_compilation_cache()
