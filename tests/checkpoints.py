"""Small FLUX.1 checkpoints with seeded random weights, in diffusers' and in BFL's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.exporter.families.flux1.params import flux_params
from nano import forms

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"


def write_random(
    folder: Path,
    *,
    heads: int,
    axes: tuple[int, int, int],
    depth: int,
    single: int,
    guidance: bool,
    in_channels: int = 64,
    pipeline: str = "FluxPipeline",
    seed: int = 0,
    clip_width: int = 48,
    clip_heads: int = 3,
) -> Path:
    """A whole diffusers folder; the tokenizers are flux-nano's. Nothing in it has a neutral value."""
    torch.manual_seed(seed)
    clip = CLIPTextConfig(
        vocab_size=700,
        hidden_size=clip_width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=clip_heads,
        bos_token_id=633,
        eos_token_id=634,
    )
    t5 = forms.t5(vocab_size=200, d_model=80, d_kv=16, d_ff=96, num_layers=2, num_heads=5)
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=64,
        num_layers=depth,
        num_single_layers=single,
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=80,
        pooled_projection_dim=clip_width,
        guidance_embeds=guidance,
        axes_dims_rope=axes,
    )
    vae = AutoencoderKL(**forms.vae((16, 32, 32, 48), 2, side=64, groups=8))
    models = {
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": T5EncoderModel(t5),
        "transformer": transformer,
        "vae": vae,
    }
    for name, model in models.items():
        _unsettle(model)
        model.save_pretrained(folder / name)
    forms.scheduler(dynamic=guidance).save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(NANO / name, folder / name)
    index = json.loads((NANO / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    return folder


def _unsettle(model: nn.Module) -> None:
    """Norms and biases leave their ones and zeros: a mapping that mixes them up would show nothing else."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)


def write_bfl(source: Path, target: Path, prefix: str = "") -> Path:
    """The transformer of a diffusers folder as one file with BFL's names."""
    part = open_checkpoint(str(source)).parts["transformer"]
    params = flux_params(part)
    recipes = transformer_from_diffusers(params.depth, params.depth_single_blocks, params.guidance_embed)
    save_file({prefix + name: recipe.load(part.tensors) for name, recipe in recipes.items()}, target)
    return target


def write_bfl_vae(target: Path, channels: int = 32, multiples: tuple[int, ...] = (1, 1, 2, 2)) -> Path:
    """A random VAE under the names and shapes of BFL's `ae.safetensors` (src/flux/modules/autoencoder.py)."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, into: int, out: int, size: int = 3) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, size, size) / (into * size * size) ** 0.5
        state[f"{name}.bias"] = torch.randn(out) / 10

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + torch.randn(width) / 10, torch.randn(width) / 10

    def res(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", into, out)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", into, out, 1)

    def middle(half: str, width: int) -> None:
        res(f"{half}.mid.block_1", width, width)
        norm(f"{half}.mid.attn_1.norm", width)
        for name in ("q", "k", "v", "proj_out"):
            conv(f"{half}.mid.attn_1.{name}", width, width, 1)
        res(f"{half}.mid.block_2", width, width)

    widths, last = [channels * m for m in multiples], len(multiples) - 1
    conv("encoder.conv_in", 3, channels)
    into = channels
    for level, width in enumerate(widths):
        for block in range(2):
            res(f"encoder.down.{level}.block.{block}", into, width)
            into = width
        if level != last:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", into)
    norm("encoder.norm_out", into)
    conv("encoder.conv_out", into, 32)
    conv("decoder.conv_in", 16, into)
    middle("decoder", into)
    for level, width in reversed(list(enumerate(widths))):
        for block in range(3):
            res(f"decoder.up.{level}.block.{block}", into, width)
            into = width
        if level != 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", into)
    conv("decoder.conv_out", into, 3)
    save_file(state, target)
    return target


def set_pipeline(folder: Path, name: str) -> None:
    """Change the pipeline class that `model_index.json` names."""
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))
