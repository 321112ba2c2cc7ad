"""Standard output and standard error."""

import sys


def tolerate_any_text() -> None:
    """Lets text that the encoding of a stream lacks be printed as question marks.

    Without it a name or a sign would end the program where the encoding is not UTF-8: under cron,
    LANG=C, or Windows.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it is closed
        stream.reconfigure(errors="replace")
