"""The application: its routes, its faults in OpenAI's shape, and what every request passes."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flux_trt.serving import health, images, job_routes, page
from flux_trt.serving.asked import SEEDS
from flux_trt.serving.engine import Engine
from flux_trt.serving.errors import ApiError
from flux_trt.serving.jobs import Jobs
from flux_trt.serving.limits import MEGA, Limits
from flux_trt.serving.local import is_local
from flux_trt.serving.metrics import Metrics
from flux_trt.serving.models import Models

OPEN = ("/healthz", "/readyz", "/", "/page.js", "/page.css")
"""What is answered without a key: it tells nothing of anybody's pictures."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Served:
    """What routes find in `app.state.served`."""

    models: Models
    engine: Engine
    limits: Limits
    metrics: Metrics
    jobs: Jobs | None = None
    decoders: asyncio.Semaphore = field(init=False)
    """At pictures that are being decoded or encoded."""

    def __post_init__(self) -> None:
        self.decoders = asyncio.Semaphore(self.limits.decoders)


def application(
    models: Models,
    limits: Limits | None = None,
    keys: Sequence[str] | None = (),
    keep: Path | None = None,
    hours: float = 24.0,
) -> FastAPI:
    """The application with its engine, which is not started.

    Args:
        models: that are served.
        limits: what clients may ask for.
        keys: of which a client must have one; none: everybody may. None: the gate stands elsewhere.
        keep: the folder of jobs; None: none are taken.
        hours: how long a job is kept.
    """
    limits, metrics = limits or Limits(), Metrics()
    engine = Engine(models, limits, metrics)
    app = bare()
    jobs = None if keep is None else Jobs(keep, engine, hours)
    app.state.served = Served(models, engine, limits, metrics, jobs)
    for each in (images, job_routes, health, page):
        app.include_router(each.router)
    if keys is not None:
        app.add_middleware(Gate, keys=tuple(keys), most=limits.body_bytes)
    return app


def bare() -> FastAPI:
    """An application without routes, whose faults have OpenAI's shape."""
    app = FastAPI(title="flux-serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, answered)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _bug)
    return app


class Gate:
    """What every request passes: a key, a bound on its body, an id that the answer carries, and a seed.

    The seed is for a request that has none; drawn here, it is the same for whoever paints it in the end.
    """

    def __init__(self, app: Any, keys: Sequence[str], most: int) -> None:
        self._app, self._most = app, most
        self._keys = [each.encode() for each in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope.setdefault("state", {})
        scope["state"]["id"] = f"req_{secrets.token_hex(12)}"

        async def named(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", scope["state"]["id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        scope["state"]["seed"] = secrets.randbelow(SEEDS)
        fault = self._refused(scope, headers)
        if fault:
            await answered(None, fault)(scope, receive, named)
            return
        await self._app(scope, self._bounded(receive), named)

    def _refused(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> ApiError | None:
        scope["state"]["owner"] = ""
        if self._keys and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            kind, _, key = given.partition(b" ")
            key = key.strip() if kind.lower() == b"bearer" else b""
            known = [hmac.compare_digest(key, each) for each in self._keys]
            if not any(known):
                return ApiError(
                    401,
                    "a key is needed; send Authorization: Bearer KEY",
                    code="invalid_api_key",
                )
            scope["state"]["owner"] = sha256(key).hexdigest()
        if not self._keys and _foreign(headers):
            return ApiError(
                403,
                "without a key only pages of this server itself may ask; start it with --api-key-file",
                code="foreign_origin",
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._most / MEGA:.0f} MB; send less", code="body_too_large"
        )

    def _bounded(self, receive: Receive) -> Receive:
        """The body, which may come without a length, up to the bound."""
        seen = 0

        async def part() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._too_large()
            return message

        return part


def _foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks for a page of another host, by its own word or through a name for this one."""
    if headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site"):
        return True
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return not is_local(name.strip("[]"))


def answered(request: Request | None, fault: Any) -> JSONResponse:
    """An `ApiError` as an answer."""
    return JSONResponse(fault.body, fault.status, fault.headers)


def _http_error(request: Request, fault: Any) -> JSONResponse:
    """Such as a path that is not there."""
    what = {
        404: f"there is no {request.url.path:.100}",
        405: f"{request.url.path:.100} takes no {request.method}",
    }
    message = what.get(fault.status_code, str(fault.detail))
    return answered(request, ApiError(fault.status_code, f"{message}; see docs/serve.md", code="not_found"))


def _unreadable(request: Request, fault: Any) -> JSONResponse:
    return answered(request, ApiError(400, "the body cannot be read; send JSON", code="invalid_body"))


def _bug(request: Request, fault: Exception) -> JSONResponse:
    return answered(request, ApiError(500, "a fault of the server; its log has it", code="internal_error"))
