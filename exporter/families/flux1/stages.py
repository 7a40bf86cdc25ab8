"""The transformer's two stages: inputs, outputs, and what each needs on the way."""

from __future__ import annotations

from functools import partial

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
from flux_trt.exporter.families.flux1.params import FluxParams, recipes_of
from flux_trt.exporter.families.stage import Stage, Varying, f32

BLOCKS = ("double_blocks", "single_blocks")


def conditioner_stage(part: Part, p: FluxParams) -> Stage:
    """All that depends on times, guidance and text alone, for all steps at once."""
    return Stage(
        name="conditioner",
        part="transformer",
        build=partial(Conditioner, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("timesteps", "steps"),
            f32("pooled", "batch", p.vec_in_dim),
            f32("text", "batch", "text", p.context_in_dim),
            *([f32("guidance", "batch")] if p.guidance_embed else []),
        ],
        outputs=[
            f32("modulation", "steps", "batch", p.modulation_rows, p.hidden_size),
            f32("context", "batch", "text", p.hidden_size),
        ],
        dims={"steps": Varying(example=3), "batch": Varying(example=2), "text": Varying(example=6)},
        config=vars(p),
        runs="schedule",
        blocks=BLOCKS,
        fp8_layers=("",),
    )


def denoiser_stage(part: Part, p: FluxParams) -> Stage:
    """One step of the picture's latents."""
    condition = p.in_channels - p.out_channels
    return Stage(
        name="denoiser",
        part="transformer",
        build=partial(Denoiser, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("latents", "batch", "tokens", p.out_channels),
            f32("dt", "batch", "tokens", 1),
            f32("context", "batch", "text", p.hidden_size),
            f32("modulation", "batch", p.modulation_rows, p.hidden_size),
            f32("cos", "sequence", p.head_dim // 2),
            f32("sin", "sequence", p.head_dim // 2),
            *([f32("condition", "batch", "tokens", condition)] if condition else []),
        ],
        outputs=[
            f32("next_latents", "batch", "tokens", p.out_channels),
            f32("velocity", "batch", "tokens", p.out_channels),
        ],
        dims={
            "batch": Varying(example=2),
            "tokens": Varying(example=10),
            "text": Varying(example=6),
            "sequence": Varying(example=16, free=True, rule="text + tokens"),
        },
        config=vars(p),
        runs="step",
        blocks=BLOCKS,
        fp8_layers=("double_blocks.", "single_blocks."),
        in_fp8=True,
        fp8_attention=True,
    )
