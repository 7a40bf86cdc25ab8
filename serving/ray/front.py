"""The door: what it knows it answers itself; all else goes to a replica, and to another if that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from flux_trt.serving import health, page
from flux_trt.serving.app import Receive, Scope, Send, answered, bare
from flux_trt.serving.errors import ApiError
from flux_trt.serving.ray.counted import merged
from flux_trt.serving.ray.crossing import Call, Message
from flux_trt.serving.ray.fleet import Fleet, LostError
from flux_trt.serving.stream import frame

TRIES = 2  # replicas that a request may cost: one that kills them must not kill them all


@dataclass
class Shown:
    """What the routes of `health` find in `app.state.served`."""

    engine: Fleet


class Front:
    """An application of ASGI, for a `Gate` to stand before."""

    def __init__(self, fleet: Fleet) -> None:
        """Serve what a fleet paints."""
        self._fleet = fleet
        self._own = _own(fleet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not scope["path"].startswith("/v1/"):
            await self._own(scope, receive, send)
            return
        try:
            with self._fleet.taken():
                await self._forward(Call.of(scope, await _whole(receive)), receive, send)
        except ApiError as fault:
            await answered(None, fault)(scope, receive, send)

    async def _forward(self, call: Call, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_left(receive))
        try:
            for left in reversed(range(TRIES)):
                try:
                    await self._relay(call, gone, send)
                    return
                except LostError:
                    if not left:
                        raise _lost() from None
        finally:
            gone.cancel()

    async def _relay(self, call: Call, gone: asyncio.Task[None], send: Send) -> None:
        """Hand on what a replica answers. The start waits for the first part of the body.

        Raises:
            LostError: it is lost, and nothing was sent.
            ApiError: nothing was sent, either.
            ConnectionError: it is lost in the midst of an answer, which is cut off.
        """
        start: Message | None = None
        streamed = sent = False
        try:
            async for message in _until(self._fleet.call(call), gone):
                if message["type"] == "http.response.start":
                    start = message
                    streamed = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                    continue
                if start is not None:
                    await send(start)
                    start, sent = None, True
                await send(message)
        except (LostError, ApiError) as fault:
            if not sent:
                raise
            if not streamed:
                raise ConnectionError("a replica was lost in the midst of its answer") from None
            told = fault if isinstance(fault, ApiError) else _lost()
            await send({"type": "http.response.body", "body": frame("error", told.body).encode()})


def _own(fleet: Fleet) -> FastAPI:
    """Liveness, readiness, the page, and what all replicas have counted."""
    app = bare()
    app.state.served = Shown(fleet)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        text = merged(await fleet.pages(), fleet.replicas, fleet.lost)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(health.router)
    app.include_router(page.router)
    return app


def _lost() -> ApiError:
    return ApiError(
        503, "the replica that painted it is lost; send it again", code="replica_lost", retry_after=5
    )


async def _whole(receive: Receive) -> bytes:
    """A request's body, which the gate bounds."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client has gone", code="cancelled")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _left(receive: Receive) -> None:
    """Ends when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until(messages: AsyncIterator[Any], gone: asyncio.Task[None]) -> AsyncIterator[Message]:
    """Messages until there are no more, or the client has gone: then nobody makes any more of them."""
    coming: asyncio.Future[Message] | None = None
    try:
        while not gone.done():
            coming = asyncio.ensure_future(anext(messages))
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            try:
                yield coming.result()
            except StopAsyncIteration:
                return
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait({coming})
        await messages.aclose()  # type: ignore[attr-defined]
