"""Scores the two LoRAs as a bundle takes them while running: `python -m nano.lora_score BUNDLE`.

BUNDLE was built from flux-nano with `--lora-rank 16`: each LoRA has 8. Every group of prompts is painted
without and with, from the same seeds, and judged by the checker against what the LoRA should make of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from flux_trt.runtime import Pipeline
from nano.checker import Rates, check
from nano.lessons import Example, both, crimson, mirrored, unseen
from nano.picture import SIDE, Jitter
from nano.scene import parse, test_prompts
from nano.score import contact_sheet, provenance

HERE = Path(__file__).resolve().parent.parent
LORAS = HERE.parent / "flux-nano-loras"
RESULT = HERE.parents[1] / "benchmarks" / "results" / "flux_nano_loras.json"
SHOWN = 8  # pictures of a row of the sheet
Paint = Callable[[list[str], list[str]], list[Image.Image]]


def main(arguments: list[str] | None = None) -> None:
    """Paint, judge, and write numbers and sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=128, help="of each group")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--sheet", type=Path, default=LORAS / "samples.png")
    options = parser.parse_args(arguments)
    rows: list[Image.Image] = []
    with Pipeline.load(options.bundle) as pipe:

        def paint(prompts: list[str], loras: list[str]) -> list[Image.Image]:
            files = [str(LORAS / f"{name}.safetensors{strength}") for name, strength in map(_split, loras)]
            pipe.set_loras(files)
            size = (SIDE, SIDE)
            return pipe.generate(prompts, size=size, steps=options.steps, guidance=1.0, seed=0, batch=32)

        groups = {
            name: judged(paint, examples(options.prompts), loras, rows)
            for name, (examples, loras) in GROUPS.items()
        }
    contact_sheet(rows, columns=SHOWN).save(options.sheet)
    settings = {"steps": options.steps, "guidance": 1.0, "seed": 0, "prompts": options.prompts}
    found = {"groups": groups, "settings": settings, **provenance("nano.lora_score")}
    options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(groups, indent=2))


def own(count: int) -> list[Example]:
    """Prompts that no LoRA has business with."""
    return [Example(text, parse(text), Jitter.none()) for text in test_prompts(count)]


GROUPS: dict[str, tuple[Callable[[int], list[Example]], list[str]]] = {
    "mirror": (partial(unseen, mirrored), ["mirror"]),
    "mirror at half strength": (partial(unseen, mirrored), ["mirror:0.5"]),
    "crimson": (partial(unseen, crimson), ["crimson"]),
    "both": (partial(unseen, both), ["mirror", "crimson"]),
    "flux-nano's own prompts": (own, ["crimson"]),
}
"""Group -> its examples, so many, and the LoRAs that they are painted with."""


def judged(
    paint: Paint, examples: list[Example], loras: list[str], rows: list[Image.Image]
) -> dict[str, dict[str, float]]:
    """The checker's shares without and with; the first pictures of each go to the sheet."""
    found = {}
    for name, chosen in (("without", []), ("with", loras)):
        pictures = paint([each.caption for each in examples], chosen)
        rows += pictures[:SHOWN]
        reports = [check(picture, each.shown) for picture, each in zip(pictures, examples, strict=True)]
        found[name] = dataclasses.asdict(Rates.of(reports))
    return found


def _split(lora: str) -> tuple[str, str]:
    name, colon, strength = lora.partition(":")
    return name, colon + strength


if __name__ == "__main__":
    main()
