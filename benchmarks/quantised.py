"""What each quantised precision costs in quality, and what it makes of an engine: fp8's kin side by side.

    python benchmarks/quantised.py [--prompts 64] [--only pictures|engines|cpu] [--work DIR] [--out DIR]

Pictures: flux-nano, from the same seeds as fp32, all rows with one calibration; what is not quantised is in
fp32, so that what is measured is the loss by quantisation alone. All that is quantised runs in torch, with
the numbers and the rounding of exporter/quantise: what the graphs compute, to float32's precision.
Engines: one block of each kind at FLUX.1's width, 1024x1024 pixels, built by TensorRT-RTX without a GPU, for
the oldest GPU that a precision is for; sizes of the plans, and the types of products and weights.
CPU: a transformer of 56 M at 1152 tokens, in turns with fp32 in one process; memory in a process for each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counted import made_up, shapes
from fp8 import BATCH, GUIDANCE, NANO, SEED, SIZE, STEPS, distances, losses
from fp8 import Row as Painted
from full_size_engines import write_random
from machine import describe, write
from turns import summary, take_turns, times_as_fast
from walk import SIZES, Task, checkpoint, ours

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.engines.count import count
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.engines.profile import Shapes
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.quantise.calibration import Calibration, read
from flux_trt.exporter.quantise.chosen import formats_of
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.format import Format
from flux_trt.exporter.quantise.formats import FORMATS
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.exporter.verify.eager import Eager
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import PLAN
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.pipeline import Pipeline

MID = SIZES["mid"]
ON_CPU: tuple[Precision, ...] = ("fp32", "int8", "w8a16", "w4a16")
NAME, CALIBRATED = "quantised.json", 64
PAINTED = (
    Painted("fp32", "precision", "fp32"),
    Painted("w8a16", "precision", "w8a16"),
    Painted("w4a16", "precision", "w4a16"),
    Painted("nvfp4", "precision", "nvfp4"),
    Painted("int8", "precision", "int8"),
    Painted("nvfp4, single blocks in fp8", "ablation", "nvfp4", fp8={"kept": ("single_blocks.",)}),
    Painted("nvfp4, double blocks in fp8", "ablation", "nvfp4", fp8={"kept": ("double_blocks.",)}),
    Painted("fp8", "precision"),
    Painted("int8, T5 too", "ablation", "int8", stages={"t5": "int8"}),
    Painted("w4a16, T5 too", "ablation", "w4a16", stages={"t5": "w4a16"}),
    Painted("nvfp4, T5 too", "ablation", "nvfp4", stages={"t5": "nvfp4"}),
)


@dataclass(frozen=True)
class Built:
    """A denoiser that an engine is built of."""

    model: str
    precision: Precision
    base: Precision | None
    sm: str

    @property
    def name(self) -> str:
        """In the file."""
        on = f" on {self.base}" if self.base else ""
        return f"{self.model}, {self.precision}{on}, sm {self.sm}"


KINDS: tuple[tuple[Precision, Precision | None, str], ...] = (
    ("nvfp4", "bf16", "12.0"),
    ("w4a16", "fp16", "8.0"),
    ("int8", "fp16", "7.5"),
    ("w8a16", "fp16", "7.5"),
    ("fp8", "bf16", "8.9"),
    ("fp16", None, "7.5"),
)
WIDE = "FLUX.1-dev, 1+1 blocks"
BUILT = tuple(Built(WIDE, *kind) for kind in KINDS)


class Simulated:
    """onnxruntime, and what is quantised in torch, which rounds as the graphs do: tests compare them."""

    def __init__(self, row: Painted, ranges: Calibration) -> None:
        self._row, self._ranges = row, ranges
        self._host, self._model = connect("onnxruntime", "cpu"), recognise(open_checkpoint(str(NANO)))
        self._torch = Eager(self._model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def load(self, path: Path, name: str, stage: manifest.Stage) -> Any:
        """A stage of the fp32 bundle; its large layers as the row's precision keeps them."""
        if name not in ("t5", "denoiser") or self._row.precision == "fp32":
            return self._host.load(path, name, stage)
        chosen = self._row.stages
        (traced,) = make_stages(self._model, self._row.precision, [name], chosen, "fp32")
        graph = self._torch.load(path, name, stage)
        for layer, precision in formats_of(traced).items():
            kept = precision if not layer.startswith(self._row.fp8.get("kept", ("-",))) else "fp8"
            self._quantise(graph._module.get_submodule(layer), FORMATS[kept], name, layer)
        return OnHost(graph, self._host)

    def _quantise(self, layer: Any, format_: Format, stage: str, name: str) -> None:
        parts = format_.weights.encode(layer.weight.data, torch.float32, True)
        layer.weight.data = format_.weights.decode(parts, torch.float32)
        if format_.inputs is not None:
            scale = format_.inputs.scale_of(self._ranges.layers[stage][name].amax, torch.float32)
            inputs = format_.inputs
            layer.register_forward_pre_hook(lambda _, args: (inputs.rounded(args[0], scale), *args[1:]))


