"""A small FLUX.2 in the forms in which people have it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from quantised_tensors import E4M3, quantised
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux2.names import transformer_from_diffusers
from flux_trt.exporter.families.flux2.params import flux2_params

Tensors = dict[str, torch.Tensor]
LARGE = ("qkv.weight", "proj.weight", "mlp.0.weight", "mlp.2.weight", "linear1.weight", "linear2.weight")


def bfl(folder: Path) -> Tensors:
    """The transformer of a diffusers folder under BFL's names."""
    part = open_checkpoint(str(folder)).parts["transformer"]
    p = flux2_params(part)
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    return {name: recipe.load(part.tensors) for name, recipe in recipes.items()}


def fp8(tensors: Tensors, inputs: bool = True) -> tuple[Tensors, Tensors]:
    """As the official fp8 files: E4M3 in the blocks, a scale and an input's scale; and the numbers."""
    found: Tensors = {}
    numbers: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith(LARGE):
            found[name] = numbers[name] = tensor
            continue
        codes, scale = quantised(tensor, E4M3, rows=False)
        found |= {name: codes, f"{name}_scale": scale}
        if inputs:
            found[f"{name.removesuffix('weight')}input_scale"] = torch.rand(()) / 50 + 0.01
        numbers[name] = codes.float() * scale
    return found, numbers


def old_spelling(tensors: Tensors) -> Tensors:
    """ComfyUI's older names of the same scales."""
    renamed = {
        name.replace(".weight_scale", ".scale_weight").replace(".input_scale", ".scale_input"): tensor
        for name, tensor in tensors.items()
    }
    return {**renamed, "scaled_fp8": torch.zeros(0, dtype=E4M3)}


def spelled_by_comfy(tensors: Tensors) -> Tensors:
    """`query_norm.weight` for `query_norm.scale`."""
    return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in tensors.items()}


def prefixed(tensors: Tensors, prefix: str = "model.diffusion_model.") -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def official_metadata(tensors: Tensors) -> dict[str, str]:
    layers = {
        name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"}
        for name in tensors
        if name.endswith("weight_scale")
    }
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def bfl_vae(folder: Path) -> Tensors:
    """The VAE under the names of BFL's ae.safetensors: the inverse of diffusers' conversion."""
    found: Tensors = {}
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down_blocks."))
    for name, tensor in state.items():
        words = name
        if words.startswith("bn."):
            found[words] = tensor
            continue
        if words.startswith("quant_conv."):
            words = f"encoder.{words}"
        elif words.startswith("post_quant_conv."):
            words = f"decoder.{words}"
        for level in range(levels):
            words = words.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            words = words.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        for theirs, ours in (
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
            ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
            ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
            ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
            ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
            (".resnets.", ".block."),
            (".downsamplers.0.", ".downsample."),
            (".upsamplers.0.", ".upsample."),
            (".conv_shortcut.", ".nin_shortcut."),
            (".conv_norm_out.", ".norm_out."),
        ):
            words = words.replace(theirs, ours)
        found[words] = tensor[..., None, None] if ".attn_1." in words and tensor.ndim == 2 else tensor
    return found


def encoder(folder: Path, prefix: str = "") -> Tensors:
    """The text encoder's tensors, as ComfyUI's loose files have them."""
    found: Tensors = {}
    for file in (folder / "text_encoder").glob("*.safetensors"):
        found |= load_file(file)
    return {prefix + name: tensor for name, tensor in found.items()}
