"""The exporter at FLUX.3's full size: Klein base and distilled, from BFL-named files in bf16.

    python benchmarks/full_size_flux3.py [--out benchmarks/results] [--members base,distilled]

As `full_size_flux2`: the checkpoints are sparse files with the names and shapes of diffusers' and
transformers' own classes, the vision tower and what is of training alone left out.
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
from typing import Any

from full_size_flux2 import QWEN3, Shapes, nodes, write_sparse
from machine import describe, write

MEMBERS = ("base", "distilled")
STAGES = ("text", "time", "context", "references", "denoiser")
TEXT: dict[str, Any] = {
    **QWEN3,
    "model_type": "qwen3_vl_text",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "rope_theta": 5e6,
    "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    "tie_word_embeddings": True,
}
ENCODER: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": TEXT,
    "tie_word_embeddings": True,
}


def transformer(member: str) -> Shapes:
    """Names and shapes of a member's transformer, under Black Forest Labs' names."""
    import torch
    from diffusers import Flux3Transformer2DModel

    from flux_trt.exporter.families.flux3.names import transformer_from_diffusers

    with torch.device("meta"):
        model = Flux3Transformer2DModel(flow_map=member == "distilled")
    theirs, config = model.state_dict(), model.config
    recipes = transformer_from_diffusers(config.num_layers, config.num_single_layers, config.flow_map)
    return {
        ours: tuple(recipe.make(*(theirs[name] for name in recipe.names)).shape)
        for ours, recipe in recipes.items()
    }


def encoder() -> Shapes:
    """Names and shapes of Qwen3-VL-4B's language model as transformers saves it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**{**QWEN3, "hidden_size": 2560, "intermediate_size": 9728}))
    return {
        name.replace("model.", "model.language_model.", 1): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }


def write_checkpoint(member: str, folder: Path) -> dict[str, int]:
    """The transformer's file and the encoder's folder; their numbers of parameters."""
    place = folder / "text_encoder"
    found = {
        "transformer": write_sparse(folder / "model.safetensors", transformer(member)),
        "text": write_sparse(place / "model.safetensors", encoder()),
    }
    (place / "config.json").write_text(json.dumps(ENCODER))
    return found


def measure(member: str, folder: Path) -> dict[str, Any]:
    """Build all stages but the VAE's in a child process."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    made = subprocess.run(
        [sys.executable, __file__, "--sparse", folder, "--members", member], capture_output=True, check=True
    )
    counts = json.loads(made.stdout)
    bundle, log = folder / "bundle", folder / "build.log"
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "build", str(folder / "model.safetensors")]
    command += ["--text-encoders", str(folder / "text_encoder"), "--out", str(bundle)]
    command += ["--precision", "bf16", "--stages", ",".join(STAGES)]
    started = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        _, status, used = os.wait4(child.pid, 0)
    wall, told = time.perf_counter() - started, log.read_text()
    if status:
        raise RuntimeError(f"the build failed: {told[-500:]}")
    seconds = {name: float(each) for name, each in re.findall(r"^(\w+): bf16,.* in ([\d.]+) s$", told, re.M)}
    own = sum(512 * p.stat().st_blocks for p in bundle.rglob("*") if p.is_file() and p.stat().st_nlink == 1)
    return {
        "parameters": counts,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "graph_seconds": seconds,
        "nodes": {name: nodes(bundle / f"{name}.onnx") for name in seconds},
        "peak_rss_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
        "checkpoint_gb": round(2 * sum(counts.values()) / 1e9, 2),
        "bundle_own_mb_on_disk": round(own / 1e6, 2),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--members", default=",".join(MEMBERS))
    parser.add_argument(
        "--sparse", type=Path, help="only write the sparse checkpoint of the one member, here"
    )
    args = parser.parse_args()
    members = args.members.split(",")
    if args.sparse:
        print(json.dumps(write_checkpoint(members[0], args.sparse)))
        return
    found = {}
    for member in members:
        with tempfile.TemporaryDirectory() as folder:
            found[member] = measure(member, Path(folder))
            print(member, json.dumps(found[member]), flush=True)
    write(args.out / "full_size_flux3.json", {**describe(), "members": found})


if __name__ == "__main__":
    main()
