"""Whether the process lives and can paint, what is served, and what was counted; nothing here waits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

router = APIRouter()


@router.get("/healthz")
async def alive(request: Request) -> JSONResponse:
    """200 as long as the process is worth keeping: 503 tells a supervisor to start it anew."""
    state, why = request.app.state.served.engine.state
    broken = state == "broken"
    return JSONResponse(
        {"status": "broken" if broken else "ok", "reason": why if broken else ""}, 503 if broken else 200
    )


@router.get("/readyz")
async def ready(request: Request) -> JSONResponse:
    """200 while pictures are taken; else 503, and why not."""
    state, why = request.app.state.served.engine.state
    if state == "ready":
        return JSONResponse({"status": state})
    return JSONResponse({"status": state, "reason": why}, 503, {"Retry-After": "5"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(
        request.app.state.served.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """All that are served."""
    return {"object": "list", "data": request.app.state.served.models.listed()}


@router.get("/v1/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    found: dict[str, Any] = request.app.state.served.models.shown(name)
    return found
