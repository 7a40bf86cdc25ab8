"""What a pipeline gives: pictures with all that made them."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any

from PIL import Image

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks.request import Request


@dataclass(frozen=True)
class Painted:
    """A picture, how it was made, and the seconds its batch took per stage."""

    image: Image.Image
    """Its `info["parameters"]` holds `parameters` as JSON; `picture.write` puts that into the PNG."""
    parameters: dict[str, Any]
    seconds: dict[str, float]

    @classmethod
    def of(
        cls, image: Image.Image, bundle: Bundle, request: Request, index: int, seconds: dict[str, float]
    ) -> Painted:
        """Picture `index` of a request; its parameters go into `image.info`."""
        found = parameters(bundle, request, index)
        image.info[picture.PARAMETERS] = json.dumps(found)
        return cls(image, found, seconds)


def parameters(bundle: Bundle, request: Request, index: int) -> dict[str, Any]:
    """What picture `index` of a request is painted with; given pictures are not among it."""
    found: dict[str, Any] = {
        "task": request.task,
        "prompt": request.prompts[index],
        "seed": request.seeds[index],
        "steps": request.steps,
        "guidance": request.guidance,
        "width": request.width,
        "height": request.height,
    }
    if request.negatives:
        found |= {"negative": request.negatives[index], "true_cfg": request.true_cfg}
    if edit := request.edit:
        found |= {"source": edit.sources[index], "source_guidance": edit.source_guidance}
        found |= {"n_min": edit.n_min, "n_max": edit.n_max, "n_avg": edit.n_avg}
    elif request.images:
        found |= {"strength": request.strength}
    if request.references:
        found |= {"references": len(request.references)}
    return found | {
        "variant": bundle.manifest.variant,
        "bundle": bundle.digest,
        "flux_trt": importlib.metadata.version("flux_trt"),
    }
