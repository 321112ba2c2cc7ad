"""The errors of a gallery beside bad input, and SQLite's errors as one line each."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from iamcl2r_jax.system.errors import DamagedError, InputError, LockedError, WriteError


class Refused(RuntimeError):
    """The gallery does not allow this now; the message is one line that says what to run instead.

    The programs end with status 3, the service answers 409.
    """


class OutdatedError(RuntimeError):
    """The gallery changed between preparing a write and writing; prepare it again and retry."""


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns SQLite's errors inside the block into ours, which name the gallery at `path`.

    Raises:
      DamagedError: the database is damaged or is not a database.
      InputError: it cannot be opened, or a text is not Unicode.
      LockedError: another process has held it for longer than we wait.
      WriteError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeError) as error:
        raise _explained(path, error) from error


def _explained(path: str, error: Exception) -> Exception:
    if isinstance(error, UnicodeEncodeError):
        return InputError(f"{error.object!a}: must be valid Unicode to be kept in gallery {path}")
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = " ".join(str(error).split())
    undecodable = isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in text
    if undecodable or primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedError(
            f"gallery {path} is damaged ({text}); run verify to see how far, and restore a backup"
        )
    if code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ):
        return DamagedError(f"gallery {path} cannot be read ({text}); check the disk")
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY):
        return WriteError(
            f"gallery {path} cannot be written ({text}); what was acknowledged before is whole, "
            "and once there is room or permission the same command can be given again"
        )
    if primary == sqlite3.SQLITE_CANTOPEN:
        return InputError(f"gallery {path} cannot be opened ({text}); check its permissions")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(f"gallery {path} is being written by another process; try again later")
    return error
