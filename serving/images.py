"""/v1/images/generations and /v1/images/edits, at once or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import UploadFile

from flux_trt.serving import asked, uploads
from flux_trt.serving.answer import answer, in_base64
from flux_trt.serving.engine import Engine
from flux_trt.serving.errors import ApiError
from flux_trt.serving.fields import Fields, read
from flux_trt.serving.listening import Listening
from flux_trt.serving.stream import events
from flux_trt.serving.work import Done, Work

PICTURES = ("image", "image[]", "mask")
MOST_GIVEN = 16  # pictures of one edit, as at OpenAI

router = APIRouter()


@router.post("/v1/images/generations")
async def generations(request: Request) -> Response:
    """Paint from text."""
    given = await body_json(request)
    return await _painted(request, read(given, edit=False), None, "image_generation")


@router.post("/v1/images/edits")
async def edits(request: Request) -> Response:
    """Paint from pictures."""
    fields, files = await body_form(request)
    return await _painted(request, read(fields, edit=True), files, "image_edit")


@router.post("/v1/images/variations")
async def variations() -> Response:
    """Gone at OpenAI, too."""
    raise ApiError(
        404, "there are no variations any more; send the picture to /v1/images/edits", code="not_found"
    )


async def work_of(
    request: Request, fields: Fields, files: Mapping[str, list[bytes]] | None, listening: Listening
) -> Work:
    """What is asked for, checked and decoded beside the server's own thread; not handed in yet."""
    served, state = request.app.state.served, request.state
    if fields.seed is None:
        fields = fields.model_copy(update={"seed": state.seed})
    async with served.decoders:
        work = await run_in_threadpool(made, served.engine, fields, files, state.id, state.owner)
    work.tell, work.until = listening.tell, _until(request)
    return work


def made(
    engine: Engine, fields: Fields, files: Mapping[str, list[bytes]] | None, name: str, owner: str
) -> Work:
    """Work of what was sent, which nobody listens to yet.

    Raises:
        ApiError: something that cannot be.
    """
    (model, own), warnings = engine.models.find(fields.model), list[str]()
    loras = model.adapters.choose((*own, *(fields.lora or ())), model.id)
    pictures = None if files is None else _decoded(files, engine.limits)
    manifest = model.pipeline.bundle.manifest
    request = asked.request_of(manifest, fields, pictures, engine.limits, warnings, loras)
    model.read(loras)
    return Work(
        id=name,
        model=model,
        request=request,
        tell=lambda event: None,
        partials=fields.partial_images,
        owner=owner,
        warnings=warnings,
    )


async def _painted(
    request: Request, fields: Fields, files: Mapping[str, list[bytes]] | None, kind: str
) -> Response:
    served, start = request.app.state.served, time.perf_counter()
    listening = Listening(asyncio.get_running_loop())
    work = await work_of(request, fields, files, listening)
    served.engine.submit(work)
    if fields.stream:
        return StreamingResponse(
            _stream(served, work, fields, listening, kind, start),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    try:
        done = await _all(request, work, listening)
        pictures = [(each, await encoded(served, each, fields)) for each in done]
    finally:
        served.engine.cancel(work)  # harmless where it is done
    return JSONResponse(answer(work, fields, pictures, time.perf_counter() - start))


async def encoded(served: Any, done: Done, fields: Fields) -> str:
    """A picture's file, made beside the server's own thread."""
    async with served.decoders:
        return await run_in_threadpool(in_base64, done.painted.image, fields)


async def _all(request: Request, work: Work, listening: Listening) -> list[Done]:
    """Its pictures in order; a client that leaves ends it."""
    gone = asyncio.create_task(_gone(request))
    try:
        found: list[Done] = []
        async for event in listening.until(gone):
            if isinstance(event, Done):
                found.append(event)
            if len(found) == len(work.request):
                return sorted(found, key=lambda each: each.index)
        raise ApiError(499, "the client has gone", code="cancelled")
    finally:
        gone.cancel()


async def _stream(
    served: Any, work: Work, fields: Fields, listening: Listening, kind: str, start: float
) -> AsyncIterator[str]:
    try:
        async for event in events(work, fields, listening, kind, start, served.decoders):
            yield event
    finally:
        served.engine.cancel(work)


async def _gone(request: Request) -> None:
    """Ends when the client has."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body_json(request: Request) -> dict[str, Any]:
    """The object of a body.

    Raises:
        ApiError: it is none.
    """
    body = await request.body()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON; send an object", code="invalid_body") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object; send one", code="invalid_body")
    return found


async def body_form(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Fields and the bytes of pictures, of a form or of JSON with data: addresses.

    Raises:
        ApiError: neither, or no picture.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    if kind == "application/json":
        given = await body_json(request)
        for name, value in given.items():
            if name in PICTURES:
                for each in value if isinstance(value, list) else [value]:
                    files[name.removesuffix("[]")].append(uploads.of_text(name, each))
            else:
                fields[name] = value
    elif kind == "multipart/form-data":
        most = request.app.state.served.limits.body_bytes
        async with request.form(max_files=MOST_GIVEN + 1, max_fields=100, max_part_size=most) as form:
            for name, value in form.multi_items():
                if name in PICTURES:
                    data = (
                        await value.read() if isinstance(value, UploadFile) else uploads.of_text(name, value)
                    )
                    files[name.removesuffix("[]")].append(data)
                elif isinstance(value, UploadFile):
                    raise ApiError(400, f"{name:.80} is a file; pictures are image and mask", param=name[:80])
                elif name in fields:
                    raise ApiError(400, f"{name:.80} is sent twice; send it once", param=name[:80])
                else:
                    fields[name] = value
    else:
        raise ApiError(400, "an edit is sent as multipart/form-data, or as JSON with data: addresses")
    if not files["image"]:
        raise ApiError(400, "image is missing; send a picture", param="image", code="missing")
    if len(files["mask"]) > 1 or len(files["image"]) > MOST_GIVEN:
        raise ApiError(400, f"one mask and at most {MOST_GIVEN} pictures are accepted", param="image")
    return fields, files


def _decoded(files: Mapping[str, list[bytes]], limits: Any) -> asked.Pictures:
    images = [uploads.photo("image", data, limits) for data in files["image"]]
    mask = uploads.mask(files["mask"][0], limits, images[0].size) if files["mask"] else None
    return asked.Pictures(images, mask)


def _until(request: Request) -> float | None:
    """When OpenAI's client will stop waiting, which it says."""
    try:
        return time.monotonic() + float(request.headers["x-stainless-read-timeout"])
    except (KeyError, ValueError):
        return None
