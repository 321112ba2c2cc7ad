"""Runs the application until a signal, and answers what it has before it ends."""

import signal
import socket
import sys

import uvicorn
from starlette.applications import Starlette

_GRACE = 30  # seconds for requests that are being answered


def run(app: Starlette, listener: socket.socket) -> int:
    """Serves on a listening socket until SIGINT or SIGTERM; returns 1 if it could not start."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)
    # The server restores these and raises the signal again once it has ended.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.stdout.flush()
    return 0 if server.started else 1
