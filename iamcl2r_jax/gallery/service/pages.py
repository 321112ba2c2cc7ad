"""The two pages and the endpoints for operators: health, readiness and metrics."""

import functools
import secrets

import jinja2
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from iamcl2r_jax.gallery.service import guard
from iamcl2r_jax.gallery.service.answers import Unavailable
from iamcl2r_jax.gallery.service.service import Service


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("iamcl2r_jax.gallery.service", "templates")
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


async def search_page(request: Request) -> Response:
    """GET /: drop an image, see the hits."""
    service: Service = request.app.state.service
    found = await run_in_threadpool(service.gallery.status)
    return _page("search.html", status=found, limits=service.settings)


async def upgrade_page(request: Request) -> Response:
    """GET /upgrade: the state of the upgrade, and how to take it back."""
    service: Service = request.app.state.service
    found = await run_in_threadpool(service.described)
    return _page("upgrade.html", status=found)


def _page(name: str, **values: object) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    content = _templates().get_template(name).render(nonce=nonce, **values)
    policy = f"{guard.POLICY}; img-src 'self' blob: data:; connect-src 'self'; "
    policy += f"style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": policy}
    return HTMLResponse(content, headers=headers)


async def healthz(_: Request) -> Response:
    """GET /healthz: 200 while the process answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 once queries are answered without waiting for a model, else 503."""
    service: Service = request.app.state.service
    if service.trouble is not None:
        raise Unavailable(f"not ready: {service.trouble}")
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    service: Service = request.app.state.service
    content = await run_in_threadpool(service.metrics.exposition)
    return Response(content, 200, media_type=CONTENT_TYPE_LATEST)
