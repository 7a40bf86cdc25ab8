"""A request: what to paint, checked against what a bundle can do."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flux_trt.runtime import latents
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.manifest import Manifest

SEEDS = 2**64


@dataclass(frozen=True)
class Request:
    """Pictures of one size and schedule; `prompts[k]` and `seeds[k]` belong to picture k."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    grid: latents.Grid
    steps: int
    guidance: float | None
    """None for a model without guidance input."""
    batch: int
    """How many pictures are painted at once, at most."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        prompt: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = 0,
        count: int = 1,
        batch: int | None = None,
    ) -> Request:
        """Fill in the bundle's defaults and check everything; the arguments are `Pipeline.generate`'s.

        Raises:
            RequestError: something that the bundle cannot do.
        """
        defaults, model = manifest.defaults, manifest.model
        if model.condition_channels:
            raise RequestError(
                f"a {manifest.variant} bundle paints from a control picture, which generate cannot take; "
                f"use a text-to-image bundle"
            )
        prompts = _prompts(prompt, _at_least_one("count", count))
        width, height = size or (defaults.width, defaults.height)
        return cls(
            prompts=prompts,
            seeds=_seeds(seed, len(prompts)),
            width=width,
            height=height,
            grid=latents.grid(width, height, model.patch, manifest.sizes),
            steps=_at_least_one("steps", defaults.steps if steps is None else steps),
            guidance=_guidance(manifest, guidance),
            batch=_at_least_one("batch", 1 if batch is None else batch),
        )

    def batches(self) -> Iterator[slice]:
        """Pictures that are painted together."""
        for first in range(0, len(self.prompts), self.batch):
            yield slice(first, min(first + self.batch, len(self.prompts)))


def _prompts(prompt: str | Sequence[str], count: int) -> tuple[str, ...]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise RequestError("no prompt is given; give at least one (it may be empty)")
    for text in prompts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"prompt {text!r} is not valid Unicode; give it as UTF-8") from None
    return tuple(text for text in prompts for _ in range(count))


def _seeds(seed: int | Sequence[int] | None, pictures: int) -> tuple[int, ...]:
    if seed is None:
        seed = secrets.randbelow(2**32)
    seeds = tuple(range(seed, seed + pictures)) if isinstance(seed, int) else tuple(seed)
    if len(seeds) != pictures:
        raise RequestError(
            f"{len(seeds)} seeds are given for {pictures} pictures; give one each, or one number"
        )
    if wrong := [each for each in seeds if not 0 <= each < SEEDS]:
        raise RequestError(f"seed {wrong[0]} is not possible; seeds are 0 to 2**64 - 1")
    return seeds


def _guidance(manifest: Manifest, guidance: float | None) -> float | None:
    if not manifest.model.guidance:
        if guidance is not None:
            raise RequestError(f"a {manifest.variant} bundle has no guidance; leave guidance out")
        return None
    guidance = manifest.defaults.guidance if guidance is None else guidance
    if not math.isfinite(guidance):
        raise RequestError(f"guidance {guidance} is not a finite number; try {manifest.defaults.guidance}")
    return guidance


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise RequestError(f"{name} is {number}; it must be at least 1")
    return number
