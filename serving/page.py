"""The page at `/`: files of this package, which talk to the same API as every other client."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

CSP = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)
FILES = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}

router = APIRouter()


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page.js")
async def script() -> Response:
    """Its script."""
    return _file("page.js")


@router.get("/page.css")
async def style() -> Response:
    """Its style."""
    return _file("page.css")


def _file(name: str) -> Response:
    data = (Path(__file__).parent / "web" / name).read_bytes()
    headers = {"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(data, media_type=f"{FILES[name]}; charset=utf-8", headers=headers)
