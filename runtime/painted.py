"""What a pipeline gives: pictures with all that made them."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from flux_trt.runtime import geninfo
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER
from flux_trt.runtime.pictures import texts
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.tasks.boxes import as_given
from flux_trt.runtime.tasks.request import Request

MACHINE = ("backend", "backend_version", "compute", "device", "flux_trt")
"""Parameters that say where a picture was painted: the same ones elsewhere ask for the same picture."""
BOXES = "boxes"
"""The parameter that is a layout: a list, as `tasks.boxes` takes it."""
LORA = "lora"
"""The parameter that is LoRAs: a list of records of `sha256`, `path` and `strength`."""
PICTURES = ("image", "mask", "control", "reference")
"""Parameters that are pictures: a record of `sha256` and `path`, or a list of them."""


@dataclass(frozen=True)
class Painted:
    """A picture, how it was made, and the seconds its batch took per stage."""

    image: Image.Image
    """Its `info["flux_trt"]` has `parameters` as JSON, its `info["parameters"]` the text for other tools;
    `Pipeline.save` puts both into the file."""
    parameters: dict[str, Any]
    seconds: dict[str, float]

    @classmethod
    def of(
        cls,
        image: Image.Image,
        bundle: Bundle,
        request: Request,
        index: int,
        seconds: dict[str, float],
        backend: Backend,
        tiling: Tiling,
    ) -> Painted:
        """Picture `index` of a request; its parameters go into `image.info`."""
        found = parameters(bundle, request, index, tiling) | _machine(backend)
        image.info[texts.OURS] = json.dumps(found)
        image.info[texts.SHARED] = geninfo.text(found, bundle.manifest.family)
        return cls(image, found, seconds)


def parameters(bundle: Bundle, request: Request, index: int, tiling: Tiling) -> dict[str, Any]:
    """All that picture `index` of a request is painted with, but for the machine, as JSON has it."""
    found: dict[str, Any] = {
        "task": request.task,
        "prompt": request.prompts[index],
        "seed": request.seeds[index],
        "steps": request.steps,
        "guidance": request.guidance,
        "width": request.width,
        "height": request.height,
    }
    if request.boxes:
        found |= {BOXES: as_given(request.boxes[index])}
    if request.prompts_2:
        found |= {"prompt_2": request.prompts_2[index]}
    if request.negatives_2:
        found |= {"negative_2": request.negatives_2[index]}
    if request.levels.rule != bundle.manifest.schedule:
        found |= {"schedule": request.levels.rule.model_dump()}
        found |= {"shift": getattr(request.levels.rule, "shift", None)}
    if request.levels.given is not None:
        found |= {"sigmas": list(request.levels.given)}
    if request.solver != "euler":
        found |= {"solver": request.solver}
    if request.negatives:
        found |= {"negative": request.negatives[index], "true_cfg": request.true_cfg}
    if edit := request.edit:
        found |= {"source": edit.sources[index], "source_guidance": edit.source_guidance}
        found |= {"n_min": edit.n_min, "n_max": edit.n_max, "n_avg": edit.n_avg}
    elif request.images:
        found |= {"strength": request.strength}
    found |= _given(request, index)
    if request.loras:
        found[LORA] = [each.record for each in request.loras]
    return found | {
        "tile": _tile(request, tiling),
        "variant": bundle.manifest.variant,
        "precision": bundle.stage(DENOISER).precision,
        "bundle": bundle.digest,
        "content": bundle.content,
        "flux_trt": importlib.metadata.version("flux_trt"),
    }


def same(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The names of the parameters in which a picture that is there differs from one that is asked for.

    What stands for itself is not compared: the machine, where given pictures lay, and the digest of a
    manifest where that of its content is known. A picture of an earlier version, which recorded less, is
    taken at its word when no other picture was given for it; else "version" is among the names.
    """
    old, new = _compared(recorded), _compared(asked)
    if "content" not in recorded:
        new = {name: value for name, value in new.items() if name in old} | {"bundle": asked.get("bundle")}
        told = [name for name in PICTURES if name in asked]
        if told or asked.get("tile") is not None:
            return ["version"]
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _compared(parameters: Mapping[str, Any]) -> dict[str, Any]:
    apart = {*MACHINE, *(("bundle",) if "content" in parameters else ())}
    found = {name: value for name, value in parameters.items() if name not in apart}
    if isinstance(found.get(LORA), list):
        loras = [each if isinstance(each, dict) else {} for each in found[LORA]]
        found[LORA] = [(each.get("sha256"), each.get("strength")) for each in loras]
    for name in PICTURES:
        if name in found:
            many = found[name] if isinstance(found[name], list) else [found[name]]
            found[name] = [each.get("sha256") if isinstance(each, dict) else each for each in many]
    return found


def _given(request: Request, index: int) -> dict[str, Any]:
    """The pictures that were given, and what became of them before anything was painted."""
    found: dict[str, Any] = {
        name: request.sources[name][index].record
        for name in ("image", "mask", "control")
        if request.sources.get(name)
    }
    if found or request.references:
        found["size"] = request.size and list(request.size)
    if request.outpaint is not None:
        found["outpaint"] = list(request.outpaint)
    if request.masks:
        found |= {"paste": request.paste, "mask_blur": request.mask_blur, "mask_crop": request.mask_crop}
    if request.controls:
        found["canny"] = request.canny
    if request.references:
        found["references"] = len(request.references)
        found["reference"] = [each.record for each in request.sources["reference"]]
        found["auto_resize"] = request.auto_resize
    return found


def _tile(request: Request, tiling: Tiling) -> int | None:
    """Pixels of the tiles in which any of the pictures goes through the VAE."""
    return tiling.side * request.patch if any(map(tiling.cuts, request.grids)) else None


def _machine(backend: Backend) -> dict[str, Any]:
    module, compute = sys.modules.get(backend.name.replace("-", "_")), getattr(backend, "compute", "auto")
    return {
        **({"compute": compute} if compute != "auto" else {}),
        "backend": backend.name,
        "backend_version": getattr(module, "__version__", None),
        "device": backend.device,
    }
