"""What building takes: our export, the plain one and an engine, by time, memory and disk, at two sizes.

    python benchmarks/build.py [--sizes 0.15,0.6] [--no-engine] [--out benchmarks/results]

The checkpoint is a transformer of FLUX.1's form in bf16 with random weights. Every build is a child process,
and its peak is the resident memory of that process or of its largest child. The plain export is what the
libraries' guides show: load diffusers' transformer, `torch.onnx.export`. A straight line through the two
sizes says what it would take at 12 B parameters, where ours was measured (full_size.json), from a BFL file,
whose weights are linked; from diffusers' layout the fused projections are written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe, write

RESULTS = Path(__file__).parent / "results"
FULL = 11_900_000_000
FORMS = {"0.006": (2, 1, 2), "0.15": (8, 2, 5), "0.3": (10, 2, 8), "0.6": (12, 3, 10), "1": (16, 3, 8)}
"""Heads of 128 channels, double and single blocks, by billions of parameters, about."""

CHECKPOINT = """
import json
import sys
from pathlib import Path
import torch
from diffusers import FluxTransformer2DModel

folder, heads, depth, single = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
model = FluxTransformer2DModel(
    num_attention_heads=heads, num_layers=depth, num_single_layers=single, guidance_embeds=True
)
model.save_pretrained(folder / "transformer")
(folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
print(sum(each.numel() for each in model.parameters()))
"""
PLAIN = """
import sys
import torch
from diffusers import FluxTransformer2DModel

source, out = sys.argv[1:]
model = FluxTransformer2DModel.from_pretrained(source + "/transformer", torch_dtype=torch.bfloat16).eval()
L, T, dtype = 64, 32, torch.bfloat16
inputs = {
    "hidden_states": torch.randn(1, L, model.config.in_channels, dtype=dtype),
    "encoder_hidden_states": torch.randn(1, T, model.config.joint_attention_dim, dtype=dtype),
    "pooled_projections": torch.randn(1, model.config.pooled_projection_dim, dtype=dtype),
    "timestep": torch.ones(1, dtype=dtype),
    "img_ids": torch.zeros(L, 3),
    "txt_ids": torch.zeros(T, 3),
    "guidance": torch.ones(1, dtype=dtype),
    "return_dict": False,
}
with torch.no_grad():
    torch.onnx.export(model, (), out + "/plain.onnx", kwargs=inputs, dynamo=True, external_data=True)
"""


def child(command: Sequence[str | Path]) -> tuple[dict[str, Any], str]:
    """Seconds and peak memory of a process or of its largest child, whichever is larger; and what it said.

    Raises:
        SystemExit: it failed; the last it said is the message.
    """
    watch = "import resource, subprocess, sys; rc = subprocess.call(sys.argv[1:]); "
    watch += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(rc)"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", watch, *command], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
    peak = int(done.stdout.split("PEAK")[-1]) * 1024
    return {"seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 3)}, done.stderr


def disk_gb(folder: Path) -> float:
    """Gigabytes on disk that only this folder has; what is hard-linked is the checkpoint's."""
    files = [each.stat() for each in folder.rglob("*") if each.is_file()]
    return round(sum(512 * each.st_blocks for each in files if each.st_nlink == 1) / 1e9, 4)


def measure(form: str, folder: Path, engine: bool) -> dict[str, Any]:
    """One size: the checkpoint, then every build of it."""
    source, bundle, other = folder / "checkpoint", folder / "bundle", folder / "plain"
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECKPOINT, source, *map(str, FORMS[form])],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = {"parameters": int(made.stdout.split()[-1])}
    other.mkdir()
    tool = [sys.executable, "-m", "flux_trt.exporter.cli"]
    build = [*tool, "build", source, "--out", bundle, "--precision", "bf16"]
    found["ours"], told = child([*build, "--stages", "conditioner,denoiser"])
    found["ours"]["disk_gb"] = disk_gb(bundle)
    found["ours"]["graph_seconds"] = {
        name: float(seconds) for name, seconds in re.findall(r"^(\w+): bf16,.* in ([\d.]+) s$", told, re.M)
    }
    found["plain"], _ = child([sys.executable, "-W", "ignore", "-c", PLAIN, source, other])
    found["plain"]["disk_gb"] = disk_gb(other)
    shutil.rmtree(other)
    if engine:
        command = [
            *tool,
            "engines",
            bundle,
            "--backend",
            "tensorrt-rtx",
            "--sm",
            "8.9",
            "--stages",
            "denoiser",
        ]
        found["engine"], _ = child([*command, "--sizes", "512x512"])
        found["engine"]["disk_gb"] = disk_gb(bundle / "engines")
    return found


def at_full_size(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """A straight line through the plain export at two sizes: gigabytes, and bytes per parameter."""
    more, found = large["parameters"] - small["parameters"], {}
    for key in ("peak", "disk"):
        slope = (large["plain"][f"{key}_gb"] - small["plain"][f"{key}_gb"]) / more
        found[f"{key}_gb"] = round(large["plain"][f"{key}_gb"] + slope * (FULL - large["parameters"]), 2)
        found[f"{key}_bytes_per_parameter"] = round(slope * 1e9, 2)
    return found


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="0.15,0.6", help=f"two of {', '.join(FORMS)}")
    parser.add_argument("--no-engine", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sizes = {}
    for form in options.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            sizes[form] = measure(form, Path(folder), not options.no_engine)
            print(form, sizes[form], file=sys.stderr, flush=True)
    small, large = (sizes[form] for form in options.sizes.split(","))
    result = {
        "sizes": sizes,
        "extrapolated": {"parameters": FULL, "plain": at_full_size(small, large)},
        "measured_at_full_size": _known(),
        "cores": os.cpu_count(),
    }
    write(options.out / "build.json", {**describe(), **result})


def _known() -> dict[str, Any]:
    """What the other benchmarks have measured at FLUX.1's full size."""
    found: dict[str, Any] = {}
    if (path := RESULTS / "full_size.json").is_file():
        full = json.loads(path.read_text(encoding="utf-8"))
        found["ours"] = {
            "parameters": full["parameters"],
            "seconds": full["wall_seconds"],
            "peak_gb": full["peak_rss_gb"],
            "disk_gb": full["bundle_own_mb_on_disk"] / 1e3,
            "from": path.name,
        }
    if (path := RESULTS / "full_size_engines.json").is_file():
        engine = json.loads(path.read_text(encoding="utf-8"))["engines"]["denoiser"]
        found["engine"] = {key: engine[key] for key in ("precision", "seconds", "peak_gb", "engine_gb")}
        found["engine"]["from"] = path.name
    return found


if __name__ == "__main__":
    main()
