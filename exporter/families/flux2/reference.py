"""diffusers' and transformers' models as the oracle of every stage.

Nothing here uses this project's modules: BFL's names are converted by diffusers' own code, the modulation is
read off diffusers' modules, and the taps are transformers' hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from torch import Tensor, nn
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.encoder import FRONT, tower_of
from flux_trt.exporter.families.flux2.params import flux2_params
from flux_trt.exporter.families.flux2.variants import MISTRAL3
from flux_trt.exporter.families.language import Language
from flux_trt.exporter.families.oracle import BATCH, GRID, TEXT, Case, Values, opened, state

STEPS = 3
REFERENCES = ((2, 3), (4, 2))
"""Rows and columns of two reference pictures."""


def transformer(part: Part) -> tuple[Flux2Transformer2DModel, str]:
    """diffusers' Flux2Transformer2DModel with the checkpoint's weights in float32, and who read them."""
    return opened(Flux2Transformer2DModel, part, "diffusers", lambda: _filled(part))


def _filled(part: Part) -> Flux2Transformer2DModel:
    p = flux2_params(part)
    model = Flux2Transformer2DModel(
        in_channels=p.in_channels,
        num_layers=p.depth,
        num_single_layers=p.depth_single_blocks,
        attention_head_dim=p.head_dim,
        num_attention_heads=p.num_heads,
        joint_attention_dim=p.context_in_dim,
        mlp_ratio=p.mlp_ratio,
        axes_dims_rope=p.axes_dim,
        rope_theta=int(p.theta),
        guidance_embeds=p.guidance_embed,
    )
    found = state(part)
    if part.naming == "bfl":
        found = convert_flux2_transformer_checkpoint_to_diffusers(found)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return model


def text_case(part: Part, language: Language) -> Case:
    """transformers' hidden states of random ids, some of which are padding, on either side."""
    p = tower_of(part, language)
    mistral = language is MISTRAL3
    kind = Mistral3ForConditionalGeneration if mistral else Qwen3ForCausalLM

    def fill() -> nn.Module:
        config = dict(part.config) or _config(part, language)
        model = kind((Mistral3Config if mistral else Qwen3Config)(**config))
        named = {FRONT.sub("", name): tensor for name, tensor in state(part).items()}
        inside = model.model.language_model if mistral else model.model
        missing, _ = inside.load_state_dict({n: t.float() for n, t in named.items()}, strict=False)
        if wanting := [name for name in missing if name != "norm.weight"]:
            raise RuntimeError(f"{wanting[0]} is not filled")
        return model

    model, oracle = opened(kind, part, "transformers", fill)
    ids = torch.randint(p.vocab_size // 2, (BATCH, TEXT))
    mask = torch.ones(BATCH, TEXT, dtype=torch.int64)
    mask[0, TEXT // 2 :] = 0
    mask[1, : TEXT // 3] = 0
    found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    text = torch.cat([found.hidden_states[tap] for tap in p.taps], dim=-1)
    return Case({"ids": ids, "mask": mask}, {"text": text}, oracle)


def _config(part: Part, language: Language) -> dict[str, Any]:
    """transformers' config of a file that has none; one layer more, since the last one's output is normed."""
    p = tower_of(part, language)
    numbers = [int(name.split(".")[1]) for name in map(_bare, part.tensors) if name.startswith("layers.")]
    text = {
        "vocab_size": p.vocab_size,
        "hidden_size": p.hidden_size,
        "intermediate_size": p.intermediate_size,
        "num_hidden_layers": max(numbers) + 1,
        "num_attention_heads": p.heads,
        "num_key_value_heads": p.kv_heads,
        "head_dim": p.head_dim,
        "rms_norm_eps": p.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": p.theta},
    }
    return {"text_config": {**text, "model_type": "mistral"}} if language is MISTRAL3 else text


def _bare(name: str) -> str:
    return FRONT.sub("", name)


@dataclass(frozen=True)
class _Step:
    """Random conditioning, and what diffusers' modules make of it for every step."""

    model: Flux2Transformer2DModel
    inputs: Values
    modulation: Tensor
    """[S, B, 17, D]."""
    context: Tensor
    clean: Tensor
    """[9, D], of reference pictures."""
    oracle: str


def _step(part: Part) -> _Step:
    (model, oracle), p = transformer(part), flux2_params(part)
    inputs = {
        "timesteps": torch.linspace(1, 0.2, STEPS),
        "text": torch.randn(BATCH, TEXT, p.context_in_dim),
    }
    if p.guidance_embed:
        inputs["guidance"] = torch.linspace(1.5, 4.0, BATCH)
    rows = torch.stack([_modulation(model, t, inputs.get("guidance")) for t in inputs["timesteps"]])
    clean = _modulation(model, torch.zeros(()), inputs.get("guidance"))[0]
    clean = torch.cat([clean[:6], clean[12:15]])
    return _Step(model, inputs, rows, model.context_embedder(inputs["text"]), clean, oracle)


def _modulation(model: Flux2Transformer2DModel, t: Tensor, guidance: Tensor | None) -> Tensor:
    """[B, 17, D]: each modulation's own linear layer on diffusers' time embedding."""
    told = None if guidance is None else guidance * 1000
    vec = model.time_guidance_embed(t.expand(BATCH) * 1000, told)
    scale, shift = model.norm_out.linear(nn.functional.silu(vec)).chunk(2, dim=-1)
    rows = [
        model.double_stream_modulation_img(vec),
        model.double_stream_modulation_txt(vec),
        model.single_stream_modulation(vec),
        shift,
        scale,
    ]
    return torch.cat([row.view(BATCH, -1, vec.shape[-1]) for row in rows], dim=1)


def conditioner_case(part: Part, cached: bool) -> Case:
    """Modulation and context of random text at three noise levels."""
    step = _step(part)
    expected = {"modulation": step.modulation, "context": step.context}
    return Case(step.inputs, expected | ({"reference_modulation": step.clean} if cached else {}), step.oracle)


def _ids(grid: tuple[int, int], t: int = 0) -> Tensor:
    return torch.cartesian_prod(
        torch.tensor([t]), torch.arange(grid[0]), torch.arange(grid[1]), torch.arange(1)
    )


def _text_ids() -> Tensor:
    return torch.nn.functional.pad(torch.arange(TEXT)[:, None], (3, 0))


def _reference_ids() -> Tensor:
    return torch.cat([_ids(grid, 10 + 10 * k) for k, grid in enumerate(REFERENCES)])


def _cached(step: _Step, latents: Tensor, references: Tensor) -> tuple[Tensor, Any]:
    """The velocity and the cache that diffusers keeps of a first step with reference pictures."""
    for block in step.model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in step.model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    return step.model(
        hidden_states=torch.cat([references, latents], dim=1),
        encoder_hidden_states=step.inputs["text"],
        timestep=step.inputs["timesteps"][1].expand(BATCH),
        img_ids=torch.cat([_reference_ids(), _ids(GRID)]),
        txt_ids=_text_ids(),
        guidance=step.inputs.get("guidance"),
        return_dict=False,
        kv_cache_mode="extract",
        num_ref_tokens=references.shape[1],
    )


def _kept(cache: Any) -> Values:
    """keys and values [B, N, H, R, E], double blocks first."""
    layers = [*cache.double_block_caches, *cache.single_block_caches]
    found = {"keys": [each.get()[0] for each in layers], "values": [each.get()[1] for each in layers]}
    return {name: torch.stack(each, 1).transpose(2, 3) for name, each in found.items()}


def references_case(part: Part) -> Case:
    """The cache that diffusers' KV processors keep of two random reference pictures."""
    step, p = _step(part), flux2_params(part)
    tokens = sum(rows * columns for rows, columns in REFERENCES)
    references = torch.randn(BATCH, tokens, p.in_channels)
    latents = torch.randn(BATCH, GRID[0] * GRID[1], p.in_channels)
    _, cache = _cached(step, latents, references)
    cos, sin = step.model.pos_embed(_reference_ids())
    inputs = {
        "reference_latents": references,
        "reference_cos": cos[:, ::2].float(),
        "reference_sin": sin[:, ::2].float(),
        "reference_modulation": step.clean,
    }
    return Case(inputs, _kept(cache), step.oracle)


def denoiser_case(part: Part, cached: bool) -> Case:
    """One step of random latents; of the member that keeps them, with two reference pictures."""
    step, p, tokens = _step(part), flux2_params(part), GRID[0] * GRID[1]
    latents = torch.randn(BATCH, tokens, p.in_channels)
    dt = -torch.rand(BATCH, tokens, 1)
    cos, sin = step.model.pos_embed(torch.cat([_text_ids(), _ids(GRID)]))
    known: Values = {}
    if cached:
        many = sum(rows * columns for rows, columns in REFERENCES)
        velocity, cache = _cached(step, latents, torch.randn(BATCH, many, p.in_channels))
        known = _kept(cache)
    else:
        velocity = step.model(
            hidden_states=latents,
            encoder_hidden_states=step.inputs["text"],
            timestep=step.inputs["timesteps"][1].expand(BATCH),
            img_ids=_ids(GRID),
            txt_ids=_text_ids(),
            guidance=step.inputs.get("guidance"),
        ).sample
    inputs = {
        "latents": latents,
        "dt": dt,
        "context": step.context,
        "modulation": step.modulation[1],
        "cos": cos[:, ::2].float(),
        "sin": sin[:, ::2].float(),
        **known,
    }
    return Case(inputs, {"next_latents": latents + dt * velocity, "velocity": velocity}, step.oracle)
