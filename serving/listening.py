"""From the engine's thread to the server's: events in order, until a client has what it asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flux_trt.serving.errors import ApiError, told
from flux_trt.serving.work import Event, Failed


class Listening:
    """What is told of one piece of work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float | None = None) -> Event | None:
        """The next event, or None when there was none for so long.

        Raises:
            ApiError: it has failed.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None
        if isinstance(event, Failed):
            raise failed(event)
        return event

    async def until(self, gone: asyncio.Task[None]) -> AsyncIterator[Event]:
        """Events until the client has gone. Errors are those of `next`."""
        while not gone.done():
            coming = asyncio.ensure_future(self.next())
            try:
                await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                event = coming.result()
            finally:
                coming.cancel()
            if event is not None:
                yield event


def failed(event: Failed) -> ApiError:
    """What a client is told."""
    if event.fault is not None:
        return told(event.fault)
    if not event.again:
        return ApiError(
            500, f"{event.why} while it painted this; the server's log has it", code="internal_error"
        )
    return ApiError(503, f"it was not painted: {event.why}; send it again", code="unavailable", retry_after=5)
