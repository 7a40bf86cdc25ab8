"""Three TensorRT-RTX engines of one denoiser: plain, with LoRA branches, and with its weights as inputs.

    python benchmarks/lora_engines.py BUNDLE --sm 8.9 [--size 1024x1024] [--rounds 20] [--out DIR]

BUNDLE is one of `flux-export build --lora-rank`, of any precision. Weights as inputs are an experiment: a
LoRA is merged into them on the device, so that a step costs nothing more, and the plain weights come back by
being copied again. Of an fp8 bundle the scales stay constants of the graph, without which the builder leaves
FP8.

All three are built here, without a GPU; plans and seconds are compared. Where there is a GPU of --sm each is
run in turns, and a step's milliseconds, and those of copying what a swap copies, are written too.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorrt_rtx as trt
from machine import describe, write
from turns import summary, take_turns

from flux_trt.exporter.engines.profile import Shapes, profiles, shapes_of
from flux_trt.runtime.backends.device import DeviceBuffer, Gpu
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER
from flux_trt.runtime.errors import BackendError

PLAIN, BRANCHES, INPUTS = "plain", "LoRA branches", "weights as inputs"
STEPS = 10
"""That are queued before the GPU is waited for."""
BYTES = {trt.float32: 4, trt.float16: 2, trt.bfloat16: 2, trt.fp8: 1, trt.int64: 8}


def with_inputs(graph: Path, changed: set[str], out: Path) -> Path:
    """The graph, with these parameters as inputs; all other weights are used where they are."""
    model = onnx.load(graph, load_external_data=False)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(value)
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    out.write_bytes(model.SerializeToString())
    return out


def built(graph: Path, shapes: dict[str, list[tuple[int, ...]]], sm: str) -> tuple[bytes, dict[str, Any]]:
    """A plan, and what is known of it.

    Args:
        graph: beside its weights.
        shapes: of inputs with dims that vary: least, tuned for, largest.
        sm: compute capability, as in "8.9".
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise SystemExit(f"{graph}: {parser.get_error(0)}")
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm.replace('.', '')}"), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        least, tuned, most = shapes.get(tensor.name, [tuple(tensor.shape)] * 3)
        profile.set_shape(tensor.name, least, tuned, most)
    config.add_optimization_profile(profile)
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit(f"{graph}: the builder gave no plan")
    seconds = round(time.perf_counter() - started, 1)
    return bytes(plan), {"plan_mb": round(plan.nbytes / 1e6, 1), "build_seconds": seconds}


class Run:
    """An engine, bound to random inputs of the tuned-for shapes."""

    def __init__(self, gpu: Gpu, plan: bytes, tuned: dict[str, tuple[int, ...]], swapped: set[str]) -> None:
        self._gpu = gpu
        self._engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._swapped: list[tuple[DeviceBuffer, np.ndarray]] = []
        self._held = []
        draw = np.random.default_rng(0)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            self._context.set_input_shape(name, tuned.get(name, tuple(self._engine.get_tensor_shape(name))))
        for name in names:
            shape, kind = tuple(self._context.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            buffer = gpu.empty((math.prod(shape) * BYTES[kind],), np.uint8)
            values = np.zeros(buffer.shape, np.uint8)
            if name in inputs and kind == trt.float32:
                values = draw.standard_normal(shape, np.float32).reshape(-1).view(np.uint8)
            gpu.write(buffer, values)
            self._context.set_tensor_address(name, buffer.pointer)
            self._held.append(buffer)
            if name in swapped:
                self._swapped.append((buffer, values))

    def step(self) -> None:
        """Some steps, and the wait for them."""
        for _ in range(STEPS):
            self._context.execute_async_v3(self._gpu.stream)
        self._gpu.synchronize()

    def swap(self) -> None:
        """Copy all that another LoRA changes."""
        for buffer, values in self._swapped:
            self._gpu.write(buffer, values)
        self._gpu.synchronize()


def main() -> None:
    """Build, run where that can be, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sm", default="8.9")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, check=False)
    takes = bundle.manifest.adapters
    if takes is None:
        raise SystemExit(f"{options.bundle} has no branches; build it with --lora-rank")
    width, height = map(int, options.size.split("x"))
    wanted = Shapes(((width, height),), wide=False, pairs=False)
    branches = [each for each in takes.branches if each.stage == DENOISER]
    weights = {weight for each in branches for weight in each.weights}
    swapped = {
        PLAIN: set[str](),
        BRANCHES: {name for each in branches for name in (each.down, each.up)},
        INPUTS: weights,
    }
    try:
        gpu = Gpu()
    except BackendError as fault:
        print(f"no GPU here, so nothing is timed: {fault}")
        gpu = None
    rows, runs = {}, {}
    plain, branched = bundle.stage(DENOISER), takes.stages[DENOISER]
    experiment = bundle.root / f"{DENOISER}-inputs.onnx"  # beside its weights, as external data has to be
    try:
        ways = {
            PLAIN: (bundle.root / plain.graph, DENOISER),
            BRANCHES: (bundle.root / bundle.stage(branched).graph, branched),
            INPUTS: (with_inputs(bundle.root / plain.graph, weights, experiment), DENOISER),
        }
        for way, (graph, name) in ways.items():
            (profile,) = profiles(bundle.manifest, name, wanted)
            shapes = {each.name: list(shapes_of(profile, each.dims)) for each in bundle.stage(name).inputs}
            plan, rows[way] = built(graph, shapes, options.sm)
            print(way, rows[way], flush=True)
            if gpu is not None and gpu.capability == options.sm:
                tuned = {each: sides[1] for each, sides in shapes.items()}
                runs[way] = Run(gpu, plan, tuned, swapped[way])
    finally:
        experiment.unlink(missing_ok=True)
    if runs:
        steps = take_turns({way: run.step for way, run in runs.items()}, options.rounds, warmup=3)
        swaps = take_turns({way: run.swap for way, run in runs.items() if way != PLAIN}, options.rounds)
        for way, seconds in steps.items():
            rows[way]["step_ms"] = {
                name: round(1e3 * each / STEPS, 3) for name, each in summary(seconds).items()
            }
        for way, seconds in swaps.items():
            rows[way]["swap_ms"] = {name: round(1e3 * each, 2) for name, each in summary(seconds).items()}
    settings = {"sm": options.sm, "size": options.size, "rank": takes.rank, "precision": plain.precision}
    found = {**describe(), "tensorrt_rtx": trt.__version__, "settings": settings, "ways": rows}
    write(options.out / "lora_engines.json", found)


if __name__ == "__main__":
    main()
