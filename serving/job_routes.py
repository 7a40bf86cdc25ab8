"""/v1/images/jobs: hand in, look, fetch, cancel, delete; there where the server keeps jobs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from flux_trt.serving.errors import ApiError
from flux_trt.serving.fields import read
from flux_trt.serving.images import body_form, body_json, made
from flux_trt.serving.jobs import Job, Jobs

LONGEST_KEY = 255

router = APIRouter(prefix="/v1/images/jobs")


@router.post("")
async def add(request: Request) -> JSONResponse:
    """Take a job: what generations takes, or, with a picture, what edits takes."""
    jobs = _jobs(request)
    given, files = await _sent(request)
    fields = read(given, edit=files is not None)
    if fields.stream:
        raise ApiError(400, "a job is not streamed; look at it, or leave stream out", param="stream")
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        raise ApiError(400, f"an Idempotency-Key has 1 to {LONGEST_KEY} letters; send a shorter one")

    def take() -> Job:
        job, new = jobs.add(request.state.owner, fields, files or {}, key)
        if new:
            try:
                seeded = fields.model_copy(update={"seed": job.fields["seed"]})
                jobs.hand_in(job, made(jobs.engine, seeded, files, job.id, job.owner))
            except ApiError:
                jobs.remove(job)
                raise
        return job

    return JSONResponse((await run_in_threadpool(take)).shown(), 202)


@router.get("")
async def listed(request: Request) -> dict[str, Any]:
    """One's own jobs, the newest first."""
    return {"object": "list", "data": [each.shown() for each in _jobs(request).of(request.state.owner)]}


@router.get("/{name}")
async def look(request: Request, name: str) -> dict[str, Any]:
    """How far it is, and with what its pictures were painted."""
    return _jobs(request).find(name, request.state.owner).shown()


@router.get("/{name}/content/{index}")
async def content(request: Request, name: str, index: int) -> Response:
    """A picture's file."""
    jobs = _jobs(request)
    data, kind = await run_in_threadpool(jobs.picture, jobs.find(name, request.state.owner), index)
    return Response(data, media_type=kind)


@router.post("/{name}/cancel")
async def cancel(request: Request, name: str) -> dict[str, Any]:
    """Give it up before its next step; again, or when it is over, changes nothing."""
    jobs = _jobs(request)
    job = jobs.find(name, request.state.owner)
    await run_in_threadpool(jobs.cancel, job)
    return job.shown()


@router.delete("/{name}")
async def delete(request: Request, name: str) -> dict[str, Any]:
    """Give it up, and forget it and its pictures."""
    jobs = _jobs(request)
    await run_in_threadpool(jobs.remove, jobs.find(name, request.state.owner))
    return {"id": name, "object": "image.job", "deleted": True}


def _jobs(request: Request) -> Jobs:
    found: Jobs | None = request.app.state.served.jobs
    if found is None:
        raise ApiError(404, "this server keeps no jobs; start it with --keep DIR", code="not_found")
    return found


async def _sent(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]] | None]:
    if request.headers.get("content-type", "").startswith("multipart/"):
        return await body_form(request)
    given = await body_json(request)
    if {"image", "image[]"} & set(given):
        return await body_form(request)
    return given, None
