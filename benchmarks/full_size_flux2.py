"""The exporter at FLUX.2's full sizes: klein 4B, klein 9B and dev, from BFL-named files in bf16.

    python benchmarks/full_size_flux2.py [--out benchmarks/results] [--members klein-4b,klein-9b,dev]

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
from math import prod
from pathlib import Path
from typing import Any

from machine import describe, write

SIZES = {"klein-4b": (24, 5, 20, 7680), "klein-9b": (32, 8, 24, 12288), "dev": (48, 8, 48, 15360)}
"""Heads, double and single blocks, text channels."""
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
    "use_sliding_window": False,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "klein-4b": {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "klein-9b": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "dev": {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {
            "model_type": "mistral",
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e9,
            "sliding_window": None,
        },
    },
}
Shapes = dict[str, tuple[int, ...]]


def transformer(member: str, depth: tuple[int, int] | None = None) -> Shapes:
    """Names and shapes of a member's transformer, under Black Forest Labs' names.

    Args:
        member: of the family.
        depth: double and single blocks, instead of all.
    """
    import torch
    from diffusers import Flux2Transformer2DModel

    from flux_trt.exporter.families.flux2.names import transformer_from_diffusers

    heads, double, single, text = SIZES[member]
    double, single = depth or (double, single)
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_attention_heads=heads,
            num_layers=double,
            num_single_layers=single,
            joint_attention_dim=text,
            guidance_embeds=member == "dev",
        )
    theirs = model.state_dict()
    recipes = transformer_from_diffusers(double, single, member == "dev")
    return {
        ours: tuple(recipe.make(*(theirs[name] for name in recipe.names)).shape)
        for ours, recipe in recipes.items()
    }


def encoder(member: str) -> Shapes:
    """Names and shapes of a member's language model as transformers saves it; of Mistral without its eyes."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config = ENCODERS[member]
    with torch.device("meta"):
        if "text_config" in config:
            model = MistralForCausalLM(MistralConfig(**config["text_config"]))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**config))
    before = "language_model." if "text_config" in config else ""
    names = {f"{before}{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del names["lm_head.weight"]
    return names


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


def write_checkpoint(member: str, folder: Path) -> dict[str, int]:
    """The transformer's file and the encoder's folder; their numbers of parameters."""
    place = folder / "text_encoder"
    found = {
        "transformer": write_sparse(folder / f"flux-2-{member}.safetensors", transformer(member)),
        "text": write_sparse(place / "model.safetensors", encoder(member)),
    }
    (place / "config.json").write_text(json.dumps(ENCODERS[member]))
    return found


def nodes(graph: Path) -> int:
    """Of an ONNX graph, without its functions."""
    import onnx

    return len(onnx.load(graph, load_external_data=False).graph.node)


def measure(member: str, folder: Path) -> dict[str, Any]:
    """Build text, conditioner and denoiser in a child process."""
    # In a child: a process's peak memory is at least that of the one it was started from.
    made = subprocess.run(
        [sys.executable, __file__, "--sparse", folder, "--members", member], capture_output=True, check=True
    )
    counts = json.loads(made.stdout)
    bundle, log = folder / "bundle", folder / "build.log"
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "build"]
    command += [str(folder / f"flux-2-{member}.safetensors"), "--text-encoders", str(folder / "text_encoder")]
    command += ["--out", str(bundle), "--precision", "bf16", "--stages", "text,conditioner,denoiser"]
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
    parser.add_argument("--members", default=",".join(SIZES))
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
    write(args.out / "full_size_flux2.json", {**describe(), "members": found})


if __name__ == "__main__":
    main()