class OnHost:
    """A graph of torch among those of onnxruntime."""

    def __init__(self, graph: Any, host: Any) -> None:
        self._graph, self._host = graph, host

    def run(self, inputs: Any, into: Any = None) -> Any:
        """See `protocols.Graph.run`."""
        arrays = {
            name: each if isinstance(each, np.ndarray) else each.numpy() for name, each in inputs.items()
        }
        found = {name: each.numpy() for name, each in self._graph.run(arrays).items()}
        if into is None:
            return {name: self._host.upload(each) for name, each in found.items()}
        for name, target in into.items():
            target.fill(self._host.upload(np.ascontiguousarray(found[name])))
        return dict(into)

    def close(self) -> None:
        """Let the weights go."""
        self._graph.close()


def pictures(prompts: int, folder: Path, given: Path | None, bundle: Path | None) -> Iterator[dict[str, Any]]:
    """A row for each way: its score, and its distance to fp32."""
    from nano.checker import Rates, check
    from nano.scene import sample_split, test_prompts

    asked, rng = test_prompts(prompts), np.random.default_rng(SEED)
    ranges = given or folder / "calibration.json"
    if given is None:
        captions = [sample_split(rng, held_out=False).caption for _ in range(CALIBRATED)]
        (folder / "prompts.txt").write_text("\n".join(captions), encoding="utf-8")
        asked_for = {"size": SIZE, "steps": STEPS, "guidance": GUIDANCE}
        calibrate_checkpoint(str(NANO), ranges, prompts=folder / "prompts.txt", **asked_for)
    if bundle is None:
        bundle = folder / "fp32"
        build(str(NANO), bundle)
    exact: np.ndarray | None = None
    for row in PAINTED:
        with Pipeline(Bundle.open(bundle), Simulated(row, read(ranges))) as pipeline:  # type: ignore[arg-type]
            images = pipeline.generate(
                asked, size=SIZE, steps=STEPS, guidance=GUIDANCE, seed=SEED, batch=BATCH
            )
        found = np.stack([np.asarray(image) for image in images])
        exact = found if exact is None else exact
        theirs, mine = (list(map(check, each, asked)) for each in (exact, found))
        told = {"name": row.name, "group": row.group, "score": dataclasses.asdict(Rates.of(mine))}
        told |= losses(theirs, mine)
        yield told | ({} if row.name == "fp32" else distances(found, exact))


def engine(row: Built, folder: Path) -> dict[str, Any]:
    """What an engine is made of, and the size of its plan."""
    file, size = folder / "model.safetensors", (1024, 1024)
    if not file.exists():
        write_random(file, shapes("FLUX.1-dev", (1, 1)))
    source = str(file)
    calibration, bundle = folder / f"{row.model}.json", folder / row.name
    if not calibration.exists():
        made_up(source, calibration)
    fp8 = Fp8(base=row.base or "fp32", calibration=calibration)
    build(source, bundle, precision=row.precision, stages=["denoiser"], fp8=fp8)
    counts = dict(count(bundle, ["denoiser"], row.sm, size))["denoiser"]
    options = Options(flavour="tensorrt-rtx", capabilities=(row.sm,))
    shapes_of = Shapes((size,), wide=False, pairs=False)
    (plan, *_) = build_engines(bundle, options, shapes_of, ["denoiser"])
    megabytes = (plan / PLAN).stat().st_size / 1e6
    shutil.rmtree(bundle)
    return {"sm": row.sm, "plan_mb": round(megabytes, 2), **counts.model_dump(mode="json")}


