"""A replica: the application and its engine in a process of Ray's, called without a socket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

from fastapi import FastAPI
from ray import serve

from flux_trt.runtime.errors import BackendError
from flux_trt.serving import told
from flux_trt.serving.ray.crossing import Call, Message
from flux_trt.serving.server import log

_log = logging.getLogger(__name__)


class Painter:
    """What Ray Serve starts on each GPU; it is there once it has painted."""

    def __init__(self, make: Callable[[], FastAPI]) -> None:
        """Load the models and wait until they have painted.

        Args:
            make: the application, which lets everything pass.

        Raises:
            FluxTrtError: something cannot be loaded, or the engine has died.
        """
        log()
        self._open = ExitStack()
        self._open.enter_context(told.listening())
        self._app = make()
        self._engine = self._app.state.served.engine
        self._engine.start()
        while self._engine.state[0] == "loading":
            time.sleep(0.05)
        self.check_health()

    def check_health(self) -> None:
        """Asked by Ray Serve, which starts another replica where this one's engine has died.

        Raises:
            BackendError: it has.
        """
        state, why = self._engine.state
        if state == "broken":
            raise BackendError(why)

    async def metrics(self) -> tuple[str, bytes]:
        """Whose, and what was counted here, for Prometheus."""
        return serve.get_replica_context().replica_tag, self._app.state.served.metrics.page()

    async def call(self, call: Call) -> AsyncIterator[Message]:
        """Answer a request, as messages of ASGI; who stops listening has left."""
        answered: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": call.body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        task = asyncio.create_task(self._app(call.scope, receive, answered.put))
        task.add_done_callback(lambda done: answered.put_nowait(None))
        try:
            while (message := await answered.get()) is not None:
                yield message
        finally:
            left.set()
            if not task.done():
                _leaving.add(task)
                task.add_done_callback(_leaving.discard)
        if fault := task.exception():
            _log.error("%s: a fault of the server", call.state["id"], exc_info=fault)


_leaving: set[asyncio.Task[None]] = set()
"""Tasks of clients that have left: asyncio itself holds none."""
