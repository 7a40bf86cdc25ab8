"""What each quantised precision costs in quality, and what it makes of an engine: fp8's kin side by side.

    python benchmarks/quantised.py [--prompts 64] [--only pictures|engines] [--work DIR] [--out benchmarks/results]

Pictures: flux-nano, from the same seeds as fp32, all rows with one calibration; what is not quantised is in
fp32, so that what is measured is the loss by quantisation alone. INT8 and INT4 run in onnxruntime; NVFP4's
operator is TensorRT's alone, so it runs in torch, which rounds as the graph's nodes do (exporter/quantise).
Engines: denoisers built by TensorRT-RTX without a GPU, for the oldest GPU that a precision is for, flux-nano
whole and one block of each kind at FLUX.1's width; sizes of the plans, and the types of products.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from counted import made_up, shapes
from fp8 import GUIDANCE, NANO, SEED, SIZE, STEPS, distances, losses, paint
from fp8 import Row as Painted
from full_size_engines import write_random
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.exporter.engines.count import count
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.engines.profile import Shapes
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime.bundle.engine import PLAN
from flux_trt.runtime.bundle.manifest import Precision

NAME, CALIBRATED = "quantised.json", 64
PAINTED = (
    Painted("fp32", "precision", "fp32"),
    Painted("fp8", "precision"),
    Painted("int8", "precision", "int8"),
    Painted("int8, T5 too", "ablation", "int8", stages={"t5": "int8"}),
    Painted("w8a16", "precision", "w8a16"),
    Painted("w4a16", "precision", "w4a16"),
    Painted("w4a16, T5 too", "ablation", "w4a16", stages={"t5": "w4a16"}),
    Painted("nvfp4", "precision", "nvfp4", "torch"),
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


def pictures(prompts: int, folder: Path, tell: Any) -> list[dict[str, Any]]:
    """A row for each precision: its score, and its distance to fp32."""
    from nano.checker import Rates, check
    from nano.scene import sample_split, test_prompts

    asked, rng = test_prompts(prompts), np.random.default_rng(SEED)
    texts, ranges = folder / "prompts.txt", folder / "calibration.json"
    captions = [sample_split(rng, held_out=False).caption for _ in range(CALIBRATED)]
    texts.write_text("\n".join(captions), encoding="utf-8")
    calibrate_checkpoint(str(NANO), ranges, prompts=texts, size=SIZE, steps=STEPS, guidance=GUIDANCE)
    tell("calibrated")
    found: dict[str, np.ndarray] = {}
    rows = []
    for row in PAINTED:
        bundle = folder / row.name
        if row.precision != "fp32":  # what is not quantised is taken over, not built again
            shutil.copytree(folder / "fp32", bundle)
        fp8 = Fp8(base="fp32", calibration=ranges)
        build(str(NANO), bundle, precision=row.precision, stage_precisions=row.stages, fp8=fp8, link=False)
        found[row.name] = paint(row, bundle, asked)
        exact, mine = (list(map(check, found[name], asked)) for name in ("fp32", row.name))
        size = (bundle / "denoiser.safetensors").stat().st_size
        told = {"name": row.name, "group": row.group, "runner": row.runner, "denoiser_mb": round(size / 1e6, 2)}
        told |= {"score": dataclasses.asdict(Rates.of(mine)), **losses(exact, mine)}
        rows.append(told | ({} if row.name == "fp32" else distances(found[row.name], found["fp32"])))
        tell(f"{row.name}: {rows[-1]}")
    return rows


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


def main() -> None:
    """Paint, build, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--only", choices=["pictures", "engines"], help="leave the other half as it is")
    parser.add_argument("--work", type=Path, help="a folder on a disk with 5 GB free")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    sys.path.insert(0, str(NANO))
    started, path = time.perf_counter(), args.out / NAME
    before: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {what}", file=sys.stderr, flush=True)

    rows, engines = before.get("rows", []), dict(before.get("engines", {}))
    asked = {name: before[name] for name in ("prompts", "calibration_prompts") if name in before}
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        if args.only != "engines":
            rows = pictures(args.prompts, Path(scratch), tell)
            asked = {"prompts": args.prompts, "calibration_prompts": CALIBRATED}
        for row in BUILT if args.only != "pictures" else ():
            engines[row.name] = engine(row, Path(scratch))
            tell(f"{row.name}: {engines[row.name]}")
    settings = {"base": "fp32", "steps": STEPS, "guidance": GUIDANCE, "seed": SEED, "size": SIZE}
    write(path, {**describe(), **asked, **settings, "rows": rows, "engines": engines})


if __name__ == "__main__":
    main()
