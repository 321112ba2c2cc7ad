"""Errors as answers: a status and JSON with one line, never a traceback."""

import errno
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from iamcl2r_jax.gallery.errors import OutdatedError, Refused
from iamcl2r_jax.gallery.store import StoreError
from iamcl2r_jax.system.errors import DamagedError, InputError, LockedError, WriteError

RETRY_AFTER = "5"  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Unavailable(RuntimeError):
    """The service cannot do this now through no fault of the request; the message is one line."""


class WorkError(RuntimeError):
    """Work failed; `status` is that of the answer, the message is one line."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


# The status of each; of a class that is not here, that of the nearest base that is.
STATUS: dict[type[Exception], int] = {
    InputError: 400,
    DamagedError: 500,
    LockedError: 503,
    OutdatedError: 409,
    Refused: 409,
    StoreError: 503,
    Unavailable: 503,
    WriteError: 507,
}


def answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that says what is wrong: {"error": one line, "status": the status}."""
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", RETRY_AFTER)
    line = " ".join(str(message).split())
    return JSONResponse({"error": line, "status": status}, status, headers)


def status_of(error: Exception) -> int:
    """The status of an error of the library or of work; 500 for one that is not in `STATUS`."""
    if isinstance(error, WorkError):
        return error.status
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


async def _library(_: Request, error: Exception) -> JSONResponse:
    return answer(status_of(error), str(error))


async def _http(_: Request, error: HTTPException) -> JSONResponse:
    return answer(error.status_code, error.detail, error.headers)


async def _system(_: Request, error: OSError) -> JSONResponse:
    if error.errno not in _FULL:
        raise error
    return answer(507, "the disk is full; nothing was stored, make room and send it again")


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    # The server logs the traceback; a client gets none.
    return answer(500, f"the service failed ({type(error).__name__}); its log says more")


HANDLERS: dict[type[Exception], Callable] = {
    **dict.fromkeys(STATUS, _library),
    HTTPException: _http,
    OSError: _system,
    Exception: _unexpected,
}
