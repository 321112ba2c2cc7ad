"""Paths as people write them."""

import os

from iamcl2r_jax.system.errors import InputError


def expand(path: str) -> str:
    """The path with a leading ~ or ~user replaced by the home directory.

    A shell leaves the ~ of --workdir=~/run alone.

    Raises:
      InputError: if there is no such home directory, as in containers without HOME.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{path}: there is no such home directory; set HOME, or write it out")
    return expanded


def has_home() -> bool:
    """Whether ~ names a directory."""
    return not os.path.expanduser("~").startswith("~")
