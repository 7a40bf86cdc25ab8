"""From a process's start to the first picture: flux-run and diffusers in turn, on the same checkpoint.

    python benchmarks/cold_start.py [--bundle out/flux-nano] [--rounds 7] [--out benchmarks/results]

Every figure is of a fresh child process: wall seconds from its start to its end, and its peak memory. The
files are in the page cache (an uncounted round comes first), the two take turns, and a ratio is of one round.
The parent imports nothing large: on Linux a child's peak memory is at least its parent's when it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe, write

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROMPT = "a red circle at the top left on a white background"
STEPS, SIDE, GUIDANCE, LENGTH, SEED = 12, 64, 3.5, 32, 0
TARGETS = {"help_seconds": 0.3, "first_picture_seconds": 3.0}

DIFFUSERS = """
import sys
import torch
from diffusers import FluxPipeline

folder, out, prompt, steps, side, guidance, length, seed = sys.argv[1:]
pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
image = pipe(
    prompt,
    height=int(side),
    width=int(side),
    num_inference_steps=int(steps),
    guidance_scale=float(guidance),
    max_sequence_length=int(length),
    generator=torch.Generator().manual_seed(int(seed)),
).images[0]
image.save(out)
"""
COMPARE = """
import json
import sys
import numpy as np
from PIL import Image

ours, theirs = (np.asarray(Image.open(path).convert("RGB"), int) for path in sys.argv[1:])
apart = np.abs(ours - theirs)
found = {"largest_difference": int(apart.max()), "share_within_1": round(float((apart <= 1).mean()), 6)}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Run:
    """What one child process took."""

    seconds: float
    megabytes: float


def run(command: Sequence[str | Path]) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; the last lines it said are the message.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{command[0]} failed:\n{said.read().decode(errors='replace')[-2000:]}")
    return Run(seconds, usage.ru_maxrss * 1024 / 1e6)


def summary(values: Iterable[float], digits: int) -> dict[str, float]:
    """Median, smallest and largest."""
    found = list(values)
    figures = {"median": statistics.median(found), "min": min(found), "max": max(found)}
    return {name: round(value, digits) for name, value in figures.items()}


def compared(ours: Sequence[float], theirs: Sequence[float], digits: int) -> dict[str, dict[str, float]]:
    """Both, and how many times theirs is ours, round by round."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "flux_run": summary(ours, digits),
        "diffusers": summary(theirs, digits),
        "diffusers_over_flux_run": summary(ratios, 2),
    }


def measure(bundle: Path, checkpoint: Path, rounds: int, folder: Path) -> dict[str, object]:
    """All figures, from `rounds` rounds after one that is not counted."""
    common = [
        "--steps",
        str(STEPS),
        "--size",
        f"{SIDE}x{SIDE}",
        "--guidance",
        str(GUIDANCE),
        "--seed",
        str(SEED),
    ]
    numbers = [str(number) for number in (STEPS, SIDE, GUIDANCE, LENGTH, SEED)]
    ours, theirs = folder / "ours.png", folder / "theirs.png"
    commands: dict[str, list[str | Path]] = {
        "help": [BIN / "flux-run", "--help"],
        "flux_run": [BIN / "flux-run", "generate", bundle, PROMPT, "-o", ours, "--device", "cpu", *common],
        "diffusers": [sys.executable, "-c", DIFFUSERS, checkpoint, theirs, PROMPT, *numbers],
    }
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for index in range(rounds + 1):
        order = list(commands) if index % 2 else list(reversed(commands))
        for name in order:
            each = run(commands[name])
            if index:
                found[name].append(each)
                print(f"{index} {name}: {each.seconds:.2f} s, {each.megabytes:.0f} MB", file=sys.stderr)
    same = subprocess.run(
        [sys.executable, "-c", COMPARE, ours, theirs], capture_output=True, text=True, check=True
    )
    seconds = {name: [each.seconds for each in runs] for name, runs in found.items()}
    megabytes = {name: [each.megabytes for each in runs] for name, runs in found.items()}
    return {
        "help_seconds": summary(seconds["help"], 3),
        "first_picture_seconds": compared(seconds["flux_run"], seconds["diffusers"], 3),
        "peak_rss_mb": compared(megabytes["flux_run"], megabytes["diffusers"], 1),
        "pictures": json.loads(same.stdout),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="of flux-nano in fp32; without it one is built")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    checkpoint = ROOT / "examples" / "flux-nano"
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(name) / "bundle"
            run([BIN / "flux-export", "build", checkpoint, "--out", bundle])
        found = measure(bundle, checkpoint, options.rounds, Path(name))
    settings = {"prompt": PROMPT, "steps": STEPS, "size": [SIDE, SIDE], "guidance": GUIDANCE, "seed": SEED}
    settings |= {"precision": "fp32", "rounds": options.rounds, "page_cache": "warm"}
    write(options.out / "cold_start.json", {**describe(), "settings": settings, **found, "targets": TARGETS})


if __name__ == "__main__":
    main()
