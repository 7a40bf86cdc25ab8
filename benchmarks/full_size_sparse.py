"""An export of sparse checkpoints, measured in a child process: what the full-size scripts of families share.

The checkpoints are sparse files: names and shapes are those of diffusers' and transformers' own classes, the
tensors are holes on the disk. What is measured (time, peak memory, bytes on disk) does not depend on the
tensors' values. Every file is hashed, as a build always does; that is most of the time.
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
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from machine import describe, write

Shapes = dict[str, tuple[int, ...]]
WriteCheckpoint = Callable[[str, Path], dict[str, int]]
"""Of a member into a folder: a transformer's file and the folder text_encoder; parameters of each."""


def write_sparse(path: Path, shapes: Shapes) -> int:
    """A bf16 safetensors file without data; returns its number of parameters."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def nodes(graph: Path) -> int:
    """Of an ONNX graph, without its functions."""
    import onnx

    return len(onnx.load(graph, load_external_data=False).graph.node)


def built(bundle: Path, words: Sequence[str]) -> dict[str, Any]:
    """Build a bundle in bf16 in a child process, and what that took.

    Args:
        bundle: to write; beside it lies the log.
        words: what `flux-export build` is given more.
    """
    log = bundle.with_suffix(".log")
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "build", *words]
    command += ["--out", str(bundle), "--precision", "bf16"]
    started = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        _, status, used = os.wait4(child.pid, 0)
    wall, told = time.perf_counter() - started, log.read_text()
    if status:
        raise RuntimeError(f"the build failed: {told[-500:]}")
    seconds = re.findall(r"^(\w+): bf16,.* in ([\d.]+) s$", told, re.M)
    own = sum(512 * p.stat().st_blocks for p in bundle.rglob("*") if p.is_file() and p.stat().st_nlink == 1)
    return {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "graph_seconds": {name: float(each) for name, each in seconds},
        "peak_rss_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
        "bundle_own_mb_on_disk": round(own / 1e6, 2),
    }


def measure(script: str, member: str, folder: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Build the stages of a member in a child process; `script` writes its sparse checkpoint in another."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    made = subprocess.run(
        [sys.executable, script, "--sparse", folder, "--members", member], capture_output=True, check=True
    )
    counts = json.loads(made.stdout)
    (transformer,) = folder.glob("*.safetensors")
    bundle, encoders = folder / "bundle", str(folder / "text_encoder")
    found = built(bundle, [str(transformer), "--text-encoders", encoders, "--stages", ",".join(stages)])
    return {
        "parameters": counts,
        **found,
        "nodes": {name: nodes(bundle / f"{name}.onnx") for name in found["graph_seconds"]},
        "checkpoint_gb": round(2 * sum(counts.values()) / 1e9, 2),
    }


def run(
    script: str,
    about: str | None,
    members: Sequence[str],
    write_checkpoint: WriteCheckpoint,
    stages: Sequence[str],
) -> None:
    """The command line of `script`: measure the members and write the results file of its name."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--members", default=",".join(members))
    parser.add_argument(
        "--sparse", type=Path, help="only write the sparse checkpoint of the one member, here"
    )
    args = parser.parse_args()
    chosen = args.members.split(",")
    if args.sparse:
        print(json.dumps(write_checkpoint(chosen[0], args.sparse)))
        return
    found = {}
    for member in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found[member] = measure(script, member, Path(folder), stages)
            print(member, json.dumps(found[member]), flush=True)
    write(args.out / f"{Path(script).stem}.json", {**describe(), "members": found})
