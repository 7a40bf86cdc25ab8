"""The process: it listens, is ready once the models have painted, and drains when it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from types import FrameType
from typing import Any, Protocol

import click
import uvicorn

from flux_trt.runtime.errors import BackendError
from flux_trt.serving.engine import State

LOG = "%(asctime)s %(levelname)s %(message)s"


class Painting(Protocol):
    """An engine, or all those of a fleet."""

    @property
    def state(self) -> tuple[State, str]:
        """Where it stands, and why."""

    def start(self) -> None:
        """Be ready in a while."""

    def join(self) -> None:
        """Wait until it has stopped or died."""

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more, and wait so long until all is painted; whether it was."""


class Server(uvicorn.Server):
    """uvicorn, which goes on answering while the engine drains."""

    def __init__(self, config: uvicorn.Config, engine: Painting, drain_seconds: float) -> None:
        super().__init__(config)
        self._engine, self._seconds, self._draining = engine, drain_seconds, False
        self.drained = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        if self._draining or sig == getattr(signal, "SIGQUIT", None):
            self.force_exit = self.should_exit = True
            return
        self._draining = True
        logging.getLogger("flux_trt.serving").info(
            "%s: what was accepted is painted", signal.Signals(sig).name
        )
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self.drained = self._engine.drain(self._seconds)
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            for each in self.servers:
                for socket in each.sockets:
                    host, port = socket.getsockname()[:2]
                    shown = f"[{host}]" if ":" in host else host
                    click.echo(f"http://{shown}:{port}", err=True)


def serve(app: Any, engine: Painting, host: str, port: int, drain_seconds: float) -> None:
    """Until a signal ends it, and what was accepted is painted.

    Args:
        app: an application of ASGI.
        engine: that paints for it; it is started here.
        host: where it listens.
        port: the same; 0: any free one.
        drain_seconds: what was accepted may take so long after the signal.

    Raises:
        BackendError: the engine has died, or the place is taken.
    """
    log()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = Server(config, engine, drain_seconds)
    engine.start()
    watch = threading.Thread(target=_watch, args=(engine, server), daemon=True)
    watch.start()
    try:
        asyncio.run(server.serve())
    except SystemExit:
        raise BackendError(f"cannot listen at {host}:{port}; choose another --port") from None
    finally:
        engine.drain(0)
    if engine.state[0] == "broken":
        raise BackendError(f"{engine.state[1]}; see the log above, and start it anew")


def _watch(engine: Painting, server: Server) -> None:
    """End the process when its engine has died, so that whoever supervises it starts another."""
    engine.join()
    if engine.state[0] == "broken":
        server.should_exit = True


def log() -> None:
    """One line for each request that is over: never a prompt, never a picture."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG))
    for name in ("flux_trt.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name.startswith("flux") else logging.WARNING)
