"""Reads requests: fields with limits, an image, and JSON. Whatever is wrong is one line."""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from iamcl2r_jax.system.errors import InputError

_MAX_FIELD = 64 * 1024  # bytes of JSON, or of a field of a form
_MAX_FIELDS = 16
# Halves of surrogate pairs, too, which UTF-8 cannot hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Upload:
    """An uploaded file: its content, and the name that the client gave it, for messages only."""

    content: bytes
    name: str


@dataclasses.dataclass(frozen=True)
class Body:
    """A request's fields by name; strings if it was a form, JSON values if it was JSON.

    Its methods raise `InputError` if a field holds something else.
    """

    fields: Mapping[str, Any]
    upload: Upload | None = None

    def text(self, name: str, limit: int = 512) -> str | None:
        """A string of 1 to `limit` characters, none a control character; None if it is missing."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise InputError(f"{name}={_shown(value)}: must be a string")
        if not 0 < len(value) <= limit:
            raise InputError(f"{name}: must have 1 to {limit} characters, has {len(value)}")
        if _CONTROL.search(value):
            raise InputError(f"{name}={_shown(value)}: must be text without control characters")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.fields.get(name, default)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name}={_shown(value)}: must be an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float | None:
        """A finite number; None if it is missing."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}={_shown(value)}: must be a number")
        if abs(value) > 1e15 or not math.isfinite(value):
            raise InputError(f"{name}={_shown(value)}: must be a finite number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false if it is missing."""
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            raise InputError(f"{name}={_shown(value)}: must be true or false")
        return value


async def read(request: Request, known: Collection[str], *, image: bool = False) -> Body:
    """The body of a request: JSON, or a form where there may be an image.

    Args:
      request: whose body is limited already, see `guard`.
      known: fields that it may have.
      image: whether it may have a file of the name `image`.

    Raises:
      HTTPException: with status 415 for another kind of body.
      InputError: it cannot be read, or has fields that are not known.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if image and kind == "multipart/form-data":
        return await _form(request, known)
    content = await request.body()
    if not content and not image:
        return Body({})
    if kind != "application/json":
        kinds = "multipart/form-data or application/json" if image else "application/json"
        raise HTTPException(415, f"content-type {kind or 'missing'}: must be {kinds}")
    fields = _json(content)
    _check_known(fields, known)
    return Body(fields)


async def _form(request: Request, known: Collection[str]) -> Body:
    fields: dict[str, str] = {}
    upload = None
    async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD) as form:
        for name, value in form.multi_items():
            if name == "image" and isinstance(value, UploadFile):
                upload = Upload(await value.read(), _display(value.filename or "image"))
            elif isinstance(value, UploadFile):
                raise InputError(f"{_shown(name)}: is a file; the image must be named 'image'")
            elif name in fields:
                raise InputError(f"{_shown(name)}: is given twice")
            else:
                fields[name] = value
    _check_known(fields, known)
    return Body(fields, upload)


def _json(content: bytes) -> dict[str, Any]:
    if len(content) > _MAX_FIELD:
        raise HTTPException(413, f"JSON of {len(content)} bytes: must have at most {_MAX_FIELD}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = str(error)[:100] if isinstance(error, json.JSONDecodeError) else "not UTF-8 JSON"
        raise InputError(f"body: must be a JSON object ({why})") from None
    if not isinstance(fields, dict):
        raise InputError("body: must be a JSON object")
    return fields


def _check_known(fields: Mapping[str, Any], known: Collection[str]) -> None:
    for name in fields:
        if name not in known:
            may = f"may have {', '.join(known)}" if known else "has none"
            raise InputError(f"unknown field {_shown(name)}; this request {may}")


def _display(name: str) -> str:
    return re.sub(r"[^\w .()+-]", "_", name, flags=re.ASCII)[-80:]


def _shown(value: Any) -> str:
    """A value as a message shows it: short, and of characters that any encoding has."""
    shown = ascii(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
