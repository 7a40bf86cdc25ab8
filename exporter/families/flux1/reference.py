"""The public implementations as oracles: transformers and diffusers, in float32, on the same weights.

Nothing here uses this project's transformer: a BFL file of FLUX.1's width is converted by diffusers' own
code, and the modulation is read off diffusers' modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.recipe import SwapHalves
from flux_trt.exporter.families.flux1.names import (
    BFL_PREFIXES,
    text_encoder,
    transformer_from_diffusers,
)
from flux_trt.exporter.families.flux1.params import FluxParams, flux_params
from flux_trt.exporter.families.vae import config_from_bfl
from flux_trt.runtime.bundle.manifest import StageName

Values = dict[str, Tensor]
SEED = 0
STEPS, BATCH, TEXT, GRID = 3, 2, 20, (3, 5)


@dataclass(frozen=True)
class Case:
    """Inputs of a stage, by their names, and what the oracle makes of them."""

    inputs: Values
    expected: Values


def case(stage: StageName, checkpoint: Checkpoint) -> Case:
    """A seeded case for a stage. Needs the stage's part in memory, in float32."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return _CASES[stage](checkpoint)


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model.float().eval()


def _state(part: Part) -> Values:
    return {name: info.read() for name, info in part.tensors.items()}


def _text_state(part: Part) -> Values:
    return {name: recipe.load(part.tensors) for name, recipe in text_encoder(part.tensors).items()}


