"""What `Pipeline.generate` and `Pipeline.edit` can be asked for, under the names of the command's options."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import IO, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.lora.chosen import LoraLike
from flux_trt.runtime.tasks.boxes import BoxesLike
from flux_trt.runtime.tasks.fill import Margins

PictureLike: TypeAlias = str | PathLike[str] | IO[bytes] | Image.Image | npt.NDArray[np.uint8]
"""A picture: a file's name, an open binary file, an open picture, or bytes [H, W, 3], [H, W, 4], [H, W, 1] or
[H, W]. A mask may be an array of bools. EXIF rotation and colour profiles are obeyed in all of them alike."""


class Shared(TypedDict, total=False):
    """What every task takes."""

    size: tuple[int, int] | None
    """(width, height) in pixels. None: the given picture's, cut to whole patches, else the bundle's; pictures
    of several sizes are painted at their own. Pictures of more than 4.2 megapixels need one."""
    seed: int | Sequence[int] | None
    """Picture k, counted over all prompts, has its own seed, `seed + k`, so each can be painted again alone.
    A sequence gives one per picture. None draws one at random. Default 0."""
    count: int
    """Pictures per prompt. Default 1."""
    batch: int | None
    """How many pictures are painted at once, at most. Default 1, which needs the least memory."""
    shift: float | None
    """Moves the noise levels up, for every size alike: diffusers' FlowMatchEulerDiscreteScheduler with this
    `shift` and without dynamic shifting. 1 is none. Default: the bundle's own schedule."""
    sigmas: Sequence[float] | None
    """Noise levels to walk, falling from 1, before the shift: the `sigmas` of diffusers' pipelines. They say
    the number of steps."""
    solver: str | None
    """How steps follow the velocity: "euler", as the models' own pipelines do, or "ab2", which looks at the
    step before, too, and is as near to the exact picture with fewer steps, for the same time a step. `edit`
    walks by Euler alone. Default "euler"."""

    lora: LoraLike | Sequence[LoraLike] | None
    """LoRAs to paint with, for bundles that take them: files, "FILE:STRENGTH" or (file, strength). None:
    those of `Pipeline.set_loras`."""


class GenerateArguments(Shared, total=False):
    """What `generate` takes. Image, mask and control are one picture for all prompts, or one for each."""

    steps: int | None
    """How many steps the schedule has."""
    guidance: float | None
    """How closely to follow the prompt; only for models that have a guidance. Where that is true
    classifier-free guidance, this is its scale."""
    prompt_2: str | Sequence[str] | None
    """What the second text encoder reads (T5 in FLUX.1), one for all or one for each prompt, which is then
    the first one's alone: diffusers' argument of that name. Default: the prompt."""
    boxes: BoxesLike | None
    """Where things are to be, for models that know boxes: a JSON file or the list in it, the same for all
    prompts; see `tasks.boxes`."""
    negative: str | Sequence[str] | None
    """What to keep away from; needs `true_cfg`, but where that is how the model is guided anyway."""
    negative_2: str | Sequence[str] | None
    """What the second text encoder reads instead of `negative`."""
    true_cfg: float | None
    """Scale of true classifier-free guidance (diffusers' `true_cfg_scale`); a run takes twice the time. At
    1 or less there is none, and `negative` is ignored with a warning, as in diffusers."""
    image: PictureLike | Sequence[PictureLike] | None
    """A picture to start from."""
    strength: float | None
    """How much of `image` to paint anew, 0 to 1. Default 0.6; 1 for a model that fills holes, and for `mask`
    with `reference`, as in diffusers."""
    outpaint: Margins | None
    """(left, top, right, bottom): how many pixels to add to `image` and paint; instead of a mask."""
    mask: PictureLike | Sequence[PictureLike] | None
    """White is painted, black stays; for transparency see `pictures.strokes`. One that would paint nothing is
    refused."""
    mask_blur: float | None
    """Radius in pixels by which the mask's edges are softened (diffusers' `VaeImageProcessor.blur`): where
    the picture is put back, by `paste` or `mask_crop`, both are mixed. Default 0."""
    mask_crop: int | None
    """Paint only the part that the mask has and so many pixels around it, at `size`, and put it back into the
    picture, which keeps its own size (diffusers' `padding_mask_crop`)."""
    paste: bool
    """Put the picture's own pixels back where the mask is black; the result has the picture's own size."""
    control: PictureLike | Sequence[PictureLike] | None
    """The control picture, for bundles that paint from one."""
    canny: PictureLike | Sequence[PictureLike] | None
    """A picture whose edges are the control picture."""
    reference: PictureLike | Sequence[PictureLike]
    """Pictures to follow, any number; for bundles that were trained for it."""
    auto_resize: bool
    """Bring reference pictures to the sizes that the model knows. Default True; else they keep their own."""


class EditArguments(Shared, total=False):
    """What `edit` takes: FlowEdit's numbers, defaults of its authors for FLUX.1-dev."""

    steps: int
    """Of the whole schedule. Default 28, or as many as `sigmas`."""
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
