"""FP8 engines of full-size checkpoints: what the scripts of FLUX.2 and FLUX.3 share.

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from full_size_engines import build_engine, write_random
from full_size_engines import run as export
from full_size_sparse import Shapes
from machine import describe, write

SIZE = "1024x1024"
Parts = Callable[[str], tuple[Shapes, Shapes, Mapping[str, Any]]]
"""Member -> its transformer, its text encoder, and the encoder's config."""


def write_checkpoint(script: str, folder: Path, member: str, parts: Parts) -> None:
    """The transformer's file, the encoder's folder, and a calibration with ranges a real model could have."""
    from flux_trt.exporter.checkpoints.open import open_checkpoint
    from flux_trt.exporter.families.plan import make_stages
    from flux_trt.exporter.families.recognise import recognise
    from flux_trt.exporter.families.stage import large_layers
    from flux_trt.exporter.quantise.calibration import Calibration, Settings, Size
    from flux_trt.exporter.quantise.ranges import identity

    place = folder / "text_encoder"
    place.mkdir(parents=True, exist_ok=True)
    transformer, encoder, config = parts(member)
    write_random(folder / f"{member}.safetensors", transformer)
    write_random(place / "model.safetensors", encoder)
    (place / "config.json").write_text(json.dumps(config))
    model = recognise(open_checkpoint(str(folder / f"{member}.safetensors"), text_encoders=place))
    size = Size(amax=20.0, p99_9=4.0, p99_99=8.0, p99_999=16.0, count=1)
    stages = make_stages(model, "fp8", ["text", "denoiser"])
    made = Calibration(
        variant=model.variant,
        weights=identity(model, {}),
        settings=Settings(prompts=["made up"], width=512, height=512, steps=1, guidance=None, seed=0),
        layers={stage.name: dict.fromkeys(large_layers(stage), size) for stage in stages},
        tool=f"benchmarks/{Path(script).name}: made up, never run",
        created=str(describe()["date"]),
    )
    (folder / "calibration.json").write_text(made.dumps(), encoding="utf-8")


def measure(
    script: str, member: str, stages: Sequence[str], folder: Path, more: Sequence[str]
) -> dict[str, Any]:
    """Export in fp8, then build each stage's engine for sm 8.9; `more` are options of `engines`."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    subprocess.run([sys.executable, script, "--member", member, "--write", folder], check=True)
    command = [
        "build",
        str(folder / f"{member}.safetensors"),
        "--text-encoders",
        str(folder / "text_encoder"),
    ]
    command += ["--out", str(folder / "bundle"), "--precision", "fp8", "--stages", ",".join(stages)]
    seconds, _ = export([*command, "--calibration", str(folder / "calibration.json")])
    engines: dict[str, Any] = {}
    for stage in stages:
        try:
            engines[stage] = build_engine(folder / "bundle", stage, SIZE, "--no-pairs", *more)
        except RuntimeError as fault:
            engines[stage] = {"fault": str(fault).splitlines()[-1]}
        print(member, stage, engines[stage], flush=True)
    return {"date": describe()["date"], "export_seconds": round(seconds, 1), "engines": engines}


def run(
    script: str, about: str | None, members: Sequence[str], parts: Parts, more: Sequence[str] = ()
) -> None:
    """The command line of `script`: measure a member and add it to the results file of its name."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--member", choices=members, default=members[0])
    parser.add_argument("--stages", default="denoiser,text")
    parser.add_argument("--work", type=Path, help="a folder on a disk with room for twice the checkpoint")
    parser.add_argument("--write", type=Path, help="only write checkpoint and calibration, here")
    args = parser.parse_args()
    if args.write:
        write_checkpoint(script, args.write, args.member, parts)
        return
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(script, args.member, args.stages.split(","), Path(folder), more)
    path = args.out / f"{Path(script).stem}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["members"] if path.is_file() else {}
    write(path, {**describe(), "size": SIZE, "members": {**before, args.member: found}})
