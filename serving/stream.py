"""Server-sent events: what a picture is going to be, how far it is, and the picture."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool
from PIL import Image

from flux_trt.serving.answer import about, extras, in_base64, usage
from flux_trt.serving.errors import ApiError
from flux_trt.serving.fields import Fields
from flux_trt.serving.listening import Listening
from flux_trt.serving.work import Done, Moved, Partial, Work

PING = 10.0  # seconds: gateways cut what is silent
PACE = 0.1  # seconds between two comments on progress


async def events(
    work: Work, fields: Fields, listening: Listening, kind: str, start: float, at: asyncio.Semaphore
) -> AsyncIterator[str]:
    """The text of all events of one request, which end with the last picture or an error.

    Args:
        work: that was handed in.
        fields: that it was asked with.
        listening: to the engine.
        kind: "image_generation" or "image_edit".
        start: of `time.perf_counter`.
        at: pictures that are made into files at once.
    """

    async def file(image: Image.Image) -> str:
        async with at:
            return await run_in_threadpool(in_base64, image, fields)

    done, told = 0, 0.0
    try:
        while done < len(work.request):
            event = await listening.next(PING)
            if event is None:
                yield ": ping\n\n"
            elif isinstance(event, Moved):
                now = time.perf_counter()
                if now - told > PACE or event.step == event.steps:
                    told = now
                    yield f": step {event.index} {event.step} {event.steps}\n\n"
            elif isinstance(event, Partial):
                found = about(work, fields) | {"b64_json": await file(event.image)}
                found |= {"partial_image_index": event.number, "index": event.index}
                yield frame(f"{kind}.partial_image", found)
            elif isinstance(event, Done):
                done += 1
                found = about(work, fields) | {"b64_json": await file(event.painted.image)}
                found |= extras(work, event)
                found |= {
                    "index": event.index,
                    "usage": usage(work, 1),
                    "safety_identifier": fields.who,
                    "model": work.model.id,
                    "warnings": work.warnings,
                    "seconds": round(time.perf_counter() - start, 4),
                }
                yield frame(f"{kind}.completed", found)
    except ApiError as fault:
        yield frame("error", fault.body)


def frame(name: str, data: dict[str, Any]) -> str:
    """The text of one."""
    return f"event: {name}\ndata: {json.dumps({'type': name, 'created_at': int(time.time()), **data})}\n\n"
