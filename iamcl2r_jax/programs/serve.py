"""Serves a gallery over HTTP: searches, items, upgrades, two pages and metrics.

It listens on loopback unless --host says otherwise. What changes the gallery needs the token.
Ctrl-C or SIGTERM ends it once the requests it has are answered; a second one ends it at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from iamcl2r_jax.programs import start

# Everything else is imported when it is needed: --help takes no time.

TOKEN_VARIABLE = "IAMCL2R_TOKEN"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    options = start.parse(_parser(), arguments)
    from iamcl2r_jax.programs import exits

    return exits.status_of(lambda: _serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=start.path, help="of the gallery")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 for a free one (default: %(default)s)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that requests may call this server by, besides --host and localhost",
    )
    add(
        "--token-file",
        metavar="FILE",
        type=start.path,
        help=f"file with the token; by default the variable {TOKEN_VARIABLE}, or a new one, which "
        "is printed",
    )
    add(
        "--images",
        action="append",
        default=[],
        metavar="DIR",
        type=start.path,
        help="show images below this directory, too; by default only those inside the gallery",
    )
    add("--max-upload", type=float, default=20, help="MiB of a request (default: %(default)s)")
    add("--max-pixels", type=float, default=50, help="of a picture, in millions (default: 50)")
    add("--batch", type=int, default=32, help="queries embedded at once (default: %(default)s)")
    add("--wait", type=float, default=2, help="ms that a query waits for others (default: 2)")
    add(
        "--work",
        choices=("process", "thread"),
        default="process",
        help="where the gate and the backfill run; `thread` for a device that only one process can "
        "hold, such as a TPU (default: %(default)s)",
    )
    return parser


def _serve(options: argparse.Namespace) -> int:
    from iamcl2r_jax.gallery import Gallery

    settings = _settings(options)
    with Gallery(options.directory) as gallery:
        listener = _listener(options.host, options.port)
        start.prepare_jax()
        from functools import partial

        from iamcl2r_jax.gallery.embedder import Embedders
        from iamcl2r_jax.gallery.service import app, server, work

        embedders = Embedders()
        if options.work == "thread":
            does = partial(work.do, gallery, embedders)
        else:
            does = partial(work.in_process, os.path.abspath(options.directory))
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"serving {options.directory} on {address}", flush=True)
        if not (options.token_file or os.environ.get(TOKEN_VARIABLE)):
            print(f"token: {settings.token}", flush=True)
            print(f"upgrades: {address}/upgrade#token={settings.token}", flush=True)
        return server.run(app.create(gallery, embedders, settings, does), listener)


def _settings(options: argparse.Namespace):
    from iamcl2r_jax.gallery.service.settings import Settings
    from iamcl2r_jax.system.errors import InputError

    for name, low, high in (
        ("max_upload", 1e-3, 4096),
        ("max_pixels", 1e-3, 1000),
        ("batch", 1, 1024),
        ("wait", 0, 1000),
        ("port", 0, 65535),
    ):
        value = getattr(options, name)
        if not low <= value <= high:
            raise InputError(f"{name}={value}: must be from {low:g} to {high:g}")
    for directory in options.images:
        if not os.path.isdir(directory):
            raise InputError(f"images={directory}: must be a directory")
    # Whoever listens on every address is called by names that are not known here.
    every = options.host in ("0.0.0.0", "::") and not options.allow_host
    hosts = (options.host.lower(), *(name.lower() for name in options.allow_host))
    token = _token(options.token_file)
    return Settings(
        hosts=() if every else (*Settings.hosts, *hosts),
        image_roots=tuple(os.path.abspath(directory) for directory in options.images),
        max_upload=round(options.max_upload * 2**20),
        max_pixels=round(options.max_pixels * 1e6),
        batch=options.batch,
        wait=options.wait / 1000,
        **({} if token is None else {"token": token}),
    )


def _token(path: str | None) -> str | None:
    from iamcl2r_jax.system.errors import InputError

    if path is None:
        token, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if token is None:
            return None
    else:
        source = f"token_file={path}"
        try:
            with open(path) as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"{source}: cannot be read ({why})") from error
    if len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{source}: the token must have 8 or more ASCII characters and no spaces")
    return token


def _listener(host: str, port: int):
    import socket

    from iamcl2r_jax.system.errors import InputError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not an address"
        raise InputError(f"host={host}, port={port}: cannot listen there ({why})") from error


if __name__ == "__main__":
    sys.exit(main())
