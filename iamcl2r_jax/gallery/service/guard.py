"""What every request passes: its host, the size of its body, headers of safety, and metrics."""

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iamcl2r_jax.gallery.service.answers import answer
from iamcl2r_jax.gallery.service.metrics import Metrics
from iamcl2r_jax.gallery.service.settings import Settings

# Nothing comes from elsewhere and nothing goes there; pages allow their own parts besides.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": POLICY,
}


class Guard:
    """ASGI middleware; a body that is too large is refused as it arrives, before it is kept."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            host = _host(Headers(scope=scope).get("host", ""))
            if self._settings.hosts and host not in self._settings.hosts:
                refusal = answer(400, f"host {ascii(host)[:80]}: is not served here; see --host")
                await refusal(scope, receive, sending)
            else:
                await self._app(scope, self._limited(receive), sending)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self._metrics.request(endpoint, status, time.perf_counter() - start)

    def _limited(self, receive: Receive) -> Receive:
        got, limit = 0, self._settings.max_upload

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > limit:
                raise HTTPException(413, f"body: must have at most {limit} bytes")
            return message

        return receiving


def _host(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = header.rpartition("]")[0][1:] if header.startswith("[") else header.partition(":")[0]
    return name.lower()
