"""Paths as people write them."""

import importlib.util
import os
import re

from iamcl2r_jax.system.errors import InputError

CACHE = "~/.cache/iamcl2r_jax"  # of compiled programs, unless another is named


def expand(path: str) -> str:
    """The path with a leading ~ or ~user replaced by the home directory.

    A shell leaves the ~ of --workdir=~/run alone. Raises `InputError` if there is no such home
    directory, as in containers without HOME, or no such storage.
    """
    check_storage(path)
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{path}: there is no such home directory; set HOME, or write it out")
    return expanded


_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def check_storage(path: str) -> None:
    """Raises `InputError` for a path such as gs://BUCKET/x that cannot be reached from here."""
    scheme, mark, _ = path.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][\w+.\-]*", scheme):
        return
    if scheme not in _PACKAGES:
        raise InputError(
            f"{path}: there is no storage {scheme}://; name a local path, or one that begins with "
            f"{', '.join(f'{name}://' for name in _PACKAGES)}"
        )
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise InputError(f"{path}: install the package {_PACKAGES[scheme]} to reach {scheme}://")
