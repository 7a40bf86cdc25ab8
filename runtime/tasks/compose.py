"""From a request and its pictures to a trajectory: what each task adds, its noise drawn as in diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.sampling.noise import Generator
from flux_trt.runtime.sampling.trajectory import Beside, Known, Trajectory
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
    starts, looked_at, conditions, known = zip(*parts, strict=True)
    kept = manifest.model.references is not None and manifest.model.references.apart
    condition = [each for each in conditions if each is not None]
    masked = [each for each in known if each is not None]
    return Trajectory(
        levels=levels,
        start=np.stack(
            starts if kept else [np.concatenate(each) for each in zip(starts, looked_at, strict=True)]
        ),
        grids=request.grids[:1] if kept else request.grids,
        beside=Beside(np.stack(looked_at), request.grids[1:]) if kept else None,
        condition=np.stack(condition) if condition else None,
        scale=request.true_cfg,
        solver=request.solver,
        known=_known(masked, 0 if kept else looked_at[0].shape[0]) if masked else None,
    )


def _one(
    request: Request, encoded: EncodedPictures, index: int, levels: Floats, manifest: Manifest
) -> tuple[Floats, Floats, Floats | None, tuple[Floats, Floats, Floats] | None]:
    """Start, reference pictures, condition, and what a mask leaves alone, of one picture."""
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
        known = clean, noise, inpaint.coarse(request.mask(index), model.patch, model.noise, model.inpaint)
    references = [each.mode for each in (*encoded.images[index : index + request.leads], *encoded.references)]
    return start, np.concatenate([start[:0], *references]), condition, known


def _known(masked: Sequence[tuple[Floats, Floats, Floats]], tokens: int) -> Known:
    """What masks leave alone; reference pictures that follow with so many tokens stay as they are."""
    source, noise, mask = (np.stack(part) for part in zip(*masked, strict=True))
    behind = (0, 0), (0, tokens), (0, 0)
    return Known(np.pad(source, behind), np.pad(noise, behind), np.pad(mask, behind, constant_values=1))
