"""FLUX's transformer on a CPU: ours on two backends beside PyTorch's and OpenVINO's own ways.

    python benchmarks/cpu.py [--sizes flux-nano,mid] [--rounds 7] [--no-compile] [--out benchmarks/results]

Everything runs in one process and in turns, from the same noise and weights; a ratio is the median over
rounds of the ratio within a round. Beside every time stands the distance of the final latents to diffusers in
float32. The machine's matrix rate takes its turn with the rest, so that a share is of the same minutes; the
operations it is of are those of diffusers, every step the whole transformer. A CPU with AMX has a results file
of its own, `cpu-amx.json`: which way is the fastest is another question there.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from machine import describe, write
from op_profile import onnxruntime_ops, openvino_ops
from torch.utils.flop_counter import FlopCounterMode
from turns import summary, take_turns, times_as_fast
from walk import SIZES, Size, Task, Walk, checkpoint, distance, in_openvino, in_torch, ours, plain, tensors

from flux_trt.exporter.build import build
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.cpus import features

STAGES = ("conditioner", "denoiser")
EXACT = "diffusers, fp32"
PEERS = (EXACT, "diffusers, torch.compile, fp32", "OpenVINO's conversion of diffusers, fp32")
OURS = ("ours, onnxruntime, fp32", "ours, openvino, fp32")
BF16_PEERS = ("diffusers, bf16", "OpenVINO's conversion of diffusers, bf16")
OURS_BF16 = "ours, openvino, bf16"
RATES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = 2048


def ways(
    size: Size, source: Path, folder: Path, compile_too: bool
) -> tuple[Task, dict[str, Walk], dict[str, Path]]:
    """Every way to walk at a size, by name; and the bundles by precision."""
    task = Task.of(size, source)
    bundles = {precision: folder / f"{size.name}-{precision}" for precision in ("fp32", "bf16")}
    for precision, bundle in bundles.items():
        build(str(source), bundle, precision=precision, stages=STAGES)
    module = plain(source)
    found = {EXACT: in_torch(module, task)}
    if compile_too:
        found[PEERS[1]] = in_torch(torch.compile(module), task)
    found["diffusers, bf16"] = in_torch(plain(source, torch.bfloat16), task, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every Python branch
        converted = ov.convert_model(module, example_input=tensors(task))
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = ov.Core().compile_model(converted, "CPU", settings)
        found[f"OpenVINO's conversion of diffusers, {precision}"] = in_openvino(compiled, task)
    for backend in ("onnxruntime", "openvino"):
        found[f"ours, {backend}, fp32"] = ours(bundles["fp32"], connect(backend, "cpu"), task)
    found[OURS_BF16] = ours(bundles["bf16"], connect("openvino", "cpu"), task)
    return task, found, bundles


def multiply(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A large matrix product, as fast as the machine's library makes it."""
    left, right = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    return functools.partial(torch.mm, left, right)


def flops(size: Size, source: Path, task: Task) -> int:
    """Of a walk as diffusers does it: every step runs the whole transformer."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(source)(*tensors(task))
    return counter.get_total_flops() * size.steps


def measure(size: Size, rounds: int, folder: Path, compile_too: bool) -> dict[str, Any]:
    """All of one size."""
    source = checkpoint(size, folder / size.name)
    task, walks, bundles = ways(size, source, folder, compile_too)
    exact = walks[EXACT]()
    apart = {name: distance(walk(), exact) for name, walk in walks.items()}
    rates = {f"matrix product, {name}": multiply(dtype) for name, dtype in RATES.items()}
    seconds = take_turns({**walks, **rates}, rounds)
    work = flops(size, source, task)
    product = {name: 2 * MATRIX**3 / summary(seconds[f"matrix product, {name}"])["median"] for name in RATES}
    rows = []
    for name in walks:
        precision = name.rpartition(", ")[2]
        median = summary(seconds[name])["median"]
        rows.append(
            {
                "name": name,
                "seconds": summary(seconds[name]),
                "ms_per_step": round(1000 * median / size.steps, 2),
                "times_as_fast_as_diffusers": times_as_fast(seconds, name, EXACT),
                "share_of_matrix_rate": round(work / median / product[precision], 3),
                **apart[name],
            }
        )
    best = {precision: _best(rows, precision) for precision in RATES}
    against = {
        f"{best[precision]} over {peer}": times_as_fast(seconds, best[precision], peer)
        for precision, peers in (("fp32", PEERS), ("bf16", BF16_PEERS))
        for peer in peers
        if peer in walks
    }
    return {
        "tokens": size.tokens,
        "parameters": sum(each.numel() for each in plain(source).parameters()),
        "steps": size.steps,
        "gflop_per_step": round(work / size.steps / 1e9, 3),
        "matrix_rate_gflops": {name: round(rate / 1e9, 1) for name, rate in product.items()},
        "rows": rows,
        "best_of_ours": best,
        "times_as_fast": against,
        "profile": profiles(task, bundles),
    }


def _best(rows: list[dict[str, Any]], precision: str) -> str:
    mine = [row for row in rows if row["name"].startswith("ours") and row["name"].endswith(precision)]
    return str(min(mine, key=lambda row: row["seconds"]["median"])["name"])


def profiles(task: Task, bundles: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Milliseconds of a denoiser step by type of operator, the largest first; apart from the timing."""
    rng = np.random.default_rng(0)
    return {
        OURS[0]: onnxruntime_ops(bundles["fp32"], task, rng),
        OURS[1]: openvino_ops(bundles["fp32"], task, rng),
        OURS_BF16: openvino_ops(bundles["bf16"], task, rng),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="flux-nano,mid")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sizes.split(","):
            print(name, file=sys.stderr, flush=True)
            found[name] = measure(SIZES[name], options.rounds, Path(folder), not options.no_compile)
    settings = {"rounds": options.rounds, "threads": torch.get_num_threads()}
    name = "cpu-amx.json" if "amx_bf16" in (features() or ()) else "cpu.json"
    write(options.out / name, {**describe(), "settings": settings, "sizes": found})


if __name__ == "__main__":
    main()
