"""What the picture tasks do to flux-nano's pictures, judged by its checker, and their contact sheets.

    python benchmarks/tasks.py BUNDLE [--fill BUNDLE] [--canny BUNDLE] [--cases 128]

The cases are edits of scenes that were never trained on. Every source picture is drawn: all of it is right.
`made` is the share of edits whose change was made, `kept` the share of all other marks (colour, shape and
place of every object, and the background) that are still right, `whole` the share of pictures where all are.
`rest_psnr` is that of the pixels that the true edit leaves as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write
from PIL import Image, ImageChops, ImageFilter

from flux_trt.runtime import Pipeline
from flux_trt.runtime.session import expect_writable
from flux_trt.runtime.tasks.edges import canny
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


@dataclass(frozen=True)
class Cases:
    """Edits of scenes that were never trained on, each with its two pictures drawn."""

    edits: list[Edit]
    sources: list[Image.Image]
    truths: list[Image.Image]

    @classmethod
    def draw(cls, count: int) -> Cases:
        """The first so many."""
        edits, rng = test_edits(count), np.random.default_rng(SEED)
        jitters = [Jitter.sample(rng) for _ in edits]
        drawn = [
            [_drawn(scene, jitter) for scene in (edit.source, edit.target)]
            for edit, jitter in zip(edits, jitters, strict=True)
        ]
        return cls(edits, [source for source, _ in drawn], [truth for _, truth in drawn])

    @property
    def masks(self) -> list[Image.Image]:
        """What each edit changes and a little around it, in whole patches."""
        return [_patches(_change(*pair)) for pair in zip(self.sources, self.truths, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    """Paint every task, judge it, and write results and sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path, help="flux-nano")
    parser.add_argument("--fill", type=Path, help="flux-nano-fill, for masks as FLUX.1 Fill takes them")
    parser.add_argument("--canny", type=Path, help="flux-nano-canny, for pictures after edges")
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--guidance", type=float, default=1.0, help="of all tasks but FlowEdit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheets", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery")
    options = parser.parse_args(arguments)
    options.sheets.mkdir(parents=True, exist_ok=True)

    cases = Cases.draw(options.cases)
    plain = {"batch": BATCH, "seed": SEED, "steps": STEPS, "guidance": options.guidance}
    painters = (options.bundle, paint), (options.fill, paint_fill), (options.canny, paint_after_edges)
    found: dict[str, Any] = {"bundles": {}}
    for bundle, painter in painters:
        if bundle is None:
            continue
        with Pipeline.load(bundle) as pipeline:
            made = painter(pipeline, cases, plain)
            found["bundles"][pipeline.bundle.manifest.variant] = pipeline.bundle.digest
        for task, pictures in made.items():
            found[task] = judge(task, pictures, cases)
            place = options.sheets / f"{task}.png"
            expect_writable(place)
            above = [_edges(cases.sources)] if task == "control" else []
            _sheet(*above, cases.sources, pictures).save(place)
    settings = {
        "cases": len(cases.edits),
        "steps": STEPS,
        "guidance": options.guidance,
        "flowedit": FLOWEDIT,
        "reference": REFERENCE,
    }
    write(options.out / "tasks.json", {**describe(), "settings": settings, **found})


def paint(pipeline: Pipeline, cases: Cases, plain: dict[str, Any]) -> dict[str, Pictures]:
    """What flux-nano itself can do, by task."""
    captions = [edit.source.caption for edit in cases.edits]
    targets = [edit.target.caption for edit in cases.edits]
    shared = {"batch": BATCH, "seed": SEED}
    with_reference = {**plain, **REFERENCE}
    return {
        "flowedit": pipeline.edit(cases.sources, source=captions, target=targets, **FLOWEDIT, **shared),
        "reference": [
            pipeline.generate(edit.instruction, reference=source, **with_reference | {"seed": SEED + k})[0]
            for k, (edit, source) in enumerate(zip(cases.edits, cases.sources, strict=True))
        ],
        "image": pipeline.generate(captions, image=cases.sources, strength=0.3, **plain),
        "inpaint": pipeline.generate(targets, image=cases.sources, mask=cases.masks, strength=1.0, **plain),
    }


def paint_fill(pipeline: Pipeline, cases: Cases, plain: dict[str, Any]) -> dict[str, Pictures]:
    """The same holes, painted by a model that was trained for them."""
    targets = [edit.target.caption for edit in cases.edits]
    return {"fill": pipeline.generate(targets, image=cases.sources, mask=cases.masks, **plain)}


def paint_after_edges(pipeline: Pipeline, cases: Cases, plain: dict[str, Any]) -> dict[str, Pictures]:
    """The sources' edges, and captions that do not say where anything is."""
    captions = [
        replace(scene, objects=tuple(replace(thing, place=None) for thing in scene.objects)).caption
        for scene in (edit.source for edit in cases.edits)
    ]
    return {"control": pipeline.generate(captions, control=_edges(cases.sources), **plain)}


def judge(task: str, pictures: Pictures, cases: Cases) -> dict[str, float]:
    """The checker's shares, and how the rest of the picture stayed where something should have."""
    unchanged = task in ("image", "control")
    wanted = [edit.source if unchanged else edit.target for edit in cases.edits]
    reports = [check(picture, scene) for picture, scene in zip(pictures, wanted, strict=True)]
    if task == "control":
        return as_asked(reports)
    rates = as_asked(reports) if unchanged else judged(cases.edits, reports)
    return rates | {
        "rest_psnr": _rest_psnr(pictures, cases.sources, cases.sources if unchanged else cases.truths)
    }


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


def as_asked(reports: Sequence[Report]) -> dict[str, float]:
    """Shares of objects and backgrounds that are as the scene has them."""
    verdicts = [verdict for report in reports for verdict in report.objects]
    return {
        "colour": _share([verdict.colour for verdict in verdicts]),
        "shape": _share([verdict.shape for verdict in verdicts]),
        "place": _share([verdict.place for verdict in verdicts]),
        "background": _share([report.background for report in reports]),
        "all_right": _share([report.all_right for report in reports]),
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


def _edges(pictures: Pictures) -> list[Image.Image]:
    return [canny(picture) for picture in pictures]


def _sheet(*rows: Pictures, scale: int = 2, gap: int = 4) -> Image.Image:
    """A column for each case: the source, what became of it, and the difference."""
    rows = tuple(row[:SHEET] for row in rows)
    rows += ([ImageChops.difference(a, b) for a, b in zip(*rows[-2:], strict=True)],)
    width, height = (side * scale for side in rows[0][0].size)
    size = len(rows[0]) * (width + gap) + gap, len(rows) * (height + gap) + gap
    sheet = Image.new("RGB", size, (64, 64, 64))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            larger = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(larger, (gap + x * (width + gap), gap + y * (height + gap)))
    return sheet


if __name__ == "__main__":
    main()
