"""What `Pipeline.generate` and `Pipeline.edit` can be asked for, under the names of the command's options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict

from PIL import Image

PictureLike: TypeAlias = str | Path | Image.Image
"""A picture: a file's name, or one that is open."""


class Shared(TypedDict, total=False):
    """What every task takes."""

    size: tuple[int, int] | None
    """(width, height) in pixels. None: the given picture's, cut to whole patches, else the bundle's."""
    seed: int | Sequence[int] | None
    """Picture k, counted over all prompts, has its own seed, `seed + k`, so each can be painted again alone.
    A sequence gives one per picture. None draws one at random. Default 0."""
    count: int
    """Pictures per prompt. Default 1."""
    batch: int | None
    """How many pictures are painted at once, at most. Default 1, which needs the least memory."""


class GenerateArguments(Shared, total=False):
    """What `generate` takes. Image, mask and control are one picture for all prompts, or one for each."""

    steps: int | None
    """How many steps the schedule has."""
    guidance: float | None
    """How closely to follow the prompt; only for models that have a guidance. Where that is true
    classifier-free guidance, this is its scale."""
    negative: str | Sequence[str] | None
    """What to keep away from; needs `true_cfg`, but where that is how the model is guided anyway."""
    true_cfg: float | None
    """Scale of true classifier-free guidance (diffusers' `true_cfg_scale`); a run takes twice the time."""
    image: PictureLike | Sequence[PictureLike] | None
    """A picture to start from."""
    strength: float | None
    """How much of `image` to paint anew, 0 to 1. Default 0.6; 1 for a model that fills holes."""
    mask: PictureLike | Sequence[PictureLike] | None
    """White is painted, black stays."""
    paste: bool
    """Put the picture's own pixels back where the mask is black."""
    control: PictureLike | Sequence[PictureLike] | None
    """The control picture, for bundles that paint from one."""
    reference: PictureLike | Sequence[PictureLike]
    """Pictures to follow, any number; for bundles that were trained for it."""
    auto_resize: bool
    """Bring reference pictures to the sizes that the model knows. Default True; else they keep their own."""


class EditArguments(Shared, total=False):
    """What `edit` takes: FlowEdit's numbers, defaults of its authors for FLUX.1-dev."""

    steps: int
    """Of the whole schedule. Default 28."""
    n_max: int | None
    """How many of the last steps are walked: fewer keep more of the picture. Default 24 of 28, or that
    share."""
    n_min: int
    """How many of those sample plainly, at the end: more let shapes change more. Default 0."""
    n_avg: int
    """Noises whose velocities are averaged in each step. Default 1."""
    source_guidance: float
    """Default 1.5."""
    target_guidance: float
    """Default 5.5."""
