"""How programs without absl's flags end: an exit status, and one line on standard error."""

import sqlite3
import sys
from collections.abc import Callable

DONE, FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def status_of(program: Callable[[], int | None]) -> int:
    """Calls a program and returns its exit status; what the user can mend is one line."""
    from iamcl2r_jax.gallery.errors import Refused
    from iamcl2r_jax.gallery.store import StoreError
    from iamcl2r_jax.system import streams
    from iamcl2r_jax.system.errors import InputError, WriteError

    streams.tolerate_any_text()
    try:
        status = program() or DONE
        streams.flush()
        return status
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except Refused as error:
        return _fail(error, REFUSED)
    except (WriteError, StoreError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command can be given again", INTERRUPTED)
    except BrokenPipeError:  # what reads our output has seen enough
        sys.stderr.close()
        return FAILED
    except sqlite3.Error as error:
        return _fail(f"the database failed ({error})", FAILED)
    except OSError as error:
        if error.errno is None:
            raise
        return _fail(": ".join(map(str, filter(None, (error.filename, error.strerror)))), FAILED)


def _fail(message: object, status: int) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return status
