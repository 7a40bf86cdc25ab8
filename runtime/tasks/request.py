"""A request: what to paint, checked against what a bundle can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest, Task
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora.chosen import Chosen, LoraLike
from flux_trt.runtime.pictures import latents, picture
from flux_trt.runtime.sampling.trajectory import Solver
from flux_trt.runtime.tasks import ability, inpaint, masks, numbers, sizes, validate
from flux_trt.runtime.tasks import image as image_to_image
from flux_trt.runtime.tasks import references as reference_pictures
from flux_trt.runtime.tasks.arguments import PictureLike
from flux_trt.runtime.tasks.boxes import BoxesLike, placed
from flux_trt.runtime.tasks.fill import Margins
from flux_trt.runtime.tasks.flowedit import FlowEdit, most_moves
from flux_trt.runtime.tasks.given import Given
from flux_trt.runtime.tasks.guidance import guided, told
from flux_trt.runtime.tasks.levels import Levels
from flux_trt.runtime.tasks.place import Place, Whole
from flux_trt.runtime.tasks.solver import solver_of, solver_of_edit
from flux_trt.runtime.tasks.sources import Source
from flux_trt.runtime.tasks.wording import Words, tell_prompts

STRENGTH = 0.6
STEPS = 28  # of an edit


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures of one size and schedule; `prompts[k]`, `seeds[k]` and so on belong to picture k."""

    task: Task
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    grid: latents.Grid
    levels: Levels
    guidance: float | None
    """None for a model without guidance input."""
    batch: int
    """How many pictures are painted at once, at most."""
    solver: Solver = "euler"
    boxes: tuple[str, ...] = ()
    """The rows that the encoders read behind each prompt; empty: none."""
    prompts_2: tuple[str, ...] = ()
    """What the text encoders after the first read; empty: the same."""
    negatives: tuple[str, ...] = ()
    negatives_2: tuple[str, ...] = ()
    true_cfg: float | None = None
    """Scale of true classifier-free guidance; None without."""
    images: tuple[Image.Image, ...] = ()
    strength: float = 1.0
    masks: tuple[Image.Image, ...] = ()
    mask_blur: float = 0.0
    """Pixels of the given mask; `masks` are blurred."""
    mask_crop: int | None = None
    """Pixels around the masked part that is painted alone; None: the whole picture is."""
    paste: bool = False
    places: tuple[Place, ...] = ()
    """How images and masks lie on what is painted; empty: all are `Whole`."""
    controls: tuple[Image.Image, ...] = ()
    references: tuple[Image.Image, ...] = ()
    """For all pictures, each of the size it is encoded at."""
    crop: tuple[int, int, int, int] | None = None
    """What of a painted picture is given back, (left, top, right, bottom); None: all of it."""
    leads: bool = False
    """Whether the picture that is painted into is the first of its own reference pictures."""
    edit: FlowEdit | None = None
    patch: int = 16
    auto_resize: bool = True
    """Whether the references were brought to the model's sizes."""
    size: tuple[int, int] | None = None
    """As it was asked for."""
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    """What was given, by argument: for each picture, but for "reference", which are for all."""
    outpaint: tuple[int, int, int, int] | None = None
    """The margins that `images` were extended by; `sources` has the pictures before that."""
    loras: tuple[Chosen, ...] | None = None
    """To paint with; None: those of the pipeline."""
    canny: bool = False
    """Whether `controls` are edges; `sources` has the pictures that they were found in."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        prompt: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        solver: str | None = "euler",
        guidance: float | None = None,
        seed: int | Sequence[int] | None = 0,
        count: int = 1,
        batch: int | None = None,
        boxes: BoxesLike | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        negative_2: str | Sequence[str] | None = None,
        true_cfg: float | None = None,
        image: PictureLike | Sequence[PictureLike] | None = None,
        strength: float | None = None,
        outpaint: Margins | None = None,
        mask: PictureLike | Sequence[PictureLike] | None = None,
        mask_blur: float | None = None,
        mask_crop: int | None = None,
        paste: bool | None = False,
        control: PictureLike | Sequence[PictureLike] | None = None,
        canny: PictureLike | Sequence[PictureLike] | None = None,
        reference: PictureLike | Sequence[PictureLike] = (),
        auto_resize: bool | None = True,
        lora: LoraLike | Sequence[LoraLike] | None = None,
    ) -> Request:
        """Fill in the bundle's defaults and check everything; the arguments are `Pipeline.generate`'s.

        Raises:
            RequestError: something that the bundle cannot do.
        """
        texts, count = validate.texts("prompt", prompt), validate.at_least("count", count)
        seeds = validate.seeds(seed, len(texts) * count)
        paste, auto_resize = (
            numbers.flag("paste", False if paste is None else paste),
            numbers.flag("auto_resize", True if auto_resize is None else auto_resize),
        )
        given = Given.of(len(texts), image, mask, control, reference, outpaint, canny, mask_blur, mask_crop)
        task = ability.task_of(manifest, given.images, given.masks, given.controls, given.references)
        given.expect_complete(paste, strength := validate.strength(strength))
        if strength is None:
            whole = task == "fill" or bool(given.masks and given.references)
            strength = STRENGTH if given.images and not whole else 1.0
        steps = None if steps is None else validate.at_least("steps", steps)
        levels = Levels.asked(manifest.schedule, steps, manifest.defaults.steps, shift, sigmas)
        validate.expect_moves(levels.steps, strength)
        chosen = solver_of(manifest, solver)
        reference_pictures.expect_number(manifest, several := len(given.references))
        references = tuple(
            reference_pictures.prepared(manifest, each, auto_resize, several > 1) for each in given.references
        )
        size = validate.size(size)
        width, height = given.painted(manifest, size, paste, references)
        crop = None
        if task == "reference" and size is None:
            crop = reference_pictures.crop_back(manifest, given.references, auto_resize)
        places = given.places(size, (width, height), paste)
        pull = guided(manifest, len(texts), guidance, negative, true_cfg)
        if negative_2 is not None and not pull.negatives:
            raise RequestError("negative_2 is given without a negative prompt; give it with --negative")
        encoders, rows = len(manifest.encoders), ability.layout(manifest, boxes, several)

        def second(name: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
            return validate.second(name, given, len(texts), encoders)

        made = cls(
            task=task,
            prompts=validate.each(texts, count),
            seeds=seeds,
            width=width,
            height=height,
            grid=latents.grid(width, height, manifest.model.patch, manifest.sizes),
            levels=levels,
            guidance=pull.told,
            batch=validate.at_least("batch", 1 if batch is None else batch),
            solver=chosen,
            boxes=(rows,) * (len(texts) * count) if rows else (),
            prompts_2=validate.each(second("prompt_2", prompt_2), count),
            negatives=validate.each(pull.negatives, count),
            negatives_2=validate.each(second("negative_2", negative_2), count),
            true_cfg=pull.scale,
            images=validate.each(given.images, count),
            strength=strength,
            masks=validate.each(given.masks, count),
            mask_blur=given.mask_blur,
            mask_crop=given.mask_crop,
            paste=paste,
            controls=validate.each(given.edges(places, (width, height)), count),
            references=references,
            crop=crop,
            places=validate.each(places, count),
            leads=task == "inpaint" and manifest.model.inpaint.source,
            patch=manifest.model.patch,
            auto_resize=auto_resize,
            size=size,
            sources={
                name: each if name == "reference" else validate.each(each, count)
                for name, each in given.sources.items()
            },
            outpaint=given.margins,
            canny=given.canny,
            loras=ability.loras(manifest, lora),
        )
        tell(made, given, manifest)
        return made

    @classmethod
    def of_edit(
        cls,
        manifest: Manifest,
        image: PictureLike | Sequence[PictureLike],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        solver: str | None = "euler",
        n_min: int = 0,
        n_max: int | None = None,
        n_avg: int = 1,
        source_guidance: float = 1.5,
        target_guidance: float = 5.5,
        seed: int | Sequence[int] | None = 0,
        count: int = 1,
        batch: int | None = None,
        lora: LoraLike | Sequence[LoraLike] | None = None,
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
        ability.expect(manifest, "edit")
        solver_of_edit(solver)
        count = validate.at_least("count", count)
        steps = None if steps is None else validate.at_least("steps", steps)
        levels = Levels.asked(manifest.schedule, steps, STEPS, shift, sigmas)
        steps = levels.steps
        n_max = most_moves(steps) if n_max is None else n_max
        n_min, n_max = numbers.integer("n_min", n_min), numbers.integer("n_max", n_max)
        if not 0 <= n_min <= n_max <= steps or n_max == 0:
            raise RequestError(
                f"n_min {n_min} and n_max {n_max} are not possible; they count the last of {steps} steps: "
                f"0 <= n_min <= n_max <= {steps}, and n_max at least 1"
            )
        given = Given.of(len(targets), image)
        if not given.images:
            raise RequestError("an edit changes a picture; give it with --image")
        size = validate.size(size)
        width, height = given.painted(manifest, size, False, ())
        source_guidance = numbers.number("source_guidance", source_guidance)
        target_guidance = numbers.number("target_guidance", target_guidance)
        embedded = manifest.guidance.kind == "embedded"
        made = cls(
            task="edit",
            prompts=validate.each(targets, count),
            seeds=validate.seeds(seed, len(targets) * count),
            width=width,
            height=height,
            grid=latents.grid(width, height, manifest.model.patch, manifest.sizes),
            levels=levels,
            guidance=told(manifest, target_guidance) if embedded else None,
            batch=validate.at_least("batch", 1 if batch is None else batch),
            images=validate.each(given.images, count),
            edit=FlowEdit(
                sources=validate.each(sources, count),
                source_guidance=told(manifest, source_guidance) if embedded else None,
                n_min=n_min,
                n_max=n_max,
                n_avg=validate.at_least("n_avg", n_avg),
            ),
            patch=manifest.model.patch,
            size=size,
            sources={"image": validate.each(given.sources["image"], count)},
            loras=ability.loras(manifest, lora),
        )
        tell(made, given, manifest)
        return made

    @property
    def steps(self) -> int:
        """Of the whole schedule."""
        return self.levels.steps

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

    def texts(self, chosen: slice) -> tuple[Words, ...]:
        """The prompts that these pictures go through the denoiser with, in its order."""
        if self.edit:
            return (*self.edit.sources[chosen], *self.prompts[chosen])
        texts = self.prompts[chosen]
        if self.boxes:
            texts = tuple(map(placed, texts, self.boxes[chosen]))
        prompts = _words(texts, self.prompts_2[chosen])
        return (*prompts, *_words(self.negatives[chosen], self.negatives_2[chosen]))

    def guidances(self, chosen: slice) -> npt.NDArray[np.float32] | None:
        """The guidance of each of those."""
        if self.guidance is None:
            return None
        rows = len(self.prompts[chosen])
        first = self.edit.source_guidance if self.edit else self.guidance
        halves = [first] * rows + [self.guidance] * (rows * (self.copies - 1))
        return np.array(halves, np.float32)

    def place(self, index: int) -> Place:
        """How what was given for picture `index` lies on what is painted."""
        return self.places[index] if self.places else Whole()

    def pixels(self, image: Image.Image, index: int) -> npt.NDArray[np.uint8]:
        """A picture given for picture `index` as it is painted from, [height, width, 3]."""
        return np.array(self.place(index).onto(image, (self.width, self.height)))

    def mask(self, index: int) -> npt.NDArray[np.float32]:
        """The mask of picture `index`, [height, width] of 0 and 1."""
        size = self.width, self.height
        return picture.as_mask(self.place(index).onto(self.masks[index], size), size)

    def finished(self, painted: Image.Image, index: int) -> Image.Image:
        """What is given back of picture `index`: at its own size, where what a mask keeps is put back."""
        if self.crop is not None:
            return painted.crop(self.crop)
        if not self.images:
            return painted
        original, mask = self.images[index], None
        if self.paste or self.mask_crop is not None:
            mask = Whole().onto(self.masks[index], original.size)
            if not self.mask_blur and self.mask_crop is None:
                mask = mask.point(lambda value: 255 * (value >= 128))
        return self.place(index).back(painted, original, mask)

    def batches(self) -> Iterator[slice]:
        """Pictures that are painted together."""
        for first in range(0, len(self), self.batch):
            yield slice(first, min(first + self.batch, len(self)))


def _words(texts: tuple[str, ...], others: tuple[str, ...]) -> tuple[Words, ...]:
    return tuple(zip(texts, others, strict=True)) if others else texts


def tell(request: Request, given: Given, manifest: Manifest) -> None:
    """Say what becomes of the pictures that was not asked for, and refuse masks that would paint nothing.

    Raises:
        RequestError: such a mask.
    """
    size, model = (request.width, request.height), manifest.model
    sizes.tell_large(size, manifest, sum(rows * columns for rows, columns in request.grids[1:]))
    given.tell_resized(request.size, size, request.paste)
    tell_prompts(manifest, request.prompts, request.boxes, bool(request.references))
    done = set()
    for index, mask in enumerate(request.masks):
        if (key := (id(mask), request.place(index))) in done:
            continue
        done.add(key)
        which = "the mask" if len(set(map(id, request.masks))) == 1 else f"the mask of picture {index + 1}"
        masks.expect_painted(
            request.mask(index),
            which,
            None
            if request.task == "fill"
            else lambda found: inpaint.coarse(found, model.patch, model.noise, model.inpaint),
            model.patch // model.noise.cell,
            request.mask_blur,
        )
