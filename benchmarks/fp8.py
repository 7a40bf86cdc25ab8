"""What a precision costs in quality: flux-nano's score and the distance to fp32 from the same seeds.

    python benchmarks/fp8.py [--prompts 256] [--more 1024] [--modelopt-python PATH] [--out benchmarks/results]

fp8 runs in onnxruntime on the CPU with fp32 around it: its QuantizeLinear and DequantizeLinear round exactly
as E4M3 does, so what is measured is the loss by quantisation alone. bf16 runs in torch (no CPU kernels in
onnxruntime). All fp8 rows share one calibration, on captions of flux-nano's training split. With
--modelopt-python the vendor's own tool quantises the same checkpoint with the same captions (docs/fp8.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from likeness import ms_ssim_distance, psnr, ssim
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.exporter.verify.eager import Eager
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Precision, StageName
from flux_trt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from nano.checker import Report

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
WEIGHTS = NANO / "transformer" / "diffusion_pytorch_model.safetensors"
STEPS, GUIDANCE, SEED, BATCH = 12, 1.0, 0, 32
SIZE, TEXT_LENGTH, CALIBRATED = (64, 64), 32, 64
MODELOPT = Path(__file__).with_name("fp8_modelopt.py")


@dataclass(frozen=True)
class Row:
    """A way to run flux-nano."""

    name: str
    group: str
    precision: Precision = "fp8"
    runner: str = "onnxruntime"
    fp8: dict[str, Any] = field(default_factory=dict)
    stages: dict[StageName, Precision] = field(default_factory=dict)


ENGINES = "fp8 + attention as engines compute it, softmax too"
ROWS = (
    Row("fp32", "precision", "fp32"),
    Row("bf16", "precision", "bf16", "torch"),
    Row("fp16", "precision", "fp16"),
    Row("fp8", "precision"),
    Row("fp8 + attention", "precision", fp8={"attention": True}),
    Row(ENGINES, "precision", runner="torch, softmax rounded", fp8={"attention": True}),
    Row("fp8, one scale per weight tensor", "ablation", fp8={"per_channel": False}),
    Row("fp8, activations at their 99.9 percentile", "ablation", fp8={"statistic": "p99_9"}),
    Row("fp8, activations at their 99.999 percentile", "ablation", fp8={"statistic": "p99_999"}),
    Row("fp8, modulation layers too", "ablation", stages={"conditioner": "fp8"}),
)
VENDOR = "nvidia-modelopt, FP8 default recipe"


def paint(row: Row, bundle: Path, prompts: list[str]) -> np.ndarray:
    """uint8 [N, H, W, 3]: prompt k from seed k."""
    backend = connect(row.runner, "cpu") if row.runner == "onnxruntime" else None
    if backend is None:
        softmax = row.runner != "torch"
        backend = Eager(recognise(open_checkpoint(str(NANO))), softmax=softmax)
    with Pipeline(Bundle.open(bundle), backend) as pipeline:
        images = pipeline.generate(prompts, size=SIZE, steps=STEPS, guidance=GUIDANCE, seed=SEED, batch=BATCH)
    return np.stack([np.asarray(image) for image in images])


def with_modelopt(python: Path, folder: Path, prompts: list[str], calibration: list[str]) -> Any:
    """Some pictures of diffusers, then all of the vendor's tool, and what it says of itself."""
    job, pictures = folder / "job.json", folder / "pictures.npz"
    job.write_text(
        json.dumps(
            {
                "checkpoint": str(NANO),
                "prompts": prompts,
                "calibration": calibration,
                "steps": STEPS,
                "guidance": GUIDANCE,
                "seed": SEED,
                "size": SIZE,
                "text_length": TEXT_LENGTH,
            }
        )
    )
    command = [python, "-W", "ignore", MODELOPT, job, pictures]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{MODELOPT.name} failed:\n{child.stderr[-2000:]}")
    with np.load(pictures) as arrays:
        exact, found = arrays["exact"], arrays["found"]
    return exact, found, json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    """Paint in every way and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument(
        "--more", type=int, default=1024, help="prompts on which fp32 and fp8 alone are judged"
    )
    parser.add_argument("--only", nargs="+", help="make only these rows again, into the file that is there")
    parser.add_argument("--modelopt-python", type=Path, help="of an environment with nvidia-modelopt")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    sys.path.insert(0, str(NANO))
    from nano.checker import Rates, check
    from nano.scene import sample_split, test_prompts

    chosen = [row for row in ROWS if not args.only or row.name in ("fp32", *args.only)]
    prompts, started = test_prompts(args.prompts), time.perf_counter()
    rng = np.random.default_rng(SEED)
    calibration = [sample_split(rng, held_out=False).caption for _ in range(CALIBRATED)]
    pictures: dict[str, np.ndarray] = {}
    larger: dict[str, list[Report]] = {}
    vendor: dict[str, Any] = {}

    def told(what: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts, ranges = folder / "prompts.txt", folder / "calibration.json"
        texts.write_text("\n".join(calibration), encoding="utf-8")
        calibrate_checkpoint(str(NANO), ranges, prompts=texts, size=SIZE, steps=STEPS, guidance=GUIDANCE)
        told("calibrated")
        for row in chosen:
            bundle = folder / row.name
            if row.precision == "fp8":  # what is not quantised is taken over, not built again
                shutil.copytree(folder / "fp32", bundle)
            fp8 = Fp8(base="fp32", calibration=ranges, **row.fp8)
            build(
                str(NANO), bundle, precision=row.precision, stage_precisions=row.stages, fp8=fp8, link=False
            )
            pictures[row.name] = paint(row, bundle, prompts)
            told(row.name)
            if row.name in ("fp32", "fp8") and args.more and not args.only:
                asked_more = test_prompts(args.more)
                larger[row.name] = list(map(check, paint(row, bundle, asked_more), asked_more))
                told(f"{row.name}, {args.more} prompts")
        if args.modelopt_python and not args.only:
            exact, found, vendor = with_modelopt(args.modelopt_python, folder, prompts, calibration)
            vendor["diffusers_within_1_of_255"] = _within_1(exact, pictures["fp32"][: len(exact)])
            pictures[VENDOR] = found
            told(VENDOR)
    exact, rows = pictures["fp32"], []
    judged = {name: list(map(check, found, prompts)) for name, found in pictures.items()}
    every = (*chosen, *([Row(VENDOR, "vendor", runner="torch")] if vendor else []))
    for row in every:
        found = pictures[row.name]
        rows.append(
            {
                "name": row.name,
                "group": row.group,
                "runner": row.runner,
                "score": dataclasses.asdict(Rates.of(judged[row.name])),
                **losses(judged["fp32"], judged[row.name]),
                **({} if row.name == "fp32" else distances(found, exact)),
            }
        )
    if args.only:
        _replace(args.out / "fp8.json", args.prompts, rows[1:])
        return
    more = {"prompts": args.more, **losses(larger["fp32"], larger["fp8"])} if larger else None
    asked = {"prompts": args.prompts, "calibration_prompts": CALIBRATED, "base": "fp32"}
    asked |= {"steps": STEPS, "guidance": GUIDANCE, "seed": SEED, "size": SIZE}
    seconds = round(time.perf_counter() - started)
    goal = {"fp8_points_lost_at_most": 1.0}
    result = {
        **describe(),
        "checkpoint": {"name": NANO.name, "transformer_sha256": _digest(WEIGHTS)},
        **asked,
        "wall_seconds": seconds,
        "targets": goal,
        "vendor": vendor,
        "rows": rows,
        "more": more,
    }
    write(args.out / "fp8.json", result)


def _replace(path: Path, prompts: int, rows: list[dict[str, Any]]) -> None:
    """Put rows into a file of the same weights and prompts; each says when and where it was made."""
    before = json.loads(path.read_text(encoding="utf-8"))
    assert before["checkpoint"]["transformer_sha256"] == _digest(WEIGHTS), "of other weights: make all again"
    assert before["prompts"] == prompts
    about = describe()
    known = {row["name"]: row for row in before["rows"]}
    known |= {row["name"]: {**row, "made": {"date": about["date"], **about["hardware"]}} for row in rows}
    order = [row.name for row in ROWS]
    placed = sorted(
        known.values(), key=lambda row: (row["name"] not in order, [*order, row["name"]].index(row["name"]))
    )
    write(path, {**before, "rows": placed})


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def losses(exact: Sequence[Report], found: Sequence[Report]) -> dict[str, float]:
    """What the checker takes off, in points of 100: of all marks, and of pictures that are all right.

    `chance` is how likely so uneven a split of lost and won pictures is when none is better (McNemar's exact
    test, two-sided).
    """
    lost = sum(a.all_right and not b.all_right for a, b in zip(exact, found, strict=True))
    won = sum(b.all_right and not a.all_right for a, b in zip(exact, found, strict=True))
    few, both = min(lost, won), lost + won
    tail = sum(math.comb(both, k) for k in range(few + 1)) / 2**both
    return {
        "marks_lost": round(100 * (_marks(exact) - _marks(found)), 2),
        "points_lost": round(100 * (lost - won) / len(exact), 2),
        "pictures_lost": lost,
        "pictures_won": won,
        "chance": round(min(1.0, 2 * tail), 3),
    }


def _marks(reports: Sequence[Report]) -> float:
    """Share of marks that are right: colour, shape and place of every object, and every background."""
    right = sum(report.background + sum(each.marks for each in report.objects) for report in reports)
    return right / sum(1 + 3 * len(report.objects) for report in reports)


def distances(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far uint8 pictures [N, H, W, 3] are from others."""
    decibels, alike = psnr(found, exact), ssim(found, exact)
    return {
        "psnr_db_median": round(float(np.median(decibels)), 2),
        "psnr_db_p5": round(float(np.percentile(decibels, 5)), 2),
        "ssim_mean": round(float(alike.mean()), 5),
        "ssim_p5": round(float(np.percentile(alike, 5)), 5),
        "ms_ssim_distance_mean": round(float(ms_ssim_distance(found, exact).mean()), 6),
        "within_1_of_255": _within_1(found, exact),
    }


def _within_1(found: np.ndarray, exact: np.ndarray) -> float:
    return round(float((np.abs(found.astype(int) - exact) <= 1).mean()), 5)


if __name__ == "__main__":
    main()
