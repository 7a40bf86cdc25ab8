"""Memory over many pictures of random sizes: both CPU backends, and OpenVINO without a bound on its cache.

    python benchmarks/soak.py [--pictures 150] [--steps 2] [--rounds 5] [--out benchmarks/results]

Each way runs in a process of its own, with the same random sizes, seeds and prompts, and tells its resident
memory on the way. Then OpenVINO with and without the bound paint the same sizes again and again, in turns in
one process: what the bound costs where nothing is new.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, write
from turns import summary, take_turns, times_as_fast

from flux_trt.runtime.backends.openvino import SHAPES, OpenVino
from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.pipeline import Pipeline

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
SMALLEST, LARGEST, PATCH = 32, 368, 16  # pixels of a side
CAPACITY = "CPU_RUNTIME_CACHE_CAPACITY"
UNBOUNDED = 5000  # OpenVINO's own
BOUNDED = f"openvino, {SHAPES} shapes kept"
OPEN = "openvino, as it is by itself"
WAYS = ("onnxruntime", BOUNDED, OPEN)
LOOKS = (1, 10, 25, 50, 75, 100, 150, 200, 300, 500, 1000)
AGAIN = 12  # sizes that come again


def backend(way: str) -> Backend:
    """What runs the graphs."""
    if way == "onnxruntime":
        return OnnxRuntime("cpu")
    return OpenVino("cpu", {CAPACITY: UNBOUNDED} if way == OPEN else None)


def sizes(count: int) -> list[tuple[int, int]]:
    """Random sizes, the same in every way."""
    rng, sides = random.Random(0), range(SMALLEST, LARGEST + 1, PATCH)
    return [(rng.choice(sides), rng.choice(sides)) for _ in range(count)]


def paint(pipeline: Pipeline, size: tuple[int, int], steps: int, seed: int) -> None:
    """One picture, which nobody keeps."""
    pipeline.generate(f"picture {seed}", size=size, steps=steps, guidance=1.0, seed=seed)


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def soak(bundle: Path, way: str, pictures: int, steps: int) -> dict[str, Any]:
    """Memory of this process on the way."""
    looks: dict[str, float] = {}
    with Pipeline(Bundle.open(bundle, check=False), backend(way)) as pipeline:
        loaded = resident()
        for number, size in enumerate(sizes(pictures), 1):
            paint(pipeline, size, steps, number)
            if number in LOOKS or number == pictures:
                looks[str(number)] = resident()
    gc.collect()
    return {"loaded_mb": loaded, "after_pictures_mb": looks, "closed_mb": resident()}


def again(bundle: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds for the same few sizes, time after time."""
    pipelines = {way: Pipeline(Bundle.open(bundle, check=False), backend(way)) for way in (BOUNDED, OPEN)}

    def round_of(pipeline: Pipeline) -> None:
        for number, size in enumerate(sizes(AGAIN)):
            paint(pipeline, size, steps, number)

    ways = {way: lambda pipeline=pipeline: round_of(pipeline) for way, pipeline in pipelines.items()}
    seconds = take_turns(ways, rounds)
    for pipeline in pipelines.values():
        pipeline.close()
    return {
        "sizes": AGAIN,
        "seconds": {way: summary(seconds[way]) for way in ways},
        "bounded_times_as_fast": times_as_fast(seconds, BOUNDED, OPEN),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.child:
        bundle, way = options.child
        print(json.dumps(soak(Path(bundle), way, options.pictures, options.steps)))
        return
    from flux_trt.exporter.build import build

    found = {}
    asked = ["--pictures", str(options.pictures), "--steps", str(options.steps)]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        build(str(NANO), bundle, precision="fp32")
        for way in WAYS:
            command = [sys.executable, __file__, *asked, "--child", str(bundle), way]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[way] = json.loads(told.splitlines()[-1])
            print(way, found[way], file=sys.stderr, flush=True)
        repeated = again(bundle, options.steps, options.rounds)
    settings = {"pictures": options.pictures, "steps": options.steps, "rounds": options.rounds}
    settings |= {"sides_px": [SMALLEST, LARGEST], "different_sizes": len(set(sizes(options.pictures)))}
    write(options.out / "soak.json", {**describe(), "settings": settings, "ways": found, "again": repeated})


if __name__ == "__main__":
    main()
