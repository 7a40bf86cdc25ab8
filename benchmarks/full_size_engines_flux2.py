"""FP8 engines at FLUX.2's full sizes, without a GPU: quantise and build denoiser and text encoder.

    python benchmarks/full_size_engines_flux2.py [--member klein-4b] [--stages denoiser,text] [--work DIR]

The checkpoint has the real shapes and random weights. Nothing runs on them: the calibration is made up. Each
engine is built for one size and one row a picture, measured and removed. A member's figures are added to the
result file; an engine that cannot be built is written down as that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from full_size_engines import build_engine, run, write_random
from full_size_flux2 import ENCODERS, SIZES, encoder, transformer
from machine import describe, write


def write_checkpoint(member: str, folder: Path) -> None:
    """The transformer's file, the encoder's folder, and a calibration with ranges a real model could have."""
    from flux_trt.exporter.checkpoints.open import open_checkpoint
    from flux_trt.exporter.families.plan import make_stages
    from flux_trt.exporter.families.recognise import recognise
    from flux_trt.exporter.families.stage import large_layers
    from flux_trt.exporter.quantise.calibration import Calibration, Settings, Size
    from flux_trt.exporter.quantise.ranges import identity

    place = folder / "text_encoder"
    place.mkdir(parents=True, exist_ok=True)
    write_random(folder / f"{member}.safetensors", transformer(member))
    write_random(place / "model.safetensors", encoder(member))
    (place / "config.json").write_text(json.dumps(ENCODERS[member]))
    model = recognise(open_checkpoint(str(folder / f"{member}.safetensors"), text_encoders=place))
    size = Size(amax=20.0, p99_9=4.0, p99_99=8.0, p99_999=16.0, count=1)
    stages = make_stages(model, "fp8", ["text", "denoiser"])
    made = Calibration(
        variant=model.variant,
        weights=identity(model, {}),
        settings=Settings(prompts=["made up"], width=512, height=512, steps=1, guidance=None, seed=0),
        layers={stage.name: dict.fromkeys(large_layers(stage), size) for stage in stages},
        tool="benchmarks/full_size_engines_flux2.py: made up, never run",
        created=str(describe()["date"]),
    )
    (folder / "calibration.json").write_text(made.dumps(), encoding="utf-8")


def measure(member: str, stages: list[str], folder: Path) -> dict[str, Any]:
    """Export in fp8, then build each stage's engine for sm 8.9."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    subprocess.run([sys.executable, __file__, "--member", member, "--write", folder], check=True)
    export = ["build", str(folder / f"{member}.safetensors"), "--text-encoders", str(folder / "text_encoder")]
    export += ["--out", str(folder / "bundle"), "--precision", "fp8", "--stages", ",".join(stages)]
    seconds, _ = run([*export, "--calibration", str(folder / "calibration.json")])
    engines: dict[str, Any] = {}
    for stage in stages:
        try:
            engines[stage] = build_engine(folder / "bundle", stage, "1024x1024", "--no-pairs")
        except RuntimeError as fault:
            engines[stage] = {"fault": str(fault).splitlines()[-1]}
        print(member, stage, engines[stage], flush=True)
    return {"date": describe()["date"], "export_seconds": round(seconds, 1), "engines": engines}


def main() -> None:
    """Measure and add to the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--member", choices=SIZES, default="klein-4b")
    parser.add_argument("--stages", default="denoiser,text")
    parser.add_argument("--work", type=Path, help="a folder on a disk with room for twice the checkpoint")
    parser.add_argument("--write", type=Path, help="only write checkpoint and calibration, here")
    args = parser.parse_args()
    if args.write:
        write_checkpoint(args.member, args.write)
        return
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(args.member, args.stages.split(","), Path(folder))
    path = args.out / "full_size_engines_flux2.json"
    before = json.loads(path.read_text(encoding="utf-8"))["members"] if path.is_file() else {}
    write(path, {**describe(), "size": "1024x1024", "members": {**before, args.member: found}})


if __name__ == "__main__":
    main()
