"""flux-nano's transformer as one file with Black Forest Labs' names, made byte by byte without the exporter.

In a safetensors file, tensors that are joined on their first axis are bytes that follow each other, so that
this needs no arithmetic and no library. The names follow diffusers' scripts/convert_flux_to_diffusers.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "flux-nano.safetensors"
TIMES = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
PLAIN = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
SWAPPED = "final_layer.adaLN_modulation.1"
"""Black Forest Labs have shift before scale."""
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def layers(config: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every layer of BFL's, and diffusers' that it is joined of."""
    found = PLAIN | {SWAPPED: "norm_out.linear"}
    for ours, theirs in TIMES.items():
        if theirs != "guidance_embedder" or config["guidance_embeds"]:
            for part, number in (("in_layer", 1), ("out_layer", 2)):
                found[f"{ours}.{part}"] = f"time_text_embed.{theirs}.linear_{number}"
    yield from ((ours, [theirs]) for ours, theirs in found.items())
    for blocks, their_blocks, names in (
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
    ):
        count = config["num_layers" if names is DOUBLE else "num_single_layers"]
        for index, (ours, theirs) in itertools.product(range(count), names.items()):
            yield f"{blocks}.{index}.{ours}", [f"{their_blocks}.{index}.{each}" for each in theirs.split()]


def write(transformer: Path, target: Path) -> Path:
    """Write `target` from diffusers' folder of a transformer that is in one file."""
    raw = (transformer / "diffusion_pytorch_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    old = json.loads(raw[8:start])
    new: dict[str, Any] = {}
    data = bytearray()
    for name, sources in layers(json.loads((transformer / "config.json").read_text())):
        for kind in ("weight", "bias"):
            parts = [old[f"{each}.{kind}"] for each in sources if f"{each}.{kind}" in old]
            if not parts:  # norms have no bias
                continue
            places = [slice(*(start + place for place in part["data_offsets"])) for part in parts]
            joined = b"".join(raw[place] for place in places)
            half = len(joined) // 2 if name == SWAPPED else 0
            first, rows = len(data), sum(part["shape"][0] for part in parts)
            data += joined[half:] + joined[:half]
            new[f"{name}.{kind}".replace("_norm.weight", "_norm.scale")] = {
                "dtype": parts[0]["dtype"],
                "shape": [rows, *parts[0]["shape"][1:]],
                "data_offsets": [first, len(data)],
            }
    head = json.dumps(new).encode()
    head += b" " * (-len(head) % 8)
    target.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return target
