"""Many threads at one pipeline, each picture compared with the one that was painted alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = (32, 48)
PROMPTS = ["a red circle", "a blue square at the left"]


def scene(size=SIZE):
    image = Image.new("RGB", size, (240, 235, 220))
    ImageDraw.Draw(image).ellipse((6, 4, 22, 20), fill="red")
    return image


def hole():
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((3, 10, 25, 40), fill=255)
    return mask


ASKED: Mapping[str, Mapping[str, Any]] = {
    "text": {"size": SIZE, "steps": 3},
    "text, wide": {"size": (64, 32), "steps": 2},
    "text, batch": {"size": SIZE, "steps": 3, "batch": 2},
    "guided": {"size": SIZE, "steps": 3, "negative": "green", "true_cfg": 2.5},
    "image": {"image": scene(), "strength": 0.7, "steps": 4},
    "inpaint": {"image": scene(), "mask": hole(), "strength": 1.0, "steps": 3, "paste": True},
    "edit": {"image": scene(), "source": PROMPTS[0], "target": PROMPTS, "steps": 4, "n_max": 3, "n_min": 1},
}
REFERENCE = {"size": SIZE, "steps": 3, "reference": [scene((32, 32))], "auto_resize": False}
FILL = {"image": scene(), "mask": hole(), "steps": 3}
CONTROL = {"control": scene(), "steps": 3, "size": SIZE}


def painted(pipeline, asked: Mapping[str, Any], seed: int) -> list[np.ndarray]:
    paint = pipeline.edit if "target" in asked else lambda **rest: pipeline.generate(PROMPTS, **rest)
    return [np.asarray(image) for image in paint(seed=seed, **asked)]


def stress(pipeline, tasks: Sequence[Mapping[str, Any]], threads: int, rounds: int) -> list[str]:
    """What went wrong: nothing, if all is well. Every thread paints every task, in an order of its own."""
    jobs = [(index, seed) for index in range(len(tasks)) for seed in range(rounds)]
    alone = {(index, seed): painted(pipeline, tasks[index], seed) for index, seed in jobs}
    faults: list[str] = []
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        order = random.Random(number).sample(jobs, len(jobs))
        ready.wait()
        for index, seed in order:
            try:
                found = painted(pipeline, tasks[index], seed)
            except Exception as fault:
                faults.append(f"thread {number}, task {index}: {fault!r}")
                continue
            for mine, exact in zip(found, alone[index, seed], strict=True):
                if not np.array_equal(mine, exact):
                    apart = np.abs(mine.astype(int) - exact).max()
                    faults.append(f"thread {number}, task {index}, seed {seed}: {apart} of 255 apart")

    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    return faults
