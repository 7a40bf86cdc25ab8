"""What the picture tasks do to flux-nano's pictures, judged by its checker, and their contact sheets.

    python benchmarks/tasks.py BUNDLE [--cases 128] [--out benchmarks/results] [--sheets docs/gallery]

The cases are edits of scenes that were never trained on. Every source picture is drawn: all of it is right.
`made` is the share of edits whose change was made, `kept` the share of all other marks (colour, shape and
place of every object, and the background) that are still right, `whole` the share of pictures where all are.
`rest_psnr` is that of the pixels that the true edit leaves as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write
from PIL import Image, ImageChops, ImageFilter

from flux_trt.runtime import Pipeline
from flux_trt.runtime.session import expect_writable
from nano.checker import Report, check
from nano.edit import Edit, test_edits
from nano.picture import Jitter, draw

SEED = 7
BATCH = 16
STEPS = 12
FLOWEDIT = {"steps": 28, "n_max": 24, "n_min": 0, "n_avg": 1, "source_guidance": 1.0, "target_guidance": 1.5}
REFERENCE = {"negative": "", "true_cfg": 1.5}  # the best of 1, 1.25, 1.5, 1.75 on 128 other cases
SHEET = 8  # cases shown

Pictures = Sequence[Image.Image]


def main(arguments: list[str] | None = None) -> None:
    """Paint every task, judge it, and write results and sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--guidance", type=float, default=1.0, help="of all tasks but FlowEdit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheets", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery")
    options = parser.parse_args(arguments)
    options.sheets.mkdir(parents=True, exist_ok=True)

    edits = test_edits(options.cases)
    rng = np.random.default_rng(SEED)
    jitters = [Jitter.sample(rng) for _ in edits]
    sources = [_drawn(edit.source, jitter) for edit, jitter in zip(edits, jitters, strict=True)]
    truths = [_drawn(edit.target, jitter) for edit, jitter in zip(edits, jitters, strict=True)]
    shared = {"batch": BATCH, "seed": SEED}
    found: dict[str, Any] = {}
    with Pipeline.load(options.bundle) as pipeline:
        plain = {**shared, "steps": STEPS, "guidance": options.guidance}
        captions = [edit.source.caption for edit in edits]
        targets = [edit.target.caption for edit in edits]
        made = {
            "flowedit": pipeline.edit(sources, source=captions, target=targets, **FLOWEDIT, **shared),
            "reference": [
                pipeline.generate(
                    edit.instruction, reference=source, **{**plain, **REFERENCE, "seed": SEED + k}
                )[0]
                for k, (edit, source) in enumerate(zip(edits, sources, strict=True))
            ],
            "image": pipeline.generate(captions, image=sources, strength=0.3, **plain),
            "inpaint": pipeline.generate(
                targets,
                image=sources,
                mask=[_patches(_change(a, b)) for a, b in zip(sources, truths, strict=True)],
                strength=1.0,
                **plain,
            ),
        }
        found["bundle"] = {"digest": pipeline.bundle.digest, "variant": pipeline.bundle.manifest.variant}
    for task, pictures in made.items():
        wanted = [edit.source if task == "image" else edit.target for edit in edits]
        reports = [check(picture, scene) for picture, scene in zip(pictures, wanted, strict=True)]
        found[task] = image_to_image(reports) if task == "image" else judged(edits, reports)
        found[task]["rest_psnr"] = _rest_psnr(pictures, sources, sources if task == "image" else truths)
        place = options.sheets / f"{task}.png"
        expect_writable(place)
        _sheet(sources[:SHEET], pictures[:SHEET]).save(place)
    settings = {
        "cases": len(edits),
        "steps": STEPS,
        "guidance": options.guidance,
        "flowedit": FLOWEDIT,
        "reference": REFERENCE,
    }
    write(options.out / "tasks.json", {**describe(), "settings": settings, **found})


def judged(edits: Sequence[Edit], reports: Sequence[Report]) -> dict[str, float]:
    """Shares of changes made, of other marks kept, and of pictures with both whole."""
    made, kept, whole = [], [], []
    for edit, report in zip(edits, reports, strict=True):
        marks = {"background": report.background}
        for index, verdict in enumerate(report.objects):
            marks |= {f"{name} {index}": getattr(verdict, name) for name in ("colour", "shape", "place")}
        made.append(marks.pop("background" if edit.index is None else f"{edit.kind} {edit.index}"))
        kept += marks.values()
        whole.append(made[-1] and report.all_right)
    return {"made": _share(made), "kept": _share(kept), "whole": _share(whole)}


def image_to_image(reports: Sequence[Report]) -> dict[str, float]:
    """Shares of objects and backgrounds that are as they were."""
    verdicts = [verdict for report in reports for verdict in report.objects]
    return {
        "colour": _share([verdict.colour for verdict in verdicts]),
        "shape": _share([verdict.shape for verdict in verdicts]),
        "place": _share([verdict.place for verdict in verdicts]),
        "background": _share([report.background for report in reports]),
    }


def _drawn(scene: Any, jitter: Jitter) -> Image.Image:
    return Image.fromarray(draw(scene, jitter))


def _change(source: Image.Image, truth: Image.Image) -> Image.Image:
    """A mask of all that an edit changes, and a little around it."""
    apart = ImageChops.difference(source, truth).convert("L").point(lambda value: 255 * (value > 8))
    return apart.filter(ImageFilter.MaxFilter(5))


def _patches(mask: Image.Image, side: int = 16) -> Image.Image:
    """The mask, grown to whole patches of latents."""
    rows, columns = mask.height // side, mask.width // side
    touched = np.asarray(mask).reshape(rows, side, columns, side).max((1, 3))
    return Image.fromarray(np.kron(touched, np.ones((side, side), np.uint8)))


def _rest_psnr(pictures: Pictures, sources: Pictures, truths: Pictures) -> float:
    errors = []
    for picture, source, truth in zip(pictures, sources, truths, strict=True):
        same = np.asarray(_change(source, truth)) == 0
        if same.any():
            apart = np.asarray(picture, float)[same] - np.asarray(source, float)[same]
            errors.append(10 * np.log10(255**2 / max(np.square(apart).mean(), 1e-6)))
    return round(float(np.median(errors)), 2)


def _share(marks: Sequence[bool]) -> float:
    return round(float(np.mean(marks)), 4)


def _sheet(sources: Pictures, pictures: Pictures, scale: int = 2, gap: int = 4) -> Image.Image:
    """A column for each case: the source, what became of it, and the difference."""
    rows = [sources, pictures, [ImageChops.difference(a, b) for a, b in zip(sources, pictures, strict=True)]]
    width, height = (side * scale for side in sources[0].size)
    size = len(sources) * (width + gap) + gap, len(rows) * (height + gap) + gap
    sheet = Image.new("RGB", size, (64, 64, 64))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            larger = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(larger, (gap + x * (width + gap), gap + y * (height + gap)))
    return sheet


if __name__ == "__main__":
    main()
