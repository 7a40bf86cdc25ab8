"""The exporter at FLUX.1's full size: 11.9 B parameters, from a BFL-named bf16 checkpoint.

    python benchmarks/full_size.py [--out benchmarks/results]

The checkpoint is a sparse file: its header is FLUX.1-dev's, its 23.8 GB of tensors are holes on the disk.
What is measured (time, peak memory, bytes on disk) does not depend on the tensors' values.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe, write


def write_sparse(path: Path) -> int:
    """A BFL-named bf16 checkpoint of FLUX.1-dev without data; returns its number of parameters."""
    import torch

    from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
    from flux_trt.exporter.families.flux1.params import FLUX_DEV

    with torch.device("meta"):
        shapes = {
            name: list(value.shape)
            for module in (Conditioner(FLUX_DEV), Denoiser(FLUX_DEV))
            for name, value in module.named_parameters()
        }
    header, end = {}, 0
    for name, shape in sorted(shapes.items()):
        nbytes = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def disk_bytes(folder: Path) -> int:
    """Bytes on disk of the files that only this folder has."""
    return sum(512 * p.stat().st_blocks for p in folder.rglob("*") if p.is_file() and p.stat().st_nlink == 1)


def measure(folder: Path) -> dict[str, object]:
    """Build conditioner and denoiser in a child process."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    made = subprocess.run(
        [sys.executable, __file__, "--sparse", folder / "flux1-dev.safetensors"],
        capture_output=True,
        check=True,
    )
    count = int(made.stdout)
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "build", str(folder / "flux1-dev.safetensors")]
    command += ["--out", str(folder / "bundle"), "--precision", "bf16", "--stages", "conditioner,denoiser"]
    log = folder / "build.log"
    started = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        _, status, used = os.wait4(child.pid, 0)
    wall, told = time.perf_counter() - started, log.read_text()
    if status:
        raise RuntimeError(f"the build failed: {told[-500:]}")
    graphs = {
        name: float(seconds) for name, seconds in re.findall(r"^(\w+): bf16,.* in ([\d.]+) s$", told, re.M)
    }
    return {
        "parameters": count,
        "wall_seconds": round(wall, 1),
        "graph_seconds": graphs,
        "graph_seconds_total": round(sum(graphs.values()), 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
        "checkpoint_gb": round((folder / "flux1-dev.safetensors").stat().st_size / 1e9, 2),
        "bundle_own_mb_on_disk": round(disk_bytes(folder / "bundle") / 1e6, 2),
        "weights_linked": (folder / "bundle" / "transformer" / "flux1-dev.safetensors").stat().st_nlink > 1,
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sparse", type=Path, help="only write the sparse checkpoint, here")
    args = parser.parse_args()
    if args.sparse:
        print(write_sparse(args.sparse))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    found["targets"] = {"graph_seconds_total": 90, "peak_rss_gb": 1.5}
    write(args.out / "full_size.json", {**describe(), **found})


if __name__ == "__main__":
    main()
