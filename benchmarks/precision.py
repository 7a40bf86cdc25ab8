"""What a precision costs in quality: flux-nano's score, and the distance to fp32 from the same seeds.

    python benchmarks/precision.py [--prompts 256] [--out benchmarks/results]

fp32 and fp16 run in onnxruntime. bf16 runs in torch, on the CPU: onnxruntime's CPU provider has no bf16
kernels, and the modules are the very ones that were traced, with the bundle's weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoint import open_checkpoint
from flux_trt.exporter.eager import Eager
from flux_trt.runtime.backend import Backend, connect
from flux_trt.runtime.bundle import Bundle
from flux_trt.runtime.manifest import Precision
from flux_trt.runtime.pipeline import Pipeline

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
STEPS, GUIDANCE, SEED, BATCH = 12, 1.0, 0, 32
ROWS: tuple[tuple[Precision, str], ...] = (
    ("fp32", "onnxruntime"),
    ("fp16", "onnxruntime"),
    ("bf16", "torch"),
)


def psnr(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB: uint8 [N, H, W, 3] -> [N]."""
    error = np.mean((found.astype(np.float64) - expected) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-10))


def paint(bundle: Path, backend: Backend, prompts: list[str]) -> list:
    """The pictures of all prompts, prompt k from seed k."""
    with Pipeline(Bundle.open(bundle), backend) as pipeline:
        return pipeline.generate(
            prompts, size=(64, 64), steps=STEPS, guidance=GUIDANCE, seed=SEED, batch=BATCH
        )


def main() -> None:
    """Paint in every precision and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    sys.path.insert(0, str(NANO))
    from nano.checker import Rates, check
    from nano.scene import test_prompts

    prompts = test_prompts(args.prompts)
    pictures: dict[str, list] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, runner in ROWS:
            bundle = Path(folder) / precision
            build(str(NANO), bundle, precision=precision)
            backend = Eager(open_checkpoint(str(NANO))) if runner == "torch" else connect(runner, "cpu")
            pictures[precision] = paint(bundle, backend, prompts)
    exact = np.stack([np.asarray(image) for image in pictures["fp32"]])
    rows = []
    for precision, runner in ROWS:
        found = np.stack([np.asarray(image) for image in pictures[precision]])
        distance = psnr(found, exact)
        same = precision == "fp32"
        rows.append(
            {
                "precision": precision,
                "runner": runner,
                "score": dataclasses.asdict(Rates.of(map(check, pictures[precision], prompts))),
                "psnr_db_median": None if same else round(float(np.median(distance)), 2),
                "psnr_db_p5": None if same else round(float(np.percentile(distance, 5)), 2),
                "within_1_of_255": round(float((np.abs(found.astype(int) - exact) <= 1).mean()), 5),
            }
        )
    asked = {"prompts": args.prompts, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED, "size": [64, 64]}
    write(args.out / "precision.json", {**describe(), **asked, "rows": rows})


if __name__ == "__main__":
    main()
