"""From a request and its pictures to a course: what each task adds, its noise in the order of diffusers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.runtime import schedule
from flux_trt.runtime.course import Course, Known
from flux_trt.runtime.manifest import Manifest
from flux_trt.runtime.noise import Generator
from flux_trt.runtime.request import Request
from flux_trt.runtime.tasks import fill, flowedit, image, inpaint
from flux_trt.runtime.tasks.look import Sights

Floats = npt.NDArray[np.float32]


def compose(request: Request, sights: Sights, chosen: slice, manifest: Manifest) -> Course:
    """The course of the pictures `chosen`."""
    rows, columns = request.grid
    levels = schedule.sigmas(manifest.scheduler, request.steps, rows * columns)
    if request.edit:
        return flowedit.course(request.edit, levels, sights.images[chosen], request.seeds[chosen])
    levels = levels[request.steps - request.moves :]
    parts = [_one(request, sights, index, levels, manifest) for index in range(*chosen.indices(len(request)))]
    starts, conditions, known = zip(*parts, strict=True)
    condition = [each for each in conditions if each is not None]
    masked = [each for each in known if each is not None]
    return Course(
        levels=levels,
        start=np.stack(starts),
        grids=request.grids,
        condition=np.stack(condition) if condition else None,
        scale=request.true_cfg,
        known=Known(*(np.stack(part) for part in zip(*masked, strict=True))) if masked else None,
    )


def _one(
    request: Request, sights: Sights, index: int, levels: Floats, manifest: Manifest
) -> tuple[Floats, Floats | None, tuple[Floats, Floats, Floats] | None]:
    """Start, condition, and what a mask leaves alone, of one picture."""
    model, generator = manifest.model, Generator(request.seeds[index])
    condition = sights.controls[index].sample(generator) if sights.controls else None
    clean = sights.images[index].sample(generator) if sights.images else None
    noise = generator.latents(request.grid, model.channels)
    start = noise if clean is None else image.noised(clean, noise, levels[0])
    known = None
    if sights.holed:
        mask = fill.fine(request.mask(index), model.patch)
        condition = np.concatenate([sights.holed[index].sample(generator), mask], axis=-1)
    elif request.masks and clean is not None:
        mask = inpaint.coarse(request.mask(index), model.patch, model.channels)
        known = _with(clean, sights, 0), _with(noise, sights, 0), _with(mask, sights, 1)
    references = [each.mode for each in sights.references]
    return np.concatenate([start, *references]), condition, known


def _with(values: Floats, sights: Sights, rest: float) -> Floats:
    """Values of the target's tokens, and `rest` for those of the reference pictures."""
    tokens = sum(len(each.mode) for each in sights.references)
    return np.pad(values, ((0, tokens), (0, 0)), constant_values=rest)
