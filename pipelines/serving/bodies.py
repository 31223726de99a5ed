"""What requests send: images as they are, as files of a form, or in JSON; read within limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from cprfl.inference.pyfunc import Content
from pipelines.serving.limits import Hold, Limits, RefusedError

IMAGE, IMAGES = "image", "images"
_JSON, _FORM, _BYTES = "application/json", "multipart/form-data", "application/octet-stream"


def content_type(request: Request) -> str:
    """Media type of the body, without parameters; that of plain bytes where a request does not say."""
    return request.headers.get("content-type", _BYTES).partition(";")[0].strip().lower()


async def read_body(request: Request, limits: Limits, hold: Hold) -> bytes:
    """The whole body, of which each part is held before it is kept.

    Raises:
        RefusedError: 413 where it is larger than it may be, 408 where it takes too long, 400 where it is empty, 503
            where all requests together hold too much.
    """
    too_large = RefusedError(413, f"more than {limits.body / 1e6:g} MB; send less, or start with a larger --limit-mb")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.body:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                hold(len(chunk))
                found += chunk
                if len(found) > limits.body:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"not sent within {limits.seconds:g} seconds") from None
    if not found:
        raise RefusedError(400, "nothing was sent; send an image")
    return bytes(found)


async def images_in(request: Request, limits: Limits, hold: Hold) -> list[Content]:
    """The images of a request to ``/predict``, encoded, or base64 of them.

    Raises:
        RefusedError: where there are none, too many, or the body is of another type.
    """
    kind = content_type(request)
    if not (kind.startswith("image/") or kind in (_JSON, _FORM, _BYTES)):
        kinds = f"image/* (curl: -H 'Content-Type: image/jpeg'), {_BYTES}, {_FORM} or {_JSON}"
        raise RefusedError(415, f"{kind!r}: send {kinds}")
    body = await read_body(request, limits, hold)
    if kind == _FORM:
        found: list[Content] = await _files(request, body, limits)
    elif kind == _JSON:
        found = _of_json(body)
    else:
        found = [body]
    return check_count(found, limits)


def check_count(values: Sequence[Content], limits: Limits) -> list[Content]:
    """The values, where they are neither none nor too many, and what is text can be base64.

    Raises:
        RefusedError: where that is not so.
    """
    if not values:
        raise RefusedError(400, "no image was sent")
    if len(values) > limits.images:
        raise RefusedError(413, f"{len(values)} images in one request; send {limits.images} at most")
    if not all(value.isascii() for value in values if isinstance(value, str)):
        raise RefusedError(422, "no base64, for it has other letters; send an image's bytes, or base64 of them")
    return list(values)


async def _files(request: Request, body: bytes, limits: Limits) -> list[Content]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, receive).form(max_files=limits.images, max_fields=limits.images) as form:
            return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    except HTTPException as error:  # the parser's own words: too many files, no boundary, a part without a name
        raise RefusedError(400, f"no form that can be read: {error.detail}") from None


def _of_json(body: bytes) -> list[Content]:
    wanted = f'send {{"{IMAGE}": "<base64>"}} or {{"{IMAGES}": ["<base64>", ...]}}'
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"no JSON: {str(error)[:200]}; {wanted}") from None
    if not isinstance(values, dict) or len(values.keys() & {IMAGE, IMAGES}) != 1:
        raise RefusedError(422, wanted)
    found = values[IMAGES] if IMAGES in values else [values[IMAGE]]
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise RefusedError(422, wanted)
    return found
