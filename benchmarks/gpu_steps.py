"""Milliseconds of a denoiser step on a GPU, one way after another, at real shapes with random weights.

    python benchmarks/gpu_steps.py ladder|blocks|full --flavour FLAVOUR --work DIR --out DIR [--seconds S]

`ladder` is flux-nano and a transformer of 56 M; `blocks` is one and two blocks of FLUX.1-dev at 1024x1024,
whose differences tell what all 19 and 38 take; `full` is all of it, where disk and memory are there. Each way
runs in a child process, so that a fault of one leaves the others alone. A row that could not be run says why.
Random weights make no picture: how far each way's latents lie from the first of ours says whether it computed
the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("conditioner", "denoiser")
FULL = (19, 38)
PUBLISHED = {"SGLang's CI, H100, FLUX.1-dev, bf16, 1024x1024": 128.9}
"""Milliseconds a step that others have published."""
ROUNDS, WARM_UP, STEPS = 5, 2, 4


@dataclass(frozen=True)
class Way:
    """How steps are run."""

    name: str
    precision: str
    backend: str
    """diffusers, compile, onnxruntime, or TensorRT's flavour."""
    record: bool = False
    attention: bool = False
    rope: str = "native"


@dataclass(frozen=True)
class Model:
    """What runs: flux-nano, `mid`, or FLUX.1-dev with so many blocks."""

    name: str
    depth: tuple[int, int] | None = None
    gpu_gb: float = 2.0
    """Free on the GPU, or a way is not tried."""
    disk_gb: float = 4.0


def ways(flavour: str, short: bool = False) -> list[Way]:
    """The ladder, one change a rung; `short`: those that say most."""
    trt = "TensorRT-RTX" if flavour == "tensorrt-rtx" else "TensorRT"
    found = [
        Way("diffusers, bf16", "bf16", "diffusers"),
        Way("diffusers, torch.compile, bf16", "bf16", "compile"),
        Way("onnxruntime, fp16", "fp16", "onnxruntime"),
        Way("onnxruntime, fp16, all steps in one CUDA graph", "fp16", "onnxruntime", True),
        Way(f"{trt}, bf16", "bf16", flavour),
        Way(f"{trt}, bf16, all steps in one CUDA graph", "bf16", flavour, True),
        Way(f"{trt}, bf16, RoPE plugin", "bf16", flavour, True, rope="plugin"),
        Way(f"{trt}, fp8", "fp8", flavour, True),
        Way(f"{trt}, fp8, FP8 attention", "fp8", flavour, True, attention=True),
    ]
    return [found[index] for index in (0, 7, 8, 5)] if short else found


MODELS = {
    "ladder": [Model("flux-nano"), Model("mid")],
    "blocks": [Model("FLUX.1-dev", depth, 6.0, 12.0) for depth in ((1, 1), (1, 2), (2, 1))],
    "full": [Model("FLUX.1-dev", FULL, 20.0, 80.0)],
}


def size_of(model: Model) -> Any:
    """As walk.py takes it."""
    from walk import SIZES, Size

    return SIZES.get(model.name) or Size(model.name, side=64, text=512, steps=STEPS)


def checkpoint(model: Model, work: Path) -> Path:
    """The model's weights, written once."""
    import walk

    if model.depth is None:
        folder = work / model.name
        return folder if folder.exists() else walk.checkpoint(size_of(model), folder)
    from counted import shapes
    from full_size_engines import write_random

    path = work / f"{model.name}-{'-'.join(map(str, model.depth))}.safetensors"
    if not path.exists():
        write_random(path.with_suffix(".part"), shapes(model.name, model.depth))
        path.with_suffix(".part").rename(path)
    return path