def _clip(checkpoint: Checkpoint) -> Case:
    part = checkpoint.parts["clip"]
    model = _loaded(CLIPTextModel(CLIPTextConfig(**part.config)), _text_state(part))
    length, vocabulary = part.config["max_position_embeddings"], part.config["vocab_size"]
    ids = torch.randint(vocabulary // 2, (BATCH, length))
    ids[:, length // 3] = (
        part.config.get("eos_token_id", 2) if part.config.get("eos_token_id") != 2 else vocabulary - 1
    )
    return Case({"ids": ids}, {"pooled": model(ids).pooler_output})


def _t5(checkpoint: Checkpoint) -> Case:
    part = checkpoint.parts["t5"]
    model = _loaded(T5EncoderModel(T5Config(**part.config)), _text_state(part))
    ids = torch.randint(part.config["vocab_size"], (BATCH, TEXT))
    return Case({"ids": ids}, {"text": model(ids).last_hidden_state})


def transformer(part: Part) -> FluxTransformer2DModel:
    """diffusers' FluxTransformer2DModel with the checkpoint's weights in float32."""
    p = flux_params(part)
    model = FluxTransformer2DModel(
        in_channels=p.in_channels,
        out_channels=p.out_channels,
        num_layers=p.depth,
        num_single_layers=p.depth_single_blocks,
        attention_head_dim=p.head_dim,
        num_attention_heads=p.num_heads,
        joint_attention_dim=p.context_in_dim,
        pooled_projection_dim=p.vec_in_dim,
        guidance_embeds=p.guidance_embed,
        axes_dims_rope=p.axes_dim,
    )
    state = _state(part)
    if part.naming == "bfl":
        state = _from_bfl(state, p, {name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def _from_bfl(state: Values, p: FluxParams, shapes: Mapping[str, torch.Size]) -> Values:
    """diffusers' names for BFL's tensors: by its own converter, which knows FLUX.1's width only."""
    state = {name.removeprefix(BFL_PREFIXES[1]): tensor for name, tensor in state.items()}
    if (p.hidden_size, p.mlp_ratio) == (3072, 4.0):
        return convert_flux_transformer_checkpoint_to_diffusers(state)
    found: Values = {}
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    for ours, recipe in recipes.items():
        tensor = torch.cat(state[ours].chunk(2)[::-1]) if isinstance(recipe, SwapHalves) else state[ours]
        parts = tensor.split([shapes[name][0] for name in recipe.names])
        found |= dict(zip(recipe.names, parts, strict=True))
    return found


@dataclass(frozen=True)
class _Step:
    """Random conditioning, and what diffusers' modules make of it for every step."""

    model: FluxTransformer2DModel
    params: FluxParams
    inputs: Values
    modulation: Tensor
    context: Tensor


def _step(checkpoint: Checkpoint) -> _Step:
    part = checkpoint.parts["transformer"]
    model, p = transformer(part), flux_params(part)
    inputs = {
        "timesteps": torch.linspace(1, 0.2, STEPS),
        "pooled": torch.randn(BATCH, p.vec_in_dim),
        "text": torch.randn(BATCH, TEXT, p.context_in_dim),
    }
    if p.guidance_embed:
        inputs["guidance"] = torch.linspace(1.5, 3.5, BATCH)
    rows = torch.stack([_modulation(model, t, inputs) for t in inputs["timesteps"]])
    return _Step(model, p, inputs, rows, model.context_embedder(inputs["text"]))


def _modulation(model: FluxTransformer2DModel, t: Tensor, inputs: Values) -> Tensor:
    """[B, M, D]: each block's own linear layer on diffusers' time-text embedding."""
    time = t.expand(BATCH) * 1000
    guidance = [inputs["guidance"] * 1000] if "guidance" in inputs else []
    vec = nn.functional.silu(model.time_text_embed(time, *guidance, inputs["pooled"]))
    D = vec.shape[-1]
    rows: list[Tensor] = []
    for block in model.transformer_blocks:
        rows += [block.norm1.linear(vec), block.norm1_context.linear(vec)]
    rows += [block.norm.linear(vec) for block in model.single_transformer_blocks]
    scale, shift = model.norm_out.linear(vec).chunk(2, dim=-1)
    return torch.cat([row.view(BATCH, -1, D) for row in (*rows, shift, scale)], dim=1)


def _conditioner(checkpoint: Checkpoint) -> Case:
    step = _step(checkpoint)
    return Case(step.inputs, {"modulation": step.modulation, "context": step.context})


def _denoiser(checkpoint: Checkpoint) -> Case:
    step = _step(checkpoint)
    p, tokens = step.params, GRID[0] * GRID[1]
    y, x = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    ids = torch.stack([torch.zeros(tokens), y.flatten(), x.flatten()], dim=1)
    txt_ids = torch.zeros(TEXT, 3)
    cos, sin = step.model.pos_embed(torch.cat([txt_ids, ids]))
    latents = torch.randn(BATCH, tokens, p.out_channels)
    condition = torch.randn(BATCH, tokens, p.in_channels - p.out_channels)
    dt = -torch.rand(BATCH, tokens, 1)
    velocity = step.model(
        hidden_states=torch.cat([latents, condition], dim=-1),
        encoder_hidden_states=step.inputs["text"],
        pooled_projections=step.inputs["pooled"],
        timestep=step.inputs["timesteps"][1].expand(BATCH),
        img_ids=ids,
        txt_ids=txt_ids,
        guidance=step.inputs.get("guidance"),
    ).sample
    inputs = {
        "latents": latents,
        "dt": dt,
        "context": step.context,
        "modulation": step.modulation[1],
        "cos": cos[:, ::2].float(),
        "sin": sin[:, ::2].float(),
        **({"condition": condition} if condition.shape[-1] else {}),
    }
    return Case(inputs, {"next_latents": latents + dt * velocity, "velocity": velocity})


def _vae(part: Part) -> AutoencoderKL:
    config: dict[str, Any] = dict(part.config) or config_from_bfl(part.tensors)
    model, state = AutoencoderKL.from_config(config), _state(part)
    if part.naming == "bfl":
        state = convert_ldm_vae_checkpoint(state, config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def _pack(z: Tensor) -> Tensor:
    B, C, H, W = z.shape
    return z.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H // 2, W // 2, 4 * C)


def _vae_encoder(checkpoint: Checkpoint) -> Case:
    model = _vae(checkpoint.parts["vae"])
    image = torch.randint(256, (BATCH, 16 * GRID[0], 16 * GRID[1], 3)).float()
    seen = model.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    scaled = (seen.mode() - (model.config.shift_factor or 0)) * model.config.scaling_factor
    deviation = seen.std * model.config.scaling_factor
    return Case({"image": image}, {"latents": _pack(scaled), "deviation": _pack(deviation)})


def _vae_decoder(checkpoint: Checkpoint) -> Case:
    model = _vae(checkpoint.parts["vae"])
    scaled = torch.randn(BATCH, model.config.latent_channels, 2 * GRID[0], 2 * GRID[1])
    z = scaled / model.config.scaling_factor + (model.config.shift_factor or 0)
    pixels = ((model.decode(z).sample / 2 + 0.5).clamp(0, 1) * 255).round()
    return Case({"latents": _pack(scaled)}, {"image": pixels.permute(0, 2, 3, 1)})


_CASES: dict[StageName, Callable[[Checkpoint], Case]] = {
    "clip": _clip,
    "t5": _t5,
    "conditioner": _conditioner,
    "denoiser": _denoiser,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
}
