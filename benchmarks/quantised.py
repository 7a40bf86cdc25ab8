"""What each quantised precision costs in quality, and what it makes of an engine: fp8's kin side by side.

    python benchmarks/quantised.py [--prompts 64] [--only pictures|engines|cpu] [--work DIR] [--out DIR]

Pictures: flux-nano, from the same seeds as fp32, all rows with one calibration; what is not quantised is in
fp32, so that what is measured is the loss by quantisation alone. INT8 and INT4 run in onnxruntime; NVFP4's
operator is TensorRT's alone, so it runs in torch, which rounds as the graph's nodes do (exporter/quantise).
Engines: denoisers built by TensorRT-RTX without a GPU, for the oldest GPU that a precision is for, flux-nano
whole and one block of each kind at FLUX.1's width; sizes of the plans, and the types of products.
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
from counted import made_up, shapes
from fp8 import GUIDANCE, NANO, SEED, SIZE, STEPS, distances, losses, paint
from fp8 import Row as Painted
from full_size_engines import write_random
from machine import describe, write
from turns import summary, take_turns, times_as_fast
from walk import SIZES, Task, checkpoint, ours

from flux_trt.exporter.build import build
from flux_trt.exporter.engines.count import count
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.engines.profile import Shapes
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.engine import PLAN
from flux_trt.runtime.bundle.manifest import Precision

MID = SIZES["mid"]
ON_CPU: tuple[Precision, ...] = ("fp32", "int8", "w8a16", "w4a16")
NAME = "quantised.json"
PAINTED = (
    Painted("fp32", "precision", "fp32"),
    Painted("fp8", "precision"),
    Painted("int8", "precision", "int8"),
    Painted("w8a16", "precision", "w8a16"),
    Painted("w4a16", "precision", "w4a16"),
    Painted("nvfp4", "precision", "nvfp4", "torch"),
    Painted("int8, T5 too", "ablation", "int8", stages={"t5": "int8"}),
    Painted("w4a16, T5 too", "ablation", "w4a16", stages={"t5": "w4a16"}),
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
    ("fp16", None, "7.5"),
    ("int8", "fp16", "7.5"),
    ("w8a16", "fp16", "7.5"),
    ("w4a16", "fp16", "8.0"),
    ("bf16", None, "12.0"),
    ("fp8", "bf16", "12.0"),
    ("nvfp4", "bf16", "12.0"),
)
WIDE = "FLUX.1-dev, 1+1 blocks"
BUILT = tuple(Built(model, *kind) for model in ("flux-nano", WIDE) for kind in KINDS)


def pictures(prompts: int, calibrated: int, folder: Path, tell: Any) -> Iterator[dict[str, Any]]:
    """A row for each precision: its score, and its distance to fp32."""
    from nano.checker import Rates, check
    from nano.scene import sample_split, test_prompts

    asked, rng = test_prompts(prompts), np.random.default_rng(SEED)
    texts, ranges = folder / "prompts.txt", folder / "calibration.json"
    captions = [sample_split(rng, held_out=False).caption for _ in range(calibrated)]
    texts.write_text("\n".join(captions), encoding="utf-8")
    calibrate_checkpoint(str(NANO), ranges, prompts=texts, size=SIZE, steps=STEPS, guidance=GUIDANCE)
    tell("calibrated")
    found: dict[str, np.ndarray] = {}
    for row in PAINTED:
        bundle = folder / row.name
        if row.precision != "fp32":  # what is not quantised is taken over, not built again
            shutil.copytree(folder / "fp32", bundle)
        fp8 = Fp8(base="fp32", calibration=ranges)
        build(str(NANO), bundle, precision=row.precision, stage_precisions=row.stages, fp8=fp8, link=False)
        found[row.name] = paint(row, bundle, asked)
        exact, mine = (list(map(check, found[name], asked)) for name in ("fp32", row.name))
        size = (bundle / "denoiser.safetensors").stat().st_size
        told = {
            "name": row.name,
            "group": row.group,
            "runner": row.runner,
            "denoiser_mb": round(size / 1e6, 2),
        }
        told |= {"score": dataclasses.asdict(Rates.of(mine)), **losses(exact, mine)}
        yield told | ({} if row.name == "fp32" else distances(found[row.name], found["fp32"]))


def engine(row: Built, folder: Path) -> dict[str, Any]:
    """What an engine is made of, and the size of its plan."""
    source, size = str(NANO), (64, 64)
    if row.model == WIDE:
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
    parser.add_argument("--calibrated", type=int, default=64, help="prompts of the calibration")
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
            found |= {"prompts": args.prompts, "calibration_prompts": args.calibrated, "rows": []}
            for row in pictures(args.prompts, args.calibrated, Path(scratch), tell):
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
