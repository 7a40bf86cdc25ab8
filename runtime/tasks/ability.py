"""What is asked for, by the pictures that come with it, and whether a bundle can do it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest, Task
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora.chosen import Chosen, LoraLike, chosen
from flux_trt.runtime.lora.factors import taken_by
from flux_trt.runtime.tasks.boxes import BoxesLike, boxes_of


def task_of(
    manifest: Manifest,
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    controls: Sequence[Image.Image],
    references: Sequence[Image.Image],
) -> Task:
    """What is asked for, if the bundle can do it.

    Raises:
        RequestError: it cannot, or lacks a picture for it.
    """
    fills, controlled = "fill" in manifest.tasks, "control" in manifest.tasks
    if references:
        expect(manifest, "reference")
    if controls or controlled:
        expect(manifest, "control")
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
    expect(manifest, task)
    return task


def expect(manifest: Manifest, task: Task) -> None:
    """Refuse a task that the bundle cannot do, with what it can.

    Raises:
        RequestError: that.
    """
    if task not in manifest.tasks:
        has = ", ".join(manifest.tasks) or "nothing: it is a partial bundle"
        raise RequestError(
            f"a {manifest.variant} bundle cannot do the task {task} (this one can do {has}); "
            f"build a whole one of a model that can (the README has a table of variants)"
        )


def layout(manifest: Manifest, given: BoxesLike | None, references: int) -> str:
    """The rows of a layout, if the bundle knows boxes; "" where none are given.

    Raises:
        RequestError: it does not, or they are no boxes.
    """
    if given is not None and not manifest.prompts.boxes:
        raise RequestError(
            f"a {manifest.family} {manifest.variant} bundle was not made for boxes; leave them out, "
            "and say in the prompt where things are"
        )
    return boxes_of(given, references)


def loras(manifest: Manifest, given: LoraLike | Sequence[LoraLike] | None) -> tuple[Chosen, ...] | None:
    """The LoRAs that are asked for, if the bundle takes any; None where nothing is said of them.

    Raises:
        RequestError: it takes none, or a file is not there.
    """
    found = chosen(given)
    if found:
        taken_by(manifest)
    return found
