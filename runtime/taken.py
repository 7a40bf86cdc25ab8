"""Whether engines take what is asked for: every stage is looked at before the first one runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.engine import Profile, choose_profile, nearest
from flux_trt.runtime.bundle.flow import DENOISER, REFERENCES, VAE_DECODER, VAE_ENCODER, Flow
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.tasks.dims import dims_of
from flux_trt.runtime.tasks.request import Request

OF_SIZE = {"h", "w", "height", "width", "tokens", "sequence"}


@runtime_checkable
class Profiled(Protocol):
    """A backend whose graphs take some shapes only."""

    def profiles(self, name: str) -> list[Profile]:
        """Of a stage."""


def expect_taken(
    backend: Backend,
    manifest: Manifest,
    flow: Flow,
    request: Request,
    tiling: Tiling,
    instead: Mapping[StageName, StageName],
    text: int | None = None,
) -> None:
    """Refuse a request that one of the engines was not built for.

    Args:
        backend: whose engines they are, if it has such.
        manifest: of the bundle.
        flow: of the bundle.
        request: what is asked for.
        tiling: how large pictures are cut.
        instead: stage -> the one that is looked at instead.
        text: tokens of the longest prompt; None: as many as there may be.

    Raises:
        BackendError: saying what it takes, in pixels; an engine that is not there.
    """
    if not isinstance(backend, Profiled):
        return
    if request.solver in manifest.glue:
        backend.profiles(request.solver)  # engines that an earlier version built lack it
    for name, dims, size in _runs(manifest, flow, request, tiling, text):
        profiles = backend.profiles(instead.get(name, name))
        if choose_profile(profiles, dims) is None:
            raise BackendError(_why(name, manifest, profiles, dims, size))


def _runs(
    manifest: Manifest, flow: Flow, request: Request, tiling: Tiling, text: int | None
) -> Iterator[tuple[str, dict[str, int], Grid]]:
    """The stages that will run, their dims, and the grid of the picture that they are for."""
    dims = dims_of(request, manifest, text)
    for name in (*flow.before, *flow.each, DENOISER):
        looks = any(each.name == REFERENCES for each in manifest.stages[name].inputs)
        if dims["reference"] or not looks:  # it does not run for none
            yield name, dims, request.grid
    if request.has_pictures:
        given = [request.grid] if request.images or request.controls else []
        for grid in [*given, *request.grids[1:]]:
            yield VAE_ENCODER, _seen(grid, 1, tiling, manifest.model.patch), grid
    together = 1 if len(request.grids) > 1 else min(request.batch, len(request))
    yield VAE_DECODER, _seen(request.grid, together, tiling, manifest.model.patch), request.grid


def _seen(grid: Grid, batch: int, tiling: Tiling, patch: int) -> dict[str, int]:
    """What the VAE sees of pictures: all, or tiles of one at a time."""
    if tiling.cuts(grid):
        grid, batch = (min(grid[0], tiling.side), min(grid[1], tiling.side)), 1
    h, w = grid
    return {"batch": batch, "h": h, "w": w, "height": h * patch, "width": w * patch}


def _why(name: str, manifest: Manifest, profiles: list[Profile], dims: Mapping[str, int], grid: Grid) -> str:
    patch = manifest.model.patch
    known = {dim: size for dim, size in dims.items() if any(dim in profile for profile in profiles)}
    wrong = nearest(profiles, known)
    width, height = grid[1] * patch, grid[0] * patch
    apart = [dim for dim in ("text", "reference") if dim in wrong]  # of either the sequence is wrong, too
    if apart or not OF_SIZE & set(wrong):
        dim = apart[0] if apart else next(iter(wrong))
        size = wrong[dim]
        option = {
            "batch": "--max-batch, and without --no-pairs for true guidance and FlowEdit",
            "reference": "--max-references",
            "text": "--max-text",
        }
        return (
            f"the engine of {name} was not built for {dim} {dims[dim]}; the nearest that fits: {dim} {size}. "
            f"Use that, or build engines with {option.get(dim, 'the default shapes')}"
        )
    if "tokens" in known:
        least = min(profile["tokens"][0] for profile in profiles) * patch**2
        most = max(profile["tokens"][2] for profile in profiles) * patch**2
        takes = (
            f"{least} to {most} pixels, references included, and this is {dims['tokens'] * patch**2} pixels"
        )
    else:
        takes = " or ".join(dict.fromkeys(_sides(profile, patch) for profile in profiles))
    return (
        f"the engine of {name} was not built for {width}x{height}; it takes {takes}. "
        f"Use a size that fits, or build engines with --sizes {width}x{height}"
    )


def _sides(profile: Profile, patch: int) -> str:
    (h, w) = (
        profile.get(dim, tuple(n // patch for n in profile.get(long, (0, 0, 0))))
        for dim, long in (("h", "height"), ("w", "width"))
    )
    least, most = (f"{w[end] * patch}x{h[end] * patch}" for end in (0, 2))
    return least if least == most else f"{least} to {most}"