def timed(walk: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Of ROUNDS walks, after a warm-up; a walk ends when its latents are on the host."""
    for _ in range(WARM_UP):
        walk()
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        walk()
        found.append(1e3 * (time.perf_counter() - started) / steps)
    return {
        "ms_per_step": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
    }


def peers(way: Way, model: Model, source: Path, device: str) -> Callable[[], Any]:
    """A walk of diffusers' transformer; of FLUX.1-dev with weights made on the device."""
    import torch
    from diffusers import FluxTransformer2DModel
    from walk import Plain, Task, plain, tensors

    task, dtype = Task.of(size_of(model), source), torch.bfloat16
    if model.depth is None:
        module = plain(source, dtype).to(device)
    else:
        with torch.device(device):
            torch.set_default_dtype(dtype)
            made = FluxTransformer2DModel(
                num_layers=model.depth[0], num_single_layers=model.depth[1], guidance_embeds=True
            )
            torch.set_default_dtype(torch.float32)
        module = Plain(made.eval())
    if way.backend == "compile":
        module = torch.compile(module)  # type: ignore[assignment]
    fixed = tuple(each.to(device) for each in tensors(task, dtype))
    times = torch.from_numpy(task.levels).to(device)

    @torch.inference_mode()
    def walk() -> Any:
        now = torch.from_numpy(task.noise).to(device)
        for step in range(task.size.steps):
            inputs = (now.to(dtype), *fixed[1:3], times[step : step + 1].to(dtype), *fixed[4:])
            now = now + (times[step + 1] - times[step]) * module(*inputs).float()
        return now.cpu().numpy()

    return walk


def ours(
    way: Way, model: Model, source: Path, work: Path, device: str
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A walk of our bundle, built where it is not there yet, and what building it took."""
    import walk
    from counted import made_up

    from flux_trt.exporter.build import build
    from flux_trt.exporter.engines.engine import Options, build_engines
    from flux_trt.exporter.engines.profile import Shapes
    from flux_trt.exporter.quantise.e4m3 import Fp8
    from flux_trt.runtime.backends.connect import connect
    from flux_trt.runtime.bundle import manifest
    from flux_trt.runtime.bundle.bundle import Bundle

    told: dict[str, Any] = {}
    depth = "" if model.depth is None else f"-{model.depth[0]}-{model.depth[1]}"
    kind = f"{way.precision}{'-attention' * way.attention}{'-plugin' * (way.rope != 'native')}"
    name = f"{model.name}{depth}-{kind}"
    bundle = work / name
    if not (bundle / manifest.NAME).exists():
        fp8 = None
        if way.precision == "fp8":
            made_up(str(source), work / "calibration.json")
            fp8 = Fp8(base="bf16", calibration=work / "calibration.json", attention=way.attention)
        started = time.perf_counter()
        build(str(source), bundle, precision=way.precision, stages=STAGES, fp8=fp8)  # type: ignore[arg-type]
        told["export_seconds"] = round(time.perf_counter() - started, 1)
    size = size_of(model)
    if way.backend != "onnxruntime":
        side = size.side * manifest.read(bundle).model.patch
        started = time.perf_counter()
        shapes = Shapes(((side, side),), wide=False, pairs=False)
        build_engines(bundle, Options(flavour=way.backend, rope=way.rope), shapes, STAGES)  # type: ignore[arg-type]
        told["engine_seconds"] = round(time.perf_counter() - started, 1)
        told["plan_gb"] = round(
            sum(each.stat().st_size for each in bundle.glob("engines/*/engine.plan")) / 1e9, 3
        )
    connected = connect(way.backend, device, Bundle.open(bundle, check=False), check=False)  # type: ignore[arg-type]
    before = _resident()
    made = walk.ours(bundle, connected, walk.Task.of(size, source), way.record)
    told["host_memory_gb"] = round(_resident() - before, 3)
    if connected.gpu is not None:
        told["gpu"] = str(connected.gpu)
    return made, told


def _resident() -> float:
    """GB of this process's own memory, mapped files left out."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon:")), 0.0)


def one(way: Way, model: Model, work: Path, device: str) -> dict[str, Any]:
    """A row, in this process."""
    import numpy as np

    from flux_trt.runtime.errors import FluxTrtError

    source = checkpoint(model, work)
    try:
        if way.backend in ("diffusers", "compile"):
            walk, told = peers(way, model, source, device), {}
        else:
            walk, told = ours(way, model, source, work, device)
        row = {**timed(walk, size_of(model).steps), **told}
        if way.backend not in ("diffusers", "compile"):
            from walk import distance

            latents, kept = walk(), work / f"{source.stem}.latents.npy"
            if kept.exists():
                row["psnr_db"] = distance(latents, np.load(kept))["psnr_db"]
            else:
                np.save(kept, latents)
        return row
    except FluxTrtError as fault:
        return {"not_run_here": str(fault)}


def short_of(model: Model, work: Path, device: str) -> str | None:
    """What a model needs that is not there."""
    free = shutil.disk_usage(work).free / 1e9
    if free < model.disk_gb:
        return f"{model.disk_gb:.0f} GB of disk are needed, {free:.0f} are free"
    if device == "cuda":
        from flux_trt.runtime.backends.device import Gpu

        gpu = Gpu()
        there = gpu.free_bytes() / 1e9
        gpu.close()
        if there < model.gpu_gb:
            return f"{model.gpu_gb:.0f} GB on the GPU are needed, {there:.0f} are free"
    return None


def row_of(way: Way, model: Model, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """A row, from a child process."""
    job = json.dumps({"way": asdict(way), "model": asdict(model)})
    command = [sys.executable, __file__, options.suite, "--one", job, "--device", options.device]
    try:
        done = subprocess.run(
            [*command, "--work", options.work], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"not_run_here": f"stopped after {seconds:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {
            "not_run_here": f"exit code {done.returncode}: {lines[-1] if lines else 'nothing was said'}"[:400]
        }
    return dict(json.loads(done.stdout.splitlines()[-1]))


def by_blocks(rows: list[dict[str, Any]]) -> dict[str, float]:
    """All 19 and 38 blocks, by what one more of each kind takes."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        times = {tuple(row["depth"]): row.get("ms_per_step") for row in rows if row["name"] == name}
        base, single, double = (times.get(depth) for depth in ((1, 1), (1, 2), (2, 1)))
        if base and single and double:
            found[name] = round(base + (FULL[0] - 1) * (double - base) + (FULL[1] - 1) * (single - base), 2)
    return found


def measure(options: argparse.Namespace) -> int:
    """All rows of a suite, written after each; 1 where none of ours was timed."""
    from machine import describe, write

    deadline = time.monotonic() + options.seconds - 10
    options.work.mkdir(parents=True, exist_ok=True)
    about, rows = describe(), list[dict[str, Any]]()
    for model in MODELS[options.suite]:
        lacks, first = short_of(model, options.work, options.device), None
        for way in ways(options.flavour, short=options.suite != "ladder"):
            left = deadline - time.monotonic()
            row: dict[str, Any] = {"model": model.name, "depth": model.depth, "name": way.name}
            if lacks or left < 10:
                row["not_run_here"] = lacks or "no time was left"
            else:
                row |= row_of(way, model, left, options)
            first = first or row.get("ms_per_step")
            if first and "ms_per_step" in row:
                row["times_as_fast"] = round(first / row["ms_per_step"], 3)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
            found = {
                **about,
                "steps": STEPS,
                "rounds": ROUNDS,
                "published_ms_per_step": PUBLISHED,
                "rows": rows,
            }
            if options.suite == "blocks":
                found["all_blocks_ms_per_step"] = by_blocks(rows)
            write(options.out / f"steps-{options.suite}.json", found)
    return int(not any("ms_per_step" in row and not row["name"].startswith("diffusers") for row in rows))


def main() -> int:
    """Measure, or run one row and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=MODELS)
    parser.add_argument("--flavour", default="tensorrt-rtx", choices=["tensorrt", "tensorrt-rtx"])
    parser.add_argument("--device", default="cuda", help="cpu: only to try this script")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is None:
        return measure(options)
    job = json.loads(options.one)
    depth = job["model"].pop("depth")
    model = Model(**job["model"], depth=tuple(depth) if depth else None)
    print(json.dumps(one(Way(**job["way"]), model, options.work, options.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
