"""Endpoints of the state and of upgrades."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from iamcl2r_jax.gallery import transitions, upgrades
from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.service import bodies
from iamcl2r_jax.gallery.service.access import require_token
from iamcl2r_jax.gallery.service.answers import answer
from iamcl2r_jax.gallery.service.bodies import Body
from iamcl2r_jax.gallery.service.service import Service
from iamcl2r_jax.system.errors import InputError

_GATE = ("model", "name", "gallery", "query", "gallery_split", "query_split", "metric", "data_dir")


async def status(request: Request) -> Response:
    """GET /v1/status: the gallery, its upgrade, the work that runs, and the latest events."""
    return JSONResponse(await run_in_threadpool(request.app.state.service.described))


async def gate(request: Request) -> Response:
    """POST /v1/upgrade/gate: compares a model on labelled images; 409 if it is not compatible.

    The answer comes when the gate has ended; it ends, too, if nobody waits for it any more.
    """
    service, body = await _order(request, (*_GATE, "accept_incompatible", "cost_per_hour", "seed"))
    options: dict[str, Any] = {name: body.text(name, 4096) for name in _GATE}
    for name in ("model", "gallery"):
        if options[name] is None:
            raise InputError(f"{name}: is missing")
    options |= {
        "accept_incompatible": body.flag("accept_incompatible"),
        "cost_per_hour": body.number("cost_per_hour"),
        "seed": body.integer("seed", 0, 0, 2**31 - 1),
    }
    given = {name: value for name, value in options.items() if value is not None}
    job = service.jobs.start("gate", given)
    while job.ended is None:
        await asyncio.sleep(0.05)
    if job.error is not None:
        return answer(job.status, job.error)
    if job.result["compatible"] or job.result["accepted"]:
        return JSONResponse(job.result)
    line = f"model {job.result['model']} is not compatible: {job.result['gain']:+.4f} against old"
    return JSONResponse({"error": line, "status": 409, **job.result}, 409)


async def canary(request: Request) -> Response:
    """POST /v1/upgrade/canary {"share": in [0, 1]}: gives the new model that share of queries."""
    service, body = await _order(request, ("share",))
    share = body.number("share")
    if share is None:
        raise InputError("share: is missing; must be in [0, 1]")

    def act() -> None:
        upgrade = upgrades.current(service.gallery.view())
        transitions.after("canary", upgrade.state)
        # Loaded before, so that its first queries do not wait for it.
        service.prepare(service.gallery.view().models[upgrade.new_model])
        service.gallery.canary(share)

    return await _acted(service, act)


async def promote(request: Request) -> Response:
    """POST /v1/upgrade/promote {"merge": "raw" or "zscore", by default what the gate found}."""
    service, body = await _order(request, ("merge",))
    return await _acted(service, lambda: service.gallery.promote(body.text("merge")))


async def backfill(request: Request) -> Response:
    """POST /v1/upgrade/backfill {"rate": items a second, "batch": items}: 202, and it goes on."""
    service, body = await _order(request, ("rate", "batch"))
    options: dict[str, Any] = {"batch": body.integer("batch", 64, 1, 4096)}
    if (rate := body.number("rate")) is not None:
        if not rate > 0:
            raise InputError(f"rate={rate}: must be positive")
        options["rate"] = rate

    def act() -> None:
        upgrade = upgrades.current(service.gallery.view())
        transitions.after("backfill", upgrade.state)
        if upgrade.paused:
            raise Refused("backfill: the upgrade is paused; resume it first")
        service.jobs.start("backfill", options)

    return await _acted(service, act, 202)


async def pause(request: Request) -> Response:
    """POST /v1/upgrade/pause {"resume": whether to let it go on}; a backfill is started again."""
    service, body = await _order(request, ("resume",))
    act = service.gallery.resume if body.flag("resume") else service.gallery.pause
    return await _acted(service, act)


async def rollback(request: Request) -> Response:
    """POST /v1/upgrade/rollback: the old model answers all queries again."""
    service, _ = await _order(request, ())
    return await _acted(service, service.gallery.rollback)


async def retire(request: Request) -> Response:
    """POST /v1/upgrade/retire: ends the upgrade and removes the vectors that serve no longer."""
    service, _ = await _order(request, ())
    return await _acted(service, service.gallery.retire)


async def _order(request: Request, known: tuple[str, ...]) -> tuple[Service, Body]:
    require_token(request)
    return request.app.state.service, await bodies.read(request, known)


async def _acted(service: Service, act: Callable[[], object], code: int = 200) -> Response:
    """Acts, and answers with the state of the upgrade afterwards."""
    await run_in_threadpool(act)
    found = await run_in_threadpool(service.gallery.status)
    return JSONResponse({"serving": found["serving"], "upgrade": found["upgrade"]}, code)
