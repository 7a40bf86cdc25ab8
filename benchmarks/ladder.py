"""What each idea of the export brings: one rung per change, each measured against the rung before.

    python benchmarks/ladder.py [--sizes flux-nano,mid] [--rounds 7] [--out benchmarks/results]

The first rung is a plain `torch.onnx.export` of diffusers' transformer, with the Euler step on the host. The
rungs on a CPU take turns; `gain` is the median over rounds of the time of the rung before over this one's, so
a rung below 1 has cost time and says so. Quality is the distance of the final latents to those of the first.
A rung that cannot run on this machine is listed with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
from machine import describe, write
from torch import Tensor, nn
from turns import summary, take_turns, times_as_fast
from walk import SIZES, Floats, Size, Task, Walk, checkpoint, distance, ours, plain, tensors

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.engines.profile import Shapes
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.rope import rotate
from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import FluxTrtError

STAGES = ("conditioner", "denoiser")
OPSET = 20  # the last one without the fused operators of opset 23
GPU = (
    ("the same on a GPU: onnxruntime, fp16", "fp16", "onnxruntime", False),
    ("all steps in one CUDA graph", "fp16", "onnxruntime", True),
    ("TensorRT, fp16", "fp16", "tensorrt", True),
    ("TensorRT, fp8", "fp8", "tensorrt", True),
)


class Tables(nn.Module):
    """cos and sin of every token, in the graph and in float64, as diffusers' FluxPosEmbed has them."""

    def __init__(self, axes: Sequence[int], theta: float) -> None:
        super().__init__()
        self.axes, self.theta = list(axes), theta

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3] -> two of [N, E / 2]."""
        angles = []
        for axis, width in enumerate(self.axes):
            powers = torch.arange(0, width, 2, dtype=torch.float64) / width
            angles.append(torch.outer(ids[:, axis].double(), 1.0 / self.theta**powers))
        joint = torch.cat(angles, dim=-1)
        return joint.cos().float(), joint.sin().float()


class Velocity(nn.Module):
    """The denoiser without its Euler step; with tables of its own, or with given ones."""

    def __init__(self, denoiser: nn.Module, tables: Tables | None) -> None:
        super().__init__()
        self.denoiser, self.tables = denoiser, tables

    def forward(self, latents: Tensor, context: Tensor, modulation: Tensor, *where: Tensor) -> Tensor:
        """`where` is the positions, or cos and sin."""
        cos, sin = self.tables(*where) if self.tables else where
        return self.denoiser(latents, latents[..., :1], context, modulation, cos, sin)[1]


class Step(nn.Module):
    """The denoiser's Euler step alone."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, *inputs: Tensor) -> Tensor:
        """The next latents."""
        return self.denoiser(*inputs)[0]


