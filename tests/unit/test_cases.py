"""Checkpoints in the forms that people have, end to end: the picture is that of the plain checkpoint.

Each row is made from examples/flux-nano, of a form that was seen in a public thread. Wrong weights give
pictures of 4 to 16 dB.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import t5_gguf as t5
import torch
from checkpoints import NANO, write_bfl
from gguf import GGMLQuantizationType as Kind
from quantised_tensors import E4M3, E5M2, MADE, Tensors, note, quantised
from safetensors.torch import load_file, save_file

from flux_trt.exporter.build import build
from flux_trt.runtime import Pipeline

PROMPT = "a red circle at the top left on a white background"
SAME = math.inf
BLOCK = 64
"""Numbers with one scale in bitsandbytes' four bits."""
Beside = dict[str, Any]


def picture(bundle: Path) -> np.ndarray:
    with Pipeline.load(bundle, "onnxruntime") as pipeline:
        (found,) = pipeline.generate(PROMPT, size=(64, 64), steps=4, guidance=1.0, seed=7)
    return np.asarray(found).astype(float)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = np.mean((found - wanted) ** 2)
    return SAME if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def plain(bundle: Callable[..., Path]) -> np.ndarray:
    return picture(bundle("flux-nano"))


def part(folder: Path, sub: str) -> Path:
    return next((folder / sub).glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def matrices(tensors: Tensors) -> list[str]:
    """The weights of linear layers: what converters quantise."""
    kept = ("shared", "embed_tokens", "relative_attention_bias", "embeddings")
    return [
        name
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.endswith(".weight") and not any(word in name for word in kept)
    ]


def scaled(tensors: Tensors, spelling: str, prefix: str = "") -> Tensors:
    """As ComfyUI writes scaled fp8: `old` names, `new` names with a note each, or `uint8` codes."""
    made = dict(tensors)
    for name in matrices(tensors):
        layer = name.removesuffix(".weight")
        codes, scale = quantised(tensors[name].float(), E4M3, rows=False)
        made[name] = codes.view(torch.uint8) if spelling == "uint8" else codes
        if spelling == "new":
            made[f"{layer}.weight_scale"], made[f"{layer}.input_scale"] = scale, torch.tensor(0.5)
            made[f"{layer}.comfy_quant"] = note({"format": "float8_e4m3fn"})
        else:
            made[f"{layer}.scale_weight"], made[f"{layer}.scale_input"] = scale, torch.tensor(1.0)
    if spelling != "new":
        made[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    return made


def four_bits(tensors: Tensors, names: Iterable[str]) -> Tensors:
    """As bitsandbytes packs NF4: the nearest level times a block's largest; the first in the high bits."""
    levels = load_file(MADE / "bitsandbytes.safetensors")["nf4.weight.quant_map"]
    made = dict(tensors)
    for name in names:
        flat = tensors[name].float().flatten()
        assert flat.numel() % BLOCK == 0
        absmax = flat.view(-1, BLOCK).abs().amax(1)
        codes = (
            ((flat.view(-1, BLOCK) / absmax[:, None])[..., None] - levels).abs().argmin(-1).flatten().byte()
        )
        state = {
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": "float16",
            "shape": list(tensors[name].shape),
        }
        made[name] = (codes[::2] << 4 | codes[1::2])[:, None]
        made |= {f"{name}.absmax": absmax, f"{name}.quant_map": levels.clone()}
        made[f"{name}.quant_state.bitsandbytes__nf4"] = note(state)
    return made


def change_t5(change: Callable[[Tensors], Tensors]) -> Callable[[Path], Beside]:
    def make(folder: Path) -> Beside:
        rewrite(part(folder, "text_encoder_2"), change)
        return {"source": folder}

    return make


def single_file(change: Callable[[Tensors], Tensors], prefix: str = "") -> Callable[[Path], Beside]:
    """BFL's names; the rest is brought beside it."""

    def make(folder: Path) -> Beside:
        file = write_bfl(folder, folder / "flux1-dev.safetensors", prefix)
        shutil.rmtree(folder / "transformer")
        rewrite(file, change)
        return beside(folder, file)

    return make


def beside(folder: Path, file: Path) -> Beside:
    """flux-nano was trained as a Kontext, which no single file says."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return {
        "source": file,
        "text_encoders": folder,
        "vae": folder / "vae",
        "scheduler": scheduler,
        "variant": "kontext",
    }


def official_config(folder: Path) -> Beside:
    """As FLUX.1-dev's own, written when diffusers knew no such entries."""
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["axes_dims_rope"], config["out_channels"]
    path.write_text(json.dumps(config))
    return {"source": folder}


def cast(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    """Everything, biases and norms too, as Kijai's files."""
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def mixed(folder: Path) -> Beside:
    """fp8 in some parts of what BFL has in one tensor."""
    picked = ("to_q.weight", "to_v.weight", "add_k_proj.weight", "proj_mlp.weight", "norm.linear.weight")

    def change(tensors: Tensors) -> Tensors:
        return {name: t.to(E4M3) if name.endswith(picked) else t for name, t in tensors.items()}

    rewrite(part(folder, "transformer"), change)
    return {"source": folder}


def newer_norms(tensors: Tensors) -> Tensors:
    return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in tensors.items()}


def q8_0(folder: Path) -> Beside:
    """As city96's FLUX.1 files: matrices in Q8_0, all else in F32."""
    file = write_bfl(folder, folder / "flux1-dev.safetensors")
    writer = gguf.GGUFWriter(folder / "flux1-dev-Q8_0.gguf", "flux")
    for name, tensor in load_file(file).items():
        kind = Kind.Q8_0 if tensor.ndim == 2 else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return beside(folder, folder / "flux1-dev-Q8_0.gguf")


def encoders_with_extras(folder: Path) -> Beside:
    """T5 with its decoder and head and `shared.weight` alone; CLIP as published."""

    def whole_t5(tensors: Tensors) -> Tensors:
        shared = tensors.pop("encoder.embed_tokens.weight", None)
        tensors.setdefault("shared.weight", shared)
        again = {
            name.replace("encoder.", "decoder."): t
            for name, t in tensors.items()
            if name.startswith("encoder.")
        }
        return {
            **tensors,
            **{name: t.clone() for name, t in again.items()},
            "lm_head.weight": torch.ones(138, 128),
        }

    def published_clip(tensors: Tensors) -> Tensors:
        named = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors.items()}
        named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        return {**named, "text_projection.weight": torch.ones(64, 64)}

    rewrite(part(folder, "text_encoder_2"), whole_t5)
    rewrite(part(folder, "text_encoder"), published_clip)
    return {"source": folder}


def t5_gguf(folder: Path) -> Beside:
    """llama.cpp's names. The folder's tokenizer stays: it alone says that flux-nano's prompts are short."""
    tensors = t5.llama_names(load_file(part(folder, "text_encoder_2")))
    file = t5.write(folder / "t5.gguf", t5.nano_vocabulary(folder), 0, tensors)
    shutil.rmtree(folder / "text_encoder_2")
    return {"source": folder, "t5": file}


@dataclass(frozen=True)
class Row:
    """A form, and how near its picture comes."""

    name: str
    make: Callable[[Path], Beside]
    measured: float
    """dB, with the seed of `picture`, on an x86 CPU."""
    least: float
    """What any machine must reach."""
    fast: bool = False


PREFIX = "model.diffusion_model."
ROWS = [
    Row("official config", official_config, SAME, SAME, fast=True),
    Row("T5 scaled fp8, old", change_t5(lambda t: scaled(t, "old")), 58.8, 50),
    Row("T5 scaled fp8, new", change_t5(lambda t: scaled(t, "new")), 58.8, 50),
    Row("T5 scaled fp8, uint8", change_t5(lambda t: scaled(t, "uint8")), 58.8, 50, fast=True),
    Row("T5 NF4", change_t5(lambda t: four_bits(t, matrices(t))), 39.9, 34),
    Row(
        "transformer NF4, blocks",
        single_file(lambda t: four_bits(t, [name for name in matrices(t) if "_blocks." in name])),
        40.0,
        34,
    ),
    Row("transformer NF4, everywhere", single_file(lambda t: four_bits(t, matrices(t)), PREFIX), 37.5, 32),
    Row(
        "transformer scaled fp8, old",
        single_file(lambda t: scaled(t, "old", PREFIX), PREFIX),
        52.2,
        45,
        fast=True,
    ),
    Row("transformer scaled fp8, new", single_file(lambda t: scaled(t, "new")), 52.2, 45),
    Row("transformer cast to E4M3", single_file(cast(E4M3)), 49.5, 43),
    Row("transformer cast to E5M2", single_file(cast(E5M2)), 43.4, 38),
    Row("transformer in parts fp8", mixed, 53.4, 46),
    Row("query_norm.weight", single_file(newer_norms), SAME, SAME),
    Row("transformer GGUF Q8_0", q8_0, 62.0, 54),
    Row("T5 GGUF F32", t5_gguf, SAME, SAME),
    Row("encoders with extras", encoders_with_extras, SAME, SAME, fast=True),
]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=() if row.fast else pytest.mark.slow) for row in ROWS]
)
def test_the_picture_is_that_of_the_plain_checkpoint(
    row: Row, bundle: Callable[..., Path], plain: np.ndarray, tmp_path: Path
) -> None:
    out = shutil.copytree(bundle("flux-nano"), tmp_path / "bundle")  # what does not change is reused
    folder = tmp_path / "checkpoint"
    shutil.copytree(NANO, folder, ignore=shutil.ignore_patterns("nano", "*.png", "*.jsonl", "scores"))
    asked = row.make(folder)
    lines: list[str] = []
    build(str(asked.pop("source")), out, tell=lines.append, **asked)
    assert any("reused" in line for line in lines)
    found = psnr(picture(out), plain)
    assert found >= row.least, f"{found:.1f} dB; {row.measured} dB were measured"
