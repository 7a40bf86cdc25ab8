"""flux-nano on a GPU beside diffusers and torch.compile, and how many rows a step may have.

    python benchmarks/gpu_nano.py --flavour tensorrt-rtx --sm 8.9 --work DIR --out DIR

`make gpu` runs it. The bundle is fp16, with engines of either TensorRT; pictures are judged by flux-nano's
checker. Where TensorRT cannot be used, onnxruntime with CUDA is timed alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZES = "64x64,128x128"


def run(module: str, *words: str) -> int:
    """A command of ours; its exit code."""
    print("+", module, *words, flush=True)
    return subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=False).returncode


def main() -> int:
    """Build, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavour", default="tensorrt-rtx")
    parser.add_argument("--sm", default="")
    parser.add_argument("--device", default="cuda", help="cpu: only to try this script")
    parser.add_argument("--runs", default="10")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bundle, out = str(options.work / "flux-nano"), str(options.out / "bench")
    if code := run(
        "flux_trt.exporter.cli", "build", "examples/flux-nano", "--out", bundle, "--precision", "fp16"
    ):
        return code
    targets = ("--sm", options.sm) if options.flavour == "tensorrt-rtx" else ()
    engines = (
        "engines",
        bundle,
        "--backend",
        options.flavour,
        *targets,
        "--sizes",
        SIZES,
        "--max-batch",
        "4",
    )
    built = options.device == "cuda" and run("flux_trt.exporter.cli", *engines) == 0
    backends = ("--backend", "onnxruntime", *(("--backend", options.flavour) if built else ()))
    timed = run(
        "flux_trt.bench.cli",
        *("run", bundle, "--device", options.device, *backends, "--peer", "diffusers", "--peer", "compile"),
        *("--steps", "12", "--guidance", "1", "--runs", options.runs, "--starts", "1", "--patience", "10"),
        *("--prompts", "benchmarks/flux-nano-prompts.txt", "--checker", "examples/flux-nano/nano/checker.py"),
        *("--scored", "32", "--allow-noise", "--out", out),
    )
    last = ("--backend", options.flavour) if built else ("--backend", "onnxruntime")
    rows = run(
        "flux_trt.bench.cli",
        "rows",
        bundle,
        *last,
        "--device",
        options.device,
        "--sizes",
        SIZES,
        "--most",
        "4",
        "--out",
        out,
    )
    return timed or rows or int(not built and options.device == "cuda")


if __name__ == "__main__":
    sys.exit(main())
