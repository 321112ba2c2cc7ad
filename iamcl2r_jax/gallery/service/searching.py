"""Endpoints of searches and items."""

import asyncio
import re
import uuid

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from iamcl2r_jax.gallery import Hit, Item, NewItem, indexing
from iamcl2r_jax.gallery.images import Picture
from iamcl2r_jax.gallery.service import bodies, uploads
from iamcl2r_jax.gallery.service.access import require_token
from iamcl2r_jax.gallery.service.bodies import Upload
from iamcl2r_jax.gallery.service.queries import Query
from iamcl2r_jax.gallery.service.service import Service
from iamcl2r_jax.system.errors import InputError


async def search(request: Request) -> Response:
    """POST /v1/search: the hits of an uploaded image, or of a stored item.

    A form has the image as `image`, and maybe `k`; JSON has the item's key as `item`, and maybe
    `k`. The header X-Request-Id names the request: one that is sent again is answered by the same
    model while a canary runs.
    """
    service: Service = request.app.state.service
    with service.batcher.coming():
        return await _searched(request, service)


async def _searched(request: Request, service: Service) -> Response:
    body = await bodies.read(request, ("item", "k"), image=True)
    name = request.headers.get("x-request-id", "")[:128] or uuid.uuid4().hex
    k = body.integer("k", 10, 1, service.settings.max_hits)
    key = body.text("item")
    if (key is None) == (body.upload is None):
        raise InputError("image or item: give one of them, what to search for")
    if body.upload is not None:
        picture = _picture(service, body.upload)
        await _on_decoder(service, _decoded, service, picture, name)
        query = Query(name, k, picture=picture)
    else:
        item = await anyio.to_thread.run_sync(service.gallery.item, key)
        if item is None:
            raise HTTPException(404, f"item={key!a}: there is none of this key")
        query = Query(name, k, item=item)
    found = await service.batcher.ask(query)
    service.metrics.queries.labels(found.model).inc()
    hits = [_described(request, hit) for hit in found.hits]
    return JSONResponse({"request": name, "model": found.model, "hits": hits})


async def add(request: Request) -> Response:
    """POST /v1/items: stores an image as an item; a key that is known is replaced.

    A form has the image as `image`, and maybe `key` (by default the SHA-256 of the file) and
    `label`.
    """
    require_token(request)
    service: Service = request.app.state.service
    body = await bodies.read(request, ("key", "label"), image=True)
    key, label = body.text("key"), body.text("label")
    if body.upload is None:
        raise InputError("image: is missing; send a form with the file under this name")
    picture = _picture(service, body.upload)
    number = await _on_decoder(service, _add, service, body.upload, picture, key, label)
    item = {"id": number, "key": key or picture.digest, "label": label}
    return JSONResponse(item, 201)


async def remove(request: Request) -> Response:
    """DELETE /v1/items?key=KEY: removes an item, its vectors and its uploaded image."""
    require_token(request)
    service: Service = request.app.state.service
    key = bodies.Body(dict(request.query_params)).text("key")
    if key is None:
        raise InputError("key: is missing; name the item as ?key=KEY")
    if not await anyio.to_thread.run_sync(_remove, service, key):
        raise HTTPException(404, f"key={key!a}: there is no such item")
    return JSONResponse({"removed": 1})


async def image(request: Request) -> Response:
    """GET /v1/items/NUMBER/image: a small picture of an item, if it lies inside the gallery."""
    service: Service = request.app.state.service
    number = request.path_params["number"]
    content = None
    if re.fullmatch(r"[0-9]{1,18}", number, re.ASCII):
        content = await _on_decoder(service, _image, service, int(number))
    if content is None:
        raise HTTPException(404, "there is no such item, or its image is not inside the gallery")
    return Response(content, 200, {"Cache-Control": "private, max-age=60"}, "image/png")


def _picture(service: Service, upload: Upload) -> Picture:
    return Picture(upload.content, upload.name, max_pixels=service.settings.max_pixels)


async def _on_decoder(service: Service, function, *arguments):
    """Calls what decodes a picture in a thread; few at once, since each takes memory.

    An executor, since AnyIO's threads took a third of a loaded server's time.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.decoders, function, *arguments)


def _decoded(service: Service, picture: Picture, request: str) -> None:
    """Decodes a picture as the model that will answer takes it; errors are this request's own."""
    picture.at(service.gallery.route(request).info.image["size"])


def _add(
    service: Service, upload: Upload, picture: Picture, key: str | None, label: str | None
) -> int:
    for model in service.gallery.writing_models():
        picture.at(model.info.image["size"])  # what is no image is not stored
    key = key or picture.digest
    before = service.gallery.item(key)
    path = service.images.write(upload.content, picture.digest)
    item = NewItem(key, picture.digest, path, label)
    (number,) = indexing.add_pictures(service.gallery, service.embedders, [item], [picture])
    # Another request may have removed the last item of this image while it was embedded.
    service.images.write(upload.content, picture.digest)
    if before is not None:
        service.images.discard(before.path)
    return number


def _remove(service: Service, key: str) -> bool:
    item = service.gallery.item(key)
    if item is None:
        return False
    service.gallery.remove([key])
    service.images.discard(item.path)
    return True


def _image(service: Service, number: int) -> bytes | None:
    item: Item | None = service.gallery.items([number]).get(number)
    if item is None:
        return None
    return uploads.picture(service.gallery, item, service.settings.image_roots)


def _described(request: Request, hit: Hit) -> dict:
    item = hit.item
    address = None
    if item.path is not None:
        address = request.app.url_path_for("image", number=str(item.id))
    return {
        "id": item.id,
        "key": item.key,
        "label": item.label,
        "score": hit.score,
        "stored_by": hit.model,
        "image": address,
    }
