"""From a request and its pictures to a trajectory: what each task adds, its noise drawn as in diffusers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.sampling.noise import Generator
from flux_trt.runtime.sampling.trajectory import Known, Trajectory
from flux_trt.runtime.tasks import fill, flowedit, image, inpaint
from flux_trt.runtime.tasks.encoded import EncodedPictures
from flux_trt.runtime.tasks.request import Request

Floats = npt.NDArray[np.float32]


def compose(request: Request, encoded: EncodedPictures, chosen: slice, manifest: Manifest) -> Trajectory:
    """The trajectory of the pictures `chosen`."""
    rows, columns = request.grid
    levels = request.levels.sigmas(rows * columns)
    if request.edit:
        return flowedit.trajectory(
            request.edit, levels, encoded.images[chosen], request.seeds[chosen], manifest.model.noise
        )
    levels = levels[request.steps - request.moves :]
    parts = [
        _one(request, encoded, index, levels, manifest) for index in range(*chosen.indices(len(request)))
    ]
    starts, conditions, known = zip(*parts, strict=True)
    condition = [each for each in conditions if each is not None]
    masked = [each for each in known if each is not None]
    return Trajectory(
        levels=levels,
        start=np.stack(starts),
        grids=request.grids,
        condition=np.stack(condition) if condition else None,
        scale=request.true_cfg,
        known=Known(*(np.stack(part) for part in zip(*masked, strict=True))) if masked else None,
    )


def _one(
    request: Request, encoded: EncodedPictures, index: int, levels: Floats, manifest: Manifest
) -> tuple[Floats, Floats | None, tuple[Floats, Floats, Floats] | None]:
    """Start, condition, and what a mask leaves alone, of one picture."""
    model, generator = manifest.model, Generator(request.seeds[index])

    def noise_of(grid: Grid) -> Floats:
        return generator.latents(model.noise, grid)

    if encoded.controls and request.masks and encoded.images[index].deviation is not None:
        noise_of(
            request.grid
        )  # FluxControlInpaintPipeline draws it for the masked picture, and does not use it
    condition = encoded.controls[index].sample(noise_of) if encoded.controls else None
    clean = None
    if encoded.images:  # FluxKontextInpaintPipeline alone takes the mode, and draws nothing
        taken = encoded.images[index]
        clean = taken.mode if request.masks and request.references else taken.sample(noise_of)
    noise = noise_of(request.grid)
    start = noise if clean is None else image.noised(clean, noise, levels[0])
    known = None
    if encoded.holed:
        mask = fill.fine(request.mask(index), model.patch)
        condition = np.concatenate([encoded.holed[index].sample(noise_of), mask], axis=-1)
    elif request.masks and clean is not None:
        mask = inpaint.coarse(request.mask(index), model.patch, model.noise)
        known = _with(clean, encoded, 0), _with(noise, encoded, 0), _with(mask, encoded, 1)
    references = [each.mode for each in encoded.references]
    return np.concatenate([start, *references]), condition, known


def _with(values: Floats, encoded: EncodedPictures, rest: float) -> Floats:
    """Values of the target's tokens, and `rest` for those of the reference pictures."""
    tokens = sum(len(each.mode) for each in encoded.references)
    return np.pad(values, ((0, tokens), (0, 0)), constant_values=rest)
