"""Locks between the processes that work on one gallery."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import filelock

from iamcl2r_jax.system.errors import LockedError, WriteError


@contextmanager
def held(directory: str, name: str, *, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock of the operating system's, which goes when its process does.

    Args:
      directory, name: of the gallery, and of the work that one process does at a time.
      wait: seconds to wait for another process.

    Raises:
      LockedError: if another process does it.
      WriteError: if the directory cannot be written.
    """
    lock = filelock.FileLock(os.path.join(directory, f".{name}.lock"))
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:  # which is an OSError, too
        raise LockedError(
            f"gallery {directory}: another process does its {name}; wait for it or end it"
        ) from None
    except OSError as error:
        raise WriteError(f"gallery {directory} cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
