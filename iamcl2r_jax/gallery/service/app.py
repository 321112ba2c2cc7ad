"""The ASGI application: which address is answered by what."""

from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from iamcl2r_jax.gallery import Gallery
from iamcl2r_jax.gallery.embedder import Embedders
from iamcl2r_jax.gallery.service import pages, searching, upgrading
from iamcl2r_jax.gallery.service.answers import HANDLERS
from iamcl2r_jax.gallery.service.guard import Guard
from iamcl2r_jax.gallery.service.jobs import Work
from iamcl2r_jax.gallery.service.service import Service
from iamcl2r_jax.gallery.service.settings import Settings


def create(gallery: Gallery, embedders: Embedders, settings: Settings, work: Work) -> Starlette:
    """The service of an open gallery, which the caller closes."""
    service = Service(gallery, embedders, settings, work)

    @asynccontextmanager
    async def lifespan(_: Starlette):
        async with service.running():
            yield

    upgrades = [
        Route(f"/v1/upgrade/{endpoint.__name__}", endpoint, methods=["POST"])
        for endpoint in (
            upgrading.gate,
            upgrading.canary,
            upgrading.promote,
            upgrading.backfill,
            upgrading.pause,
            upgrading.rollback,
            upgrading.retire,
        )
    ]
    app = Starlette(
        routes=[
            Route("/", pages.search_page),
            Route("/upgrade", pages.upgrade_page),
            Route("/healthz", pages.healthz),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
            Route("/v1/status", upgrading.status),
            Route("/v1/search", searching.search, methods=["POST"]),
            Route("/v1/items", searching.add, methods=["POST"]),
            Route("/v1/items", searching.remove, methods=["DELETE"]),
            Route("/v1/items/{number}/image", searching.image),
            *upgrades,
        ],
        middleware=[Middleware(Guard, settings=settings, metrics=service.metrics)],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.service = service
    return app
