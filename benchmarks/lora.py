"""What LoRAs at run time cost on a CPU: a step with branches beside a plain one, and a swap beside merging.

    PYTHONPATH=examples/flux-nano python benchmarks/lora.py [--sizes flux-nano,mid] [--out RESULTS]

One bundle of each size, in fp32. The denoiser runs plainly, with branches of zeros, and with LoRAs of several
ranks as trainers write them, q, k and v apart, on both backends, in turns in one process. Times are of the
CPU, on one thread, so that others on the machine cost little of their truth; a ratio is the median over
rounds of the ratio within a round, and `load_average` says how busy the machine was at the start. A swap is
what a pipeline does when another LoRA is asked for: reading the file into factors, and putting those where
the graphs take them. Merging is a second build of the two stages.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write
from safetensors.torch import save_file
from turns import Seconds, summary, times_as_fast
from walk import SIZES, Size, checkpoint

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.lora.chosen import chosen
from flux_trt.runtime.lora.factors import read
from flux_trt.runtime.sampling.adapted import Slots

BACKENDS = ("onnxruntime", "openvino")
STAGES = ("conditioner", DENOISER)
RANKS = (4, 16, 64)
MOST = max(RANKS)
SIZE = {each.name: replace(each, side=16, text=64) if each.dims else each for each in SIZES.values()}
"""Fewer tokens than where whole walks are timed: all that is compared grows with them alike."""
ZEROS = "branches of zeros, rank 1"


def written(source: Path, rank: int, path: Path) -> Path:
    """A random LoRA for all linear layers of a checkpoint, in diffusers' form, bf16."""
    part = open_checkpoint(str(source)).parts["transformer"]
    draw, state = torch.Generator().manual_seed(rank), {}
    for name, info in part.tensors.items():
        if name.endswith(".weight") and len(info.shape) == 2:
            module, (out, into) = f"transformer.{name.removesuffix('.weight')}", info.shape
            for end, shape in (("A", (rank, into)), ("B", (out, rank))):
                values = 0.02 * torch.randn(shape, generator=draw)
                state[f"{module}.lora_{end}.weight"] = values.to(torch.bfloat16)
    save_file(state, path)
    return path


def inputs(stage: Stage, size: Size, rank: int) -> dict[str, np.ndarray]:
    """Seeded values of all inputs; branches are zeros."""
    dims = {"batch": 1, "tokens": size.side**2, "text": size.text, "sequence": size.tokens}
    draw, found = np.random.default_rng(0), {}
    for each in stage.inputs:
        shape = [dim if isinstance(dim, int) else dims.get(dim, rank) for dim in each.dims]
        branch = any(isinstance(dim, str) and dim not in dims for dim in each.dims)
        found[each.name] = np.zeros(shape, np.float32) if branch else draw.standard_normal(shape, np.float32)
    return found


def steps(
    bundle: Bundle, backend: Backend, size: Size, loras: dict[str, Path]
) -> dict[str, Callable[[], Any]]:
    """Every way to do a step on a backend."""
    takes = bundle.manifest.adapters
    assert takes is not None
    stages = {name: bundle.stage(name) for name in (DENOISER, takes.stages[DENOISER])}
    graphs = {name: backend.load(bundle.root / each.graph, name, each) for name, each in stages.items()}
    plain, branched = stages
    own = inputs(stages[plain], size, 1)
    into = backend.upload(np.empty_like(own["latents"]))
    held = {name: backend.upload(value) for name, value in own.items()}
    zeros = inputs(stages[branched], size, 1)
    none = {name: backend.upload(value) for name, value in zeros.items() if name not in own}

    def step(name: str, more: dict[str, Any]) -> Callable[[], Any]:
        return functools.partial(graphs[name].run, {**held, **more}, {"next_latents": into})

    found = {"plain": step(plain, {}), ZEROS: step(branched, none)}
    for name, path in loras.items():
        arrays = read(bundle, chosen(path) or ()).arrays[DENOISER]
        found[name] = step(branched, {each: backend.upload(value) for each, value in arrays.items()})
    return found


def swaps(bundle: Bundle, backend: Backend, loras: dict[str, Path]) -> dict[str, Callable[[], Any]]:
    """Reading each LoRA anew and bringing it to the backend."""

    def swap(path: Path) -> None:
        with Slots(backend, bundle.manifest.adapters).lent(read(bundle, chosen(path) or ())):
            pass

    return {name: functools.partial(swap, path) for name, path in loras.items()}


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> Seconds:
    """CPU seconds of every way in every round, after one that is not counted."""
    found: Seconds = {name: [] for name in ways}
    for index in range(rounds + 1):
        for name in ways if index % 2 else reversed(ways):
            started = time.process_time()
            ways[name]()
            found[name] += [time.process_time() - started] * bool(index)
    return found


def measure(size: Size, rounds: int, folder: Path) -> dict[str, Any]:
    """All of one size."""
    source, root = checkpoint(size, folder / size.name), folder / f"{size.name}-bundle"
    build(str(source), root, stages=STAGES, lora_rank=MOST)
    bundle = Bundle.open(root, check=False)
    loras = {
        f"rank {rank}": written(source, rank, folder / f"{size.name}-{rank}.safetensors") for rank in RANKS
    }
    tensors = open_checkpoint(str(source)).parts["transformer"].tensors
    rows = []
    for name in BACKENDS:
        backend = connect(name, "cpu", threads=1)
        ways = steps(bundle, backend, size, loras)
        seconds = in_turns(ways, rounds)
        rows += [
            {
                "backend": name,
                "way": way,
                "seconds": summary(seconds[way]),
                "times_as_long_as_plain": times_as_fast(seconds, "plain", way),
            }
            for way in ways
        ]
    swapped = in_turns(swaps(bundle, connect(BACKENDS[0], "cpu", threads=1), loras), rounds)
    started = time.process_time()
    build(str(source), folder / f"{size.name}-merged", stages=STAGES, lora=[str(loras["rank 16"])])
    return {
        "tokens": size.tokens,
        "parameters": sum(int(np.prod(each.shape)) for each in tensors.values()),
        "rows": rows,
        "swap_seconds": {name: summary(each) for name, each in swapped.items()},
        "lora_mb": {name: round(path.stat().st_size / 1e6, 2) for name, path in loras.items()},
        "merge_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="flux-nano,mid")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options, load = parser.parse_args(), round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: measure(SIZE[name], options.rounds, Path(folder)) for name in options.sizes.split(",")}
    found = {**describe(), "load_average": load, "rounds": options.rounds, "sizes": sizes}
    write(options.out / "lora.json", found)


if __name__ == "__main__":
    main()
