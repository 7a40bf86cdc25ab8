"""How small a calibration may be: flux-nano in fp8 by several, beside fp32 from the same seeds.

    python benchmarks/calibrations.py [--pictures 8] [--out benchmarks/results]

The base is fp32 in onnxruntime, so that what is measured is the loss by quantisation alone (docs/fp8.md).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from likeness import psnr
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.exporter.quantise.calibrate import built_in_prompts
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime.pipeline import Pipeline

ROOT = Path(__file__).parent.parent
NANO = ROOT / "examples" / "flux-nano"
ROWS: list[tuple[int, int, int]] = [  # prompts, steps, side in pixels
    (31, 12, 64),
    (1, 1, 16),
    (4, 12, 64),
    (1, 12, 64),
    (31, 3, 64),
    (31, 1, 64),
    (31, 12, 32),
    (31, 12, 16),
    (4, 3, 32),
    (1, 2, 64),
]


def paint(bundle: Path, prompts: list[str]) -> np.ndarray:
    """A picture of each prompt, uint8 [N, H, W, 3]."""
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as pipeline:
        found = pipeline.generate(prompts, steps=12, guidance=1.0, seed=list(range(len(prompts))))
    return np.stack([np.asarray(each) for each in found])


def measure(folder: Path, pictures: int) -> Iterator[list[dict[str, Any]]]:
    """The rows so far, after each calibration."""
    lines = (ROOT / "benchmarks" / "flux-nano-prompts.txt").read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line][:pictures]
    build(str(NANO), folder / "fp32")
    expected, rows = paint(folder / "fp32", asked), []
    for prompts, steps, side in ROWS:
        words = built_in_prompts()[:prompts] if prompts > 1 else ["a"]
        (folder / "prompts.txt").write_text("\n".join(words), encoding="utf-8")
        file = folder / f"{prompts}-{steps}-{side}.json"
        calibrate_checkpoint(
            str(NANO), file, prompts=folder / "prompts.txt", size=(side, side), steps=steps, guidance=1.0
        )
        build(str(NANO), folder / "fp8", precision="fp8", fp8=Fp8(base="fp32", calibration=file))
        found = paint(folder / "fp8", asked)
        each = psnr(found, expected)
        rows.append(
            {
                "prompts": prompts,
                "steps": steps,
                "side": side,
                "psnr": round(float(np.median(each)), 1),
                "psnr_least": round(float(np.min(each)), 1),
            }
        )
        print(rows[-1], flush=True)
        yield rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for rows in measure(Path(folder), asked.pictures):
            found = {"machine": describe(), "pictures": asked.pictures, "rows": rows}
            write(asked.out / "calibrations.json", found)


if __name__ == "__main__":
    main()
