"""diffusers' FluxTransformer2DModel as the oracle of the conditioner and the denoiser.

Nothing here uses this project's transformer: a BFL file of FLUX.1's width is converted by diffusers' own
code, and the modulation is read off diffusers' modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from torch import Tensor, nn

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import SwapHalves
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.exporter.families.flux1.params import FluxParams, flux_params
from flux_trt.exporter.families.lora_oracle import with_loras
from flux_trt.exporter.families.oracle import BATCH, GRID, TEXT, Case, Values, opened, state
from flux_trt.runtime.lora.term import Term

STEPS = 3
OWN_AXES = (16, 56, 56)
"""diffusers' default of `axes_dims_rope`."""


def transformer(part: Part) -> tuple[FluxTransformer2DModel, str]:
    """diffusers' FluxTransformer2DModel with the checkpoint's weights in float32, and who read them.

    A part with LoRAs gets them from diffusers where it reads them.

    diffusers itself cannot open a config without `axes_dims_rope` whose heads are not FLUX.1's own.
    """
    if part.plain is not None:
        modules = lora_modules(flux_params(part))
        return with_loras("transformer", part, transformer, transformer_of_tensors, modules)
    if part.folder and not part.config.get("axes_dims_rope") and flux_params(part).axes_dim != OWN_AXES:
        part = replace(part, folder=None)
    return opened(FluxTransformer2DModel, part, "diffusers", lambda: _filled(part))


def transformer_of_tensors(part: Part) -> tuple[FluxTransformer2DModel, str]:
    """The same of the tensors that a part has, whoever made them."""
    return opened(FluxTransformer2DModel, replace(part, folder=None), "diffusers", lambda: _filled(part))


def lora_modules(p: FluxParams) -> Callable[[Term], list[str]]:
    """What finds the modules of diffusers that a term changes."""
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)

    def found(term: Term) -> list[str]:
        names = recipes[term.parameter].names
        if term.place.rows is not None and len(names) > 1:
            sides = [p.hidden_size] * 3 + [p.mlp_hidden_dim] * (len(names) - 3)
            starts = [sum(sides[:i]) for i in range(len(names))]
            first, last = term.place.rows
            names = tuple(name for name, start in zip(names, starts, strict=True) if first <= start < last)
        return [name.rpartition(".")[0] for name in names]

    return found


def _filled(part: Part) -> FluxTransformer2DModel:
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
    found = state(part)
    if part.naming == "bfl":
        found = _from_bfl(found, p, {name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return model


def _from_bfl(theirs: Values, p: FluxParams, shapes: Mapping[str, torch.Size]) -> Values:
    """diffusers' names for BFL's tensors: by its own converter, which knows FLUX.1's width only."""
    if (p.hidden_size, p.mlp_ratio) == (3072, 4.0):
        return convert_flux_transformer_checkpoint_to_diffusers(theirs)
    found: Values = {}
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    for ours, recipe in recipes.items():
        tensor = torch.cat(theirs[ours].chunk(2)[::-1]) if isinstance(recipe, SwapHalves) else theirs[ours]
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
    oracle: str


def _step(part: Part) -> _Step:
    (model, oracle), p = transformer(part), flux_params(part)
    inputs = {
        "timesteps": torch.linspace(1, 0.2, STEPS),
        "pooled": torch.randn(BATCH, p.vec_in_dim),
        "text": torch.randn(BATCH, TEXT, p.context_in_dim),
    }
    if p.guidance_embed:
        inputs["guidance"] = torch.linspace(1.5, 3.5, BATCH)
    rows = torch.stack([_modulation(model, t, inputs) for t in inputs["timesteps"]])
    return _Step(model, p, inputs, rows, model.context_embedder(inputs["text"]), oracle)


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


def conditioner_case(part: Part) -> Case:
    """Modulation and context of random text at three noise levels."""
    step = _step(part)
    return Case(step.inputs, {"modulation": step.modulation, "context": step.context}, step.oracle)


def denoiser_case(part: Part) -> Case:
    """One step of random latents."""
    step = _step(part)
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
    return Case(inputs, {"next_latents": latents + dt * velocity, "velocity": velocity}, step.oracle)