def cpu(folder: Path, rounds: int) -> dict[str, Any]:
    """Each precision beside fp32 on both backends."""
    source = checkpoint(MID, folder / MID.name)
    calibration = folder / "mid.json"
    made_up(str(source), calibration)
    bundles = {precision: folder / f"mid-{precision}" for precision in ON_CPU}
    for precision, bundle in bundles.items():
        fp8 = Fp8(base="fp32", calibration=calibration)
        stages = ["conditioner", "denoiser"]
        build(str(source), bundle, precision=precision, stages=stages, fp8=fp8)
    found, task = {}, Task.of(MID, source)
    for backend in ("onnxruntime", "openvino"):
        used = connect(backend, "cpu")
        walks = {precision: ours(bundle, used, task) for precision, bundle in bundles.items()}
        seconds = take_turns(walks, rounds, patience=0)
        memory = {precision: _memory(bundle, backend) for precision, bundle in bundles.items()}
        for precision in ON_CPU[1:]:
            found[f"{precision}, {backend}"] = {
                "times_as_fast_as_fp32": times_as_fast(seconds, precision, "fp32"),
                "ms_per_step": round(1000 * summary(seconds[precision])["median"] / MID.steps, 1),
                "ms_per_step_fp32": round(1000 * summary(seconds["fp32"])["median"] / MID.steps, 1),
                "memory_mb": memory[precision],
                "memory_mb_fp32": memory["fp32"],
            }
    return found


def _memory(bundle: Path, backend: str) -> float:
    """Megabytes that a process gains by the denoiser, loaded and run."""
    command = [sys.executable, __file__, "--memory", str(bundle), backend]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def say_memory(bundle: Path, backend: str) -> None:
    """In a process of its own."""
    used, stage = connect(backend, "cpu"), manifest.read(bundle).stages["denoiser"]
    tokens, text = MID.side**2, MID.text
    sizes = {"batch": 1, "tokens": tokens, "text": text, "sequence": tokens + text}
    rng = np.random.default_rng(0)
    inputs = {
        each.name: rng.standard_normal([sizes.get(str(dim), dim) for dim in each.dims]).astype(np.float32)
        for each in stage.inputs
    }
    before = _resident()
    graph = used.load(bundle / stage.graph, "denoiser", stage)
    for _ in range(2):
        graph.run(inputs)
    print(round((_resident() - before) / 1e6, 1))


def main() -> None:
    """Paint, build, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--calibration", type=Path, help="of flux-nano; else it is calibrated")
    parser.add_argument("--bundle", type=Path, help="flux-nano in fp32; else it is built")
    parser.add_argument("--only", choices=["pictures", "engines", "cpu"], help="leave the rest as it is")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing on a CPU")
    parser.add_argument("--memory", nargs=2, metavar=("BUNDLE", "BACKEND"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="a folder on a disk with 5 GB free")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.memory:
        say_memory(Path(args.memory[0]), args.memory[1])
        return
    sys.path.insert(0, str(NANO))
    started, path = time.perf_counter(), args.out / NAME
    before: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {what}", file=sys.stderr, flush=True)

    settings = {"base": "fp32", "steps": STEPS, "guidance": GUIDANCE, "seed": SEED, "size": SIZE}
    found: dict[str, Any] = {"rows": [], "engines": {}, "cpu": {}, **before, **settings}

    def keep(what: str) -> None:
        write(path, {**found, **describe()})
        print(f"{time.perf_counter() - started:6.0f} s  {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        if args.only in (None, "pictures"):
            seen = len(read(args.calibration).settings.prompts) if args.calibration else CALIBRATED
            found |= {"prompts": args.prompts, "calibration_prompts": seen, "rows": []}
            for row in pictures(args.prompts, Path(scratch), args.calibration, args.bundle):
                found["rows"].append(row)
                keep(str(row))
        for built in BUILT if args.only in (None, "engines") else ():
            found["engines"][built.name] = engine(built, Path(scratch))
            keep(f"{built.name}: {found['engines'][built.name]}")
        if args.only in (None, "cpu"):
            found["cpu"] = cpu(Path(scratch), args.rounds)
            keep(str(found["cpu"]))


if __name__ == "__main__":
    main()
