"""Who may change the gallery."""

import hmac

from starlette.exceptions import HTTPException
from starlette.requests import Request


def require_token(request: Request) -> None:
    """Raises `HTTPException` with status 401 unless the request carries the token."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    expected = request.app.state.service.settings.token
    same = hmac.compare_digest(token.strip().encode(), expected.encode())
    if kind.lower() != "bearer" or not same:
        raise HTTPException(
            401,
            "this request changes the gallery and needs the header Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )
