"""A request: what to paint, checked against what a bundle can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest, Task
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import latents, picture
from flux_trt.runtime.tasks import image as image_to_image
from flux_trt.runtime.tasks import references as reference_pictures
from flux_trt.runtime.tasks import validate
from flux_trt.runtime.tasks.arguments import PictureLike
from flux_trt.runtime.tasks.flowedit import FlowEdit
from flux_trt.runtime.tasks.guidance import guided, told

STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures of one size and schedule; `prompts[k]`, `seeds[k]` and so on belong to picture k."""

    task: Task
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
    negatives: tuple[str, ...] = ()
    true_cfg: float | None = None
    """Scale of true classifier-free guidance; None without."""
    images: tuple[Image.Image, ...] = ()
    strength: float = 1.0
    masks: tuple[Image.Image, ...] = ()
    paste: bool = False
    controls: tuple[Image.Image, ...] = ()
    references: tuple[Image.Image, ...] = ()
    """For all pictures, each of the size it is encoded at."""
    leads: bool = False
    """Whether the picture that is painted into is the first of its own reference pictures."""
    edit: FlowEdit | None = None
    patch: int = 16

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
        negative: str | Sequence[str] | None = None,
        true_cfg: float | None = None,
        image: PictureLike | Sequence[PictureLike] | None = None,
        strength: float | None = None,
        mask: PictureLike | Sequence[PictureLike] | None = None,
        paste: bool = False,
        control: PictureLike | Sequence[PictureLike] | None = None,
        reference: PictureLike | Sequence[PictureLike] = (),
        auto_resize: bool = True,
    ) -> Request:
        """Fill in the bundle's defaults and check everything; the arguments are `Pipeline.generate`'s.

        Raises:
            RequestError: something that the bundle cannot do.
        """
        texts, count = validate.texts("prompt", prompt), validate.at_least("count", count)
        images, masks, controls = (
            _pictures(name, given, len(texts), mask_like=name == "mask")
            for name, given in (("image", image), ("mask", mask), ("control", control))
        )
        references = _pictures("reference", reference or None, None)
        task = _task(manifest, images, masks, controls, references)
        if masks and not images:
            raise RequestError("a mask is given without a picture; give the picture with --image")
        if paste and not masks:
            raise RequestError("--paste puts back what a mask leaves alone; give the mask with --mask")
        if strength is not None and not images:
            raise RequestError("a strength is given without a picture; give the picture with --image")
        if strength is None:
            strength = STRENGTH if images and task != "fill" else 1.0
        steps = validate.at_least("steps", manifest.defaults.steps if steps is None else steps)
        validate.expect_moves(steps, strength)
        references = tuple(reference_pictures.prepared(manifest, each, auto_resize) for each in references)
        width, height = size or _size(manifest, (*images, *controls), references)
        pull = guided(manifest, len(texts), guidance, negative, true_cfg)
        return cls(
            task=task,
            prompts=validate.each(texts, count),
            seeds=validate.seeds(seed, len(texts) * count),
            width=width,
            height=height,
            grid=latents.grid(width, height, manifest.model.patch, manifest.sizes),
            steps=steps,
            guidance=pull.told,
            batch=validate.at_least("batch", 1 if batch is None else batch),
            negatives=validate.each(pull.negatives, count),
            true_cfg=pull.scale,
            images=validate.each(images, count),
            strength=strength,
            masks=validate.each(masks, count),
            paste=paste,
            controls=validate.each(controls, count),
            references=references,
            leads=task == "inpaint" and manifest.model.inpaint.source,
            patch=manifest.model.patch,
        )

    @classmethod
    def of_edit(
        cls,
        manifest: Manifest,
        image: PictureLike | Sequence[PictureLike],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int = 28,
        n_min: int = 0,
        n_max: int = 24,
        n_avg: int = 1,
        source_guidance: float = 1.5,
        target_guidance: float = 5.5,
        seed: int | Sequence[int] | None = 0,
        count: int = 1,
        batch: int | None = None,
    ) -> Request:
        """The same for `Pipeline.edit`.

        Raises:
            RequestError: something that the bundle cannot do.
        """
        sources, targets = validate.texts("source", source), validate.texts("target", target)
        if len(sources) == 1:
            sources *= len(targets)
        if len(sources) != len(targets):
            raise RequestError(f"{len(sources)} sources are given for {len(targets)} targets; give as many")
        _expect(manifest, "edit")
        steps, count = validate.at_least("steps", steps), validate.at_least("count", count)
        if not 0 <= n_min <= n_max <= steps or n_max == 0:
            raise RequestError(
                f"n_min {n_min} and n_max {n_max} are not possible; they count the last of {steps} steps: "
                f"0 <= n_min <= n_max <= {steps}, and n_max at least 1"
            )
        images = _pictures("image", image, len(targets))
        width, height = size or _size(manifest, images, ())
        embedded = manifest.guidance.kind == "embedded"
        return cls(
            task="edit",
            prompts=validate.each(targets, count),
            seeds=validate.seeds(seed, len(targets) * count),
            width=width,
            height=height,
            grid=latents.grid(width, height, manifest.model.patch, manifest.sizes),
            steps=steps,
            guidance=told(manifest, target_guidance) if embedded else None,
            batch=validate.at_least("batch", 1 if batch is None else batch),
            images=validate.each(images, count),
            edit=FlowEdit(
                sources=validate.each(sources, count),
                source_guidance=told(manifest, source_guidance) if embedded else None,
                n_min=n_min,
                n_max=n_max,
                n_avg=validate.at_least("n_avg", n_avg),
            ),
            patch=manifest.model.patch,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def moves(self) -> int:
        """How often the latents of a picture move: fewer than `steps` when it starts from a picture."""
        return self.edit.n_max if self.edit else image_to_image.moves(self.steps, self.strength)

    @property
    def copies(self) -> int:
        """How often each picture goes through the denoiser at once."""
        return 2 if self.edit or self.negatives else 1

    @property
    def grids(self) -> tuple[latents.Grid, ...]:
        """Of the target, then of the reference pictures."""
        patch = self.patch
        own = [self.grid] * self.leads
        return (self.grid, *own, *((each.height // patch, each.width // patch) for each in self.references))

    @property
    def has_pictures(self) -> bool:
        """Whether there is a picture to encode."""
        return bool(self.images or self.controls or self.references)

    def texts(self, chosen: slice) -> tuple[str, ...]:
        """The prompts that these pictures go through the denoiser with, in its order."""
        if self.edit:
            return (*self.edit.sources[chosen], *self.prompts[chosen])
        return (*self.prompts[chosen], *self.negatives[chosen])

    def guidances(self, chosen: slice) -> npt.NDArray[np.float32] | None:
        """The guidance of each of those."""
        if self.guidance is None:
            return None
        rows = len(self.prompts[chosen])
        first = self.edit.source_guidance if self.edit else self.guidance
        halves = [first] * rows + [self.guidance] * (rows * (self.copies - 1))
        return np.array(halves, np.float32)

    def mask(self, index: int) -> npt.NDArray[np.float32]:
        """The mask of picture `index`, [height, width] of 0 and 1."""
        return picture.as_mask(self.masks[index], (self.width, self.height))

    def batches(self) -> Iterator[slice]:
        """Pictures that are painted together."""
        for first in range(0, len(self), self.batch):
            yield slice(first, min(first + self.batch, len(self)))


def _task(
    manifest: Manifest,
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    controls: Sequence[Image.Image],
    references: Sequence[Image.Image],
) -> Task:
    """What is asked for, if the bundle can do it."""
    fills, controlled = "fill" in manifest.tasks, "control" in manifest.tasks
    if references:
        _expect(manifest, "reference")
    if controls or controlled:
        _expect(manifest, "control")
        if not controls:
            raise RequestError(
                f"a {manifest.variant} bundle paints from a control picture; "
                "give it with --control or --canny, which makes one of edges"
            )
        return "control"
    if fills:
        if not (images and masks):
            raise RequestError(
                f"a {manifest.variant} bundle paints into a hole of a picture; "
                "give --image with --mask or --outpaint"
            )
        return "fill"
    task: Task = "inpaint" if masks else "image" if images else "reference" if references else "generate"
    _expect(manifest, task)
    return task


def _expect(manifest: Manifest, task: Task) -> None:
    if task not in manifest.tasks:
        has = ", ".join(manifest.tasks) or "nothing: it is a partial bundle"
        raise RequestError(
            f"a {manifest.variant} bundle cannot do the task {task} (this one can do {has}); "
            f"build a whole one of a model that can (the README has a table of variants)"
        )


def _pictures(
    name: str, given: PictureLike | Sequence[PictureLike] | None, prompts: int | None, mask_like: bool = False
) -> tuple[Image.Image, ...]:
    """The given pictures, open; one for each prompt, or any number where `prompts` is None."""
    if given is None:
        return ()
    several = [given] if isinstance(given, (str, Path, Image.Image)) else list(given)
    convert, read = (picture.grey, picture.read_mask) if mask_like else (picture.rgb, picture.read)
    found = tuple(convert(each) if isinstance(each, Image.Image) else read(each) for each in several)
    if prompts is None:
        return found
    if len(found) == 1:
        return found * prompts
    if len(found) != prompts:
        raise RequestError(
            f"{len(found)} pictures are given as {name} for {prompts} prompts; give one each, or one for all"
        )
    return found


def _size(
    manifest: Manifest, images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> tuple[int, int]:
    """The size when none is asked for: that of the given picture, cut to whole patches, or the bundle's."""
    if images:
        patch = manifest.model.patch
        return images[0].width // patch * patch, images[0].height // patch * patch
    if references:
        return reference_pictures.painted_size(manifest, references[0])
    return manifest.defaults.width, manifest.defaults.height
