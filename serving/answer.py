"""Pictures as the API gives them: files in base64, with all that made them, and what it took."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flux_trt.runtime.pictures import written
from flux_trt.serving.fields import Fields
from flux_trt.serving.work import Done, Work

KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def in_base64(image: Image.Image, fields: Fields) -> str:
    """The file of a picture, with its parameters inside; for a thread beside the server's own."""
    return base64.b64encode(file_of(image, fields)).decode("ascii")


def file_of(image: Image.Image, fields: Fields) -> bytes:
    """The same as bytes."""
    quality = fields.output_compression
    return written.encoded(image, KINDS[fields.output_format], None if quality is None else max(1, quality))


def about(work: Work, fields: Fields) -> dict[str, Any]:
    """What OpenAI's answers and events say of a picture beside its bytes."""
    request = work.request
    return {
        "background": "opaque",
        "output_format": fields.output_format,
        "quality": fields.quality,
        "size": f"{request.width}x{request.height}",
    }


def usage(work: Work, painted: int) -> dict[str, Any]:
    """Tokens: what the encoders read, what the given pictures are, and what was painted.

    Args:
        work: that is done.
        painted: pictures that it is said of.
    """
    request, text = work.request, text_tokens(work)
    pictures = sum(rows * columns for rows, columns in request.grids[1:])
    if request.images or request.controls:
        pictures += request.grid[0] * request.grid[1]
    out = painted * request.grid[0] * request.grid[1]
    return {
        "input_tokens": text + pictures,
        "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
        "output_tokens": out,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": out},
        "total_tokens": text + pictures + out,
    }


def extras(work: Work, done: Done) -> dict[str, Any]:
    """What a picture was painted with, under the names of the parameters that ask for it again."""
    kept = ("seed", "steps", "guidance", "true_cfg", "strength", "task", "width", "height")
    found = {name: done.painted.parameters[name] for name in kept if name in done.painted.parameters}
    return found | {"stage_seconds": done.painted.seconds}


def answer(work: Work, fields: Fields, pictures: Sequence[tuple[Done, str]], waited: float) -> dict[str, Any]:
    """The whole of it.

    Args:
        work: that is done.
        fields: that it was asked with.
        pictures: in order, each with its file in base64.
        waited: seconds from the request to here.
    """
    return about(work, fields) | {
        "created": int(time.time()),
        "data": [{"b64_json": text, **extras(work, done)} for done, text in pictures],
        "usage": usage(work, len(pictures)),
        "safety_identifier": fields.who,
        "model": work.model.id,
        "seconds": round(waited, 4),
        "warnings": work.warnings,
    }


def text_tokens(work: Work) -> int:
    """Tokens of the prompt that are read by the encoder that reads most."""
    request = work.request
    prompt = (request.prompts[0], request.prompts_2[0]) if request.prompts_2 else request.prompts[0]
    return work.model.steps.tokens(prompt)