def decomposed(
    qkv: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor, num_heads: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`qk_norm_rope` in small operators, as an export without opset 23 has it."""
    E = q_scale.shape[0]
    heads = qkv[..., : 2 * num_heads * E].unflatten(-1, (2, num_heads, E)).permute(2, 0, 3, 1, 4)
    normed = (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * scale
        for x, scale in zip(heads, (q_scale, k_scale), strict=True)
    )
    q, k = (rotate(x, cos, sin) for x in normed)
    return q, k


def export(module: nn.Module, example: tuple[Any, ...], path: Path) -> Callable[..., Floats]:
    """A plain export, run by onnxruntime; the last step's arguments become the last output's value."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with mock.patch("flux_trt.exporter.families.flux1.model.qk_norm_rope", decomposed):
            torch.onnx.export(module, example, path, dynamo=True, opset_version=OPSET, verbose=False)
    options = onnxruntime.SessionOptions()  # threads as ours have them, so that rungs differ in graphs only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*values: Any) -> Floats:
        return session.run(None, dict(zip(names, map(np.ascontiguousarray, values), strict=True)))[0]

    return run


def denoiser(source: Path) -> nn.Module:
    """The export's denoiser with the checkpoint's weights."""
    (stage,) = make_stages(recognise(open_checkpoint(str(source))), "fp32", ["denoiser"])
    module = stage.build()
    module.load_state_dict({name: stage.recipes[name].load(stage.tensors) for name in module.state_dict()})
    return module.eval()


def exported(source: Path, task: Task, folder: Path, fused: Path) -> dict[str, Walk]:
    """The rungs that differ in their graphs, all on onnxruntime."""
    naive = export(plain(source), tensors(task), folder / "naive.onnx")

    def whole(now: Floats, step: int) -> Floats:
        return naive(*task.diffusers_inputs(now, step).values())

    backend = connect("onnxruntime", "cpu")
    found = manifest.read(fused)
    conditioner = backend.load(fused / "conditioner.onnx", "conditioner", found.stages["conditioner"])
    wanted = {"timesteps": task.levels[:-1].copy(), "pooled": task.pooled, "text": task.text}
    if found.takes("guidance"):
        wanted["guidance"] = task.guidance
    axes, theta = found.model.positions.axes, found.model.positions.theta
    cos, sin = rope_tables(task.positions, axes, theta)
    strides = np.diff(task.levels)

    def conditioned() -> tuple[Floats, Floats]:
        made = conditioner.run(wanted)
        return made["modulation"].numpy(), made["context"].numpy()

    modulation, context = conditioned()
    first = [torch.from_numpy(np.array(each)) for each in (task.noise, context, modulation[0])]
    ids, tables = torch.from_numpy(task.positions), [torch.from_numpy(each) for each in (cos, sin)]
    module = denoiser(source)
    inside = export(Velocity(module, Tables(axes, theta)), (*first, ids), folder / "split.onnx")
    outside = export(Velocity(module, None), (*first, *tables), folder / "hoisted.onnx")
    dt = torch.full((*task.noise.shape[:2], 1), float(strides[0]))
    stepping = export(Step(module), (first[0], dt, *first[1:], *tables), folder / "euler.onnx")

    def split(run: Callable[..., Floats], *where: Any) -> Walk:
        def walk() -> Floats:
            rows, context = conditioned()
            return task.euler(lambda now, step: run(now, context, rows[step], *where))

        return walk

    def euler() -> Floats:
        rows, context = conditioned()
        now = task.noise
        for step, stride in enumerate(strides):
            now = stepping(now, np.full(dt.shape, stride, np.float32), context, rows[step], cos, sin)
        return now

    return {
        "naive export of diffusers, onnxruntime fp32": lambda: task.euler(whole),
        "split conditioner: once per picture": split(inside, task.positions),
        "rotation tables hoisted out of the graph": split(outside, cos, sin),
        "Euler step in the graph": euler,
    }


def measure(size: Size, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """All rungs at one size."""
    source, exports = checkpoint(size, folder / size.name), folder / f"{size.name}-exports"
    exports.mkdir()
    task = Task.of(size, source)
    bundles = {precision: folder / f"{size.name}-{precision}" for precision in ("fp32", "bf16")}
    for precision, bundle in bundles.items():
        build(str(source), bundle, precision=precision, stages=STAGES)
    rungs = exported(source, task, exports, bundles["fp32"])
    rungs["opset 23: fused norms, rotation and attention; bound by pointer"] = ours(
        bundles["fp32"], connect("onnxruntime", "cpu"), task
    )
    rungs["openvino, fp32"] = ours(bundles["fp32"], connect("openvino", "cpu"), task)
    rungs["openvino, bf16"] = ours(bundles["bf16"], connect("openvino", "cpu"), task)
    names = list(rungs)
    exact = rungs[names[0]]()
    quality = {name: distance(walk(), exact) for name, walk in rungs.items()}
    seconds = take_turns(rungs, rounds)
    rows: list[dict[str, Any]] = []
    for before, name in zip([None, *names], names, strict=False):
        row: dict[str, Any] = {"name": name, "seconds": summary(seconds[name])}
        row["ms_per_step"] = round(1000 * row["seconds"]["median"] / size.steps, 2)
        if before:
            gain = times_as_fast(seconds, name, before)
            row |= {
                "gain": gain,
                "gains": gain > 1,
                "gain_over_naive": times_as_fast(seconds, name, names[0]),
            }
        rows.append(row | quality[name])
    return rows + on_a_gpu(size, source, task, folder, rounds, exact)


def on_a_gpu(
    size: Size, source: Path, task: Task, folder: Path, rounds: int, exact: Floats
) -> list[dict[str, Any]]:
    """The rungs of a GPU, one after the other. Without one, each says why it was not run."""
    rows: list[dict[str, Any]] = []
    for name, precision, backend, record in GPU:
        try:
            connect("onnxruntime", "cuda")  # is there a GPU at all, before anything is built
            bundle = folder / f"{size.name}-{precision}"
            build(str(source), bundle, precision=precision, stages=STAGES)
            if backend == "tensorrt":
                side = size.side * manifest.read(bundle).model.patch
                build_engines(bundle, Options(flavour="tensorrt"), Shapes(((side, side),)), STAGES)
            connected = connect(backend, "cuda", Bundle.open(bundle, check=False))
            walk = ours(bundle, connected, task, record)
            seconds = take_turns({name: walk}, rounds, warmup=2)[name]
            rows.append({"name": name, "seconds": summary(seconds), **distance(walk(), exact)})
        except FluxTrtError as fault:
            rows.append({"name": name, "not_run_here": str(fault)})
    return rows


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="flux-nano,mid")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sizes.split(","):
            print(name, file=sys.stderr, flush=True)
            size = SIZES[name]
            rungs = measure(size, options.rounds, Path(folder))
            found[name] = {"tokens": size.tokens, "steps": size.steps, "rungs": rungs}
    settings = {"rounds": options.rounds, "threads": torch.get_num_threads()}
    write(options.out / "ladder.json", {**describe(), "settings": settings, "sizes": found})


if __name__ == "__main__":
    main()
