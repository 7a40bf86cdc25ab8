"""fp8 on onnxruntime's CPU: Q/DQ pairs carried out as they stand, beside onnxruntime's own fusions of them.

    python benchmarks/fp8_qdq.py [--prompts 256] [--rounds 7] [--also FOLDER ...] [--out benchmarks/results]

One bundle of flux-nano, fp8 with fp32 around, and the settings in turns in one process; a ratio is the median
over rounds of the ratio within a round. Quality is against the fp32 bundle from the same seeds.
Each folder of --also holds another onnxruntime (`pip install --target FOLDER onnxruntime==1.24.1`), with
which a process of its own loads the bundle and paints one picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from likeness import psnr
from machine import describe, write
from turns import summary, take_turns, times_as_fast

from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.pipeline import Pipeline

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
STEPS, GUIDANCE, SEED, BATCH, CALIBRATED = 12, 1.0, 0, 32, 64
SIZE = (64, 64)
SETTINGS: dict[str, dict[str, str]] = {
    "as they stand": {},
    "as they stand, weights kept in fp8": {"session.disable_qdq_constant_folding": "1"},
    "fused by onnxruntime": {"session.disable_quant_qdq": "0"},
}
OURS, *OTHERS = SETTINGS
PROMPT = "a red circle at the top left on a white background"


def loaded(bundle: Path, setting: str) -> Pipeline:
    """The bundle with a setting."""
    return Pipeline(Bundle.open(bundle, check=False), OnnxRuntime("cpu", settings=SETTINGS[setting]))


def paint(pipeline: Pipeline, prompts: list[str], batch: int) -> np.ndarray:
    """uint8 [N, H, W, 3]: prompt k from seed k."""
    images = pipeline.generate(prompts, size=SIZE, steps=STEPS, guidance=GUIDANCE, seed=SEED, batch=batch)
    return np.stack([np.asarray(image) for image in images])


def child(bundle: Path, setting: str, picture: Path) -> None:
    """Load and paint one picture; print what became of it, as one JSON object."""
    import onnxruntime

    told: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "setting": setting}
    before = _resident()
    try:
        with loaded(bundle, setting) as pipeline:
            told["loaded_mb"] = round(_resident() - before, 1)
            np.save(picture, paint(pipeline, [PROMPT], 1))
        told["loads"] = True
    except Exception as fault:
        told |= {"loads": False, "error": str(fault).split(": ", 1)[-1][:120]}
    print(json.dumps(told))


def _resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def elsewhere(bundle: Path, folder: Path | None, setting: str, scratch: Path) -> dict[str, Any]:
    """What a process with the onnxruntime of a folder makes of the bundle."""
    picture = scratch / "picture.npy"
    picture.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(folder or ""), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, __file__, "--child", str(bundle), setting, str(picture)]
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    if told["loads"]:
        told["picture"] = np.load(picture)
    return told


def bundles(folder: Path) -> tuple[Path, Path]:
    """flux-nano in fp32, and in fp8 with fp32 around; calibrated as fp8.py does it."""
    from flux_trt.exporter.build import build
    from flux_trt.exporter.quantise.e4m3 import Fp8
    from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
    from nano.scene import sample_split

    rng = np.random.default_rng(SEED)
    texts, ranges = folder / "prompts.txt", folder / "calibration.json"
    texts.write_text("\n".join(sample_split(rng, held_out=False).caption for _ in range(CALIBRATED)))
    calibrate_checkpoint(str(NANO), ranges, prompts=texts, size=SIZE, steps=STEPS, guidance=GUIDANCE)
    exact, small = folder / "fp32", folder / "fp8"
    build(str(NANO), exact, precision="fp32", link=False)
    build(str(NANO), small, precision="fp8", fp8=Fp8(base="fp32", calibration=ranges), link=False)
    return exact, small


def marks_lost(exact: np.ndarray, found: np.ndarray, prompts: list[str]) -> float:
    """Points of 100 that the checker takes off."""
    from fp8 import _losses

    from nano.checker import check

    return _losses(list(map(check, exact, prompts)), list(map(check, found, prompts)))["marks_lost"]


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders with another onnxruntime")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.child[1], Path(options.child[2]))
        return
    sys.path.insert(0, str(NANO))
    from nano.scene import test_prompts

    prompts = test_prompts(options.prompts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole, bundle = bundles(folder)
        with Pipeline(Bundle.open(whole), OnnxRuntime("cpu")) as pipeline:
            exact = paint(pipeline, prompts, BATCH)
        pipelines = {name: loaded(bundle, name) for name in SETTINGS}
        pictures = {name: paint(pipeline, prompts, BATCH) for name, pipeline in pipelines.items()}
        ways = {
            name: lambda pipeline=pipeline: paint(pipeline, [PROMPT], 1)
            for name, pipeline in pipelines.items()
        }
        seconds = take_turns(ways, options.rounds)
        for pipeline in pipelines.values():
            pipeline.close()
        here = {name: elsewhere(bundle, None, name, folder) for name in SETTINGS}
        also = [elsewhere(bundle, each, name, folder) for each in options.also for name in (OURS, OTHERS[-1])]
    mine = here[OURS]["picture"]
    rows = [
        {
            "name": name,
            "picture_seconds": summary(seconds[name]),
            "ours_times_as_fast": times_as_fast(seconds, OURS, name),
            "loaded_mb": here[name]["loaded_mb"],
            "marks_lost": marks_lost(exact, pictures[name], prompts),
            "psnr_db_median_to_fp32": round(float(np.median(psnr(pictures[name], exact))), 2),
            "same_values_as_ours": round(float((pictures[name] == pictures[OURS]).mean()), 5),
        }
        for name in SETTINGS
    ]
    for told in also:
        if (found := told.pop("picture", None)) is not None:
            told["largest_difference_of_255"] = int(np.abs(found.astype(int) - mine).max())
    settings = {"prompts": options.prompts, "rounds": options.rounds, "steps": STEPS, "size": SIZE}
    write(
        options.out / "fp8_qdq.json",
        {**describe(), "settings": settings, "rows": rows, "versions_tried": also},
    )


if __name__ == "__main__":
    main()
