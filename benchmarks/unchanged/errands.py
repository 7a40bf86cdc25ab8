"""What every installation is asked for to be compared: bundles, pictures that are given, and commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bfl
import numpy as np
from PIL import Image

PROMPTS = CIRCLE, SQUARE = "a red circle in the center on a white background", "a blue square at the top left"
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
BOTH = (ONNXRUNTIME, OPENVINO)
CFG = ["--negative", "a green cross", "--true-cfg", "2"]
MANY = ["-n", "2", "--batch", "2"]
EDIT = ["--source", CIRCLE, "--target", SQUARE, "--steps", "6", "--n-avg", "2"]
Command = list[str]


def generate(*arguments: str, steps: int = 4) -> Command:
    """Arguments of `flux-run`, all but the bundle."""
    return ["generate", *arguments, "--steps", str(steps)]


FEW = {
    "text": generate(CIRCLE, SQUARE, *MANY),
    "inpaint": generate(CIRCLE, "--image", "source.png", "--mask", "mask.png", "--paste", steps=5),
    "reference": generate("make it blue", "--reference", "source.png", *CFG),
    "edit": ["edit", "--image", "source.png", *EDIT, "--n-max", "5", "--n-min", "1"],
}
ALL = FEW | {
    "true-cfg": generate(CIRCLE, SQUARE, *CFG, "--batch", "2", "--seed", "7"),
    "guidance": generate(CIRCLE, "--guidance", "1", steps=6),
    "size": generate(SQUARE, "--size", "96x64"),
    "image": generate(CIRCLE, "--image", "source.png", "--strength", "0.6", *MANY, steps=5),
    "inpaint-cfg": generate(CIRCLE, "--image", "wide.png", "--mask", "mask.png", *CFG, *MANY),
    "references": generate(SQUARE, "--reference", "wide.png", "--reference", "source.png", "--size", "64x64"),
    "own-size": generate(SQUARE, "--reference", "wide.png", "--no-auto-resize", "--image", "source.png"),
    "tile": generate(CIRCLE, "--image", "wide.png", "--size", "160x128", "--tile", "64"),
    "sequential": generate(CIRCLE, "--image", "source.png", "--mask", "mask.png", "--memory", "sequential"),
    "edits": ["edit", "--image", "wide.png", *EDIT, "--target", "a yellow star", *MANY, "--n-max", "4"],
    "jobs": ["generate", "--jobs", "jobs.jsonl"],
}
FILL = {
    "fill": generate(SQUARE, CIRCLE, "--image", "source.png", "--mask", "mask.png", "--batch", "2"),
    "fill-cfg": generate(SQUARE, "--image", "wide.png", "--mask", "mask.png", "--paste", *CFG),
    "outpaint": generate(SQUARE, "--image", "source.png", "--outpaint", "16,0,32,16", "--strength", "0.8"),
}
CANNY = {
    "canny": generate(CIRCLE, SQUARE, "--canny", "source.png", *MANY),
    "control": generate(CIRCLE, "--control", "edges.png", *CFG),
    "control-image": generate(CIRCLE, "--control", "edges.png", "--image", "source.png", steps=5),
}
JOBS: list[dict[str, Any]] = [
    {"prompt": CIRCLE, "size": "64x96", "steps": 4, "seed": 3, "guidance": 2.0},
    {"prompt": SQUARE, "image": "source.png", "strength": 0.5, "mask": "mask.png", "paste": True, "steps": 4},
    {"prompt": SQUARE, "reference": ["source.png"], "negative": "red", "true_cfg": 1.5, "steps": 4},
    {"image": "source.png", "source": CIRCLE, "target": SQUARE, "steps": 5, "n_max": 4, "output": "job.png"},
]


@dataclass(frozen=True)
class Build:
    """A bundle, and what is painted with it."""

    checkpoint: str
    options: tuple[str, ...] = ()
    after: str | None = None
    """The bundle whose copy it replaces, to reuse stages."""
    backends: tuple[str, ...] = BOTH
    commands: Mapping[str, Command] = field(default_factory=lambda: FEW)


NANO = "flux-nano"
OF_BFL = ("--variant", "kontext", "--text-encoders", NANO, "--vae", f"{NANO}/vae")
BUILDS = {
    "nano": Build(NANO, commands=ALL),
    "nano-bf16": Build(NANO, ("--precision", "bf16"), backends=(OPENVINO,)),
    "nano-fp16": Build(NANO, ("--precision", "fp16"), "nano"),
    "nano-fp8": Build(NANO, ("--precision", "fp8", "--base", "fp32", "--calibration", "fp8.json"), "nano"),
    "nano-bfl-bf16": Build(bfl.NAME, (*OF_BFL, "--precision", "bf16"), "nano-bf16", (OPENVINO,)),
    "fill": Build("flux-nano-fill", after="nano", commands=FILL),
    "canny": Build("flux-nano-canny", after="nano", commands=CANNY),
}


def draw(folder: Path) -> None:
    """The pictures, masks and jobs that are given, into `folder`."""
    noise = np.random.default_rng(0)
    for name, width, height in (("source", 64, 64), ("wide", 112, 80)):
        y, x = np.mgrid[:height, :width]
        pixels = np.full((height, width, 3), 225.0)
        inside = np.hypot(x - width * 0.45, y - height * 0.5) < height * 0.3
        pixels[inside] = 200, 40, 50
        pixels += noise.normal(0, 6, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    y, x = np.mgrid[:64, :64]
    ring, hole = abs(np.hypot(x - 31, y - 33) - 20) < 1, (x > 24) & (y > 12) & (y < 50)
    for name, white in (("edges", ring), ("mask", hole)):
        Image.fromarray((white * 255).astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in JOBS))
