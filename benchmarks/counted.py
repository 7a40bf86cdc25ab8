"""What TensorRT-RTX makes of the denoiser: kernels and megabytes of a run, for sm 8.9, without a GPU.

    python benchmarks/counted.py [--only NAME ...] [--work DIR] [--out benchmarks/results]

flux-nano as it is, and one and two blocks of each kind at the families' real widths, 1024x1024 pixels: what a
block more costs is the difference. Weights and calibration of those are made up; what the builder fuses
does not depend on them. Rows that are not made again stay in the file; a test compares them with a build of
its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from full_size_engines import write_random
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.engines.count import count
from flux_trt.exporter.engines.report import Counts
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import large_layers
from flux_trt.exporter.quantise.calibration import ATTENTION, HEADS, Calibration, Settings, Size
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import identity

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
NAME, SM = "counted.json", "8.9"
DEPTHS = ((1, 1), (1, 2), (2, 1))
"""Double and single blocks."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """A denoiser that is counted."""

    model: str
    """flux-nano, or what has real widths."""
    precision: str
    attention: bool = False
    depth: tuple[int, int] | None = None
    """None: all blocks."""
    size: tuple[int, int] = (1024, 1024)

    @property
    def name(self) -> str:
        """In the file."""
        blocks = f", {self.depth[0]}+{self.depth[1]} blocks" if self.depth else ""
        return f"{self.model}{blocks}, {self.precision}{' + attention' * self.attention}"


ROWS = (
    Row("flux-nano", "bf16", size=(64, 64)),
    Row("flux-nano", "fp16", size=(64, 64)),
    Row("flux-nano", "fp8", size=(64, 64)),
    Row("flux-nano", "fp8", True, size=(64, 64)),
    *(
        Row(model, "fp8", attention, depth)
        for model in ("FLUX.1-dev", "FLUX.2 klein-4b")
        for attention in (False, True)
        for depth in DEPTHS
    ),
    *(Row("FLUX.2 dev", "fp8", True, depth) for depth in DEPTHS),
)


def counted(row: Row, folder: Path) -> Counts:
    """Export a row's denoiser into a folder, and count its engine."""
    source = str(NANO)
    if row.depth is not None:
        file = folder / "model.safetensors"
        if not file.exists():
            write_random(file, shapes(row.model, row.depth))
        source = str(file)
    bundle = folder / f"{row.precision}{'-attention' * row.attention}"
    fp8 = None
    if row.precision == "fp8":
        made_up(source, folder / "calibration.json")
        fp8 = Fp8(base="bf16", calibration=folder / "calibration.json", attention=row.attention)
    build(source, bundle, precision=row.precision, stages=["denoiser"], fp8=fp8)  # type: ignore[arg-type]
    return dict(count(bundle, ["denoiser"], SM, row.size))["denoiser"]


def shapes(model: str, depth: tuple[int, int]) -> Shapes:
    """Names and shapes of a transformer of a model's width with so few blocks."""
    if model.startswith("FLUX.2"):
        from full_size_flux2 import transformer

        return transformer(model.removeprefix("FLUX.2 "), depth)
    import torch

    from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
    from flux_trt.exporter.families.flux1.params import FLUX_DEV

    params = replace(FLUX_DEV, depth=depth[0], depth_single_blocks=depth[1])
    with torch.device("meta"):
        modules = (Conditioner(params), Denoiser(params))
    return {name: tuple(value.shape) for module in modules for name, value in module.named_parameters()}


def made_up(source: str, out: Path) -> None:
    """A calibration with ranges that a real model could have."""
    model = recognise(open_checkpoint(source))
    size = Size(amax=20.0, p99_9=4.0, p99_99=8.0, p99_999=16.0, count=1)
    (stage,) = make_stages(model, "fp8", ["denoiser"])
    layers = large_layers(stage)
    blocks = dict.fromkeys(".".join(layer.split(".")[:2]) for layer in layers)
    names = [*layers, *(f"{block}.{ATTENTION}.{head}" for block in blocks for head in HEADS)]
    found = Calibration(
        variant=model.variant,
        weights=identity(model, {}),
        settings=Settings(prompts=["made up"], width=512, height=512, steps=1, guidance=None, seed=0),
        layers={stage.name: dict.fromkeys(names, size)},
        tool="benchmarks/counted.py: made up, never run",
        created=str(describe()["date"]),
    )
    out.write_text(found.dumps(), encoding="utf-8")


def main() -> None:
    """Count, and write the result file after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", default=[], help="only rows whose name begins so")
    parser.add_argument("--work", type=Path, help="a folder on a disk with 10 GB free")
    args = parser.parse_args()
    path = args.out / NAME
    rows: dict[str, Any] = {}
    if path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in ROWS:
        if args.only and not row.name.startswith(tuple(args.only)):
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            found = counted(row, Path(folder))
        rows[row.name] = {"size": row.size, **found.model_dump(mode="json")}
        print(f"{time.perf_counter() - started:.0f} s  {row.name}: {found}", file=sys.stderr, flush=True)
        ordered = {each.name: rows[each.name] for each in ROWS if each.name in rows}
        write(path, {**describe(), "sm": SM, "tensorrt_rtx": _version(), "rows": ordered})


def _version() -> str:
    from flux_trt.runtime.bundle.flavour import FLAVOURS

    return FLAVOURS["tensorrt-rtx"].version()


if __name__ == "__main__":
    main()
