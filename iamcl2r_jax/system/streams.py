"""Standard output and standard error."""

import os
import sys


def tolerate_any_text() -> None:
    """Lets text that the encoding of a stream lacks be printed as question marks.

    Without it a name or a sign would end the program where the encoding is not UTF-8: under cron,
    LANG=C, or Windows.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it is closed
        stream.reconfigure(errors="replace")


def flush() -> None:
    """Brings out what was printed.

    If standard output takes nothing more, what is left is dropped with the `OSError`, so that
    Python does not fail a second time when it ends.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
