"""The transformer's stages: inputs, outputs, and what each needs on the way."""

from __future__ import annotations

from functools import partial

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.flux3.model import Context, Denoiser, References, Time
from flux_trt.exporter.families.flux3.params import EARLY_ROWS, ROWS, Flux3Params, recipes_of
from flux_trt.exporter.families.stage import Stage, Varying, f32
from flux_trt.runtime.bundle.manifest import Tensor


def time_stage(part: Part, p: Flux3Params) -> Stage:
    """All modulation, of every step."""
    steps = ["steps"] if p.flow_map else []
    return Stage(
        name="time",
        part="transformer",
        build=partial(Time, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[f32("timesteps", "steps"), *([f32("targets", "steps")] if p.flow_map else [])],
        outputs=[
            f32("modulation", "steps", ROWS, p.hidden_size),
            f32("context_modulation", *steps, EARLY_ROWS, p.hidden_size),
            f32("reference_modulation", *steps, EARLY_ROWS, p.hidden_size),
        ],
        dims={"steps": Varying(example=3)},
        config=vars(p),
        runs="schedule",
    )


def context_stage(part: Part, p: Flux3Params) -> Stage:
    """Text by itself: once, or in a flow map for all steps at once."""
    steps = ["steps"] if p.flow_map else []
    return Stage(
        name="context",
        part="transformer",
        build=partial(Context, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("text", "batch", "text", p.context_in_dim),
            f32("context_modulation", *steps, EARLY_ROWS, p.hidden_size),
            f32("text_cos", "text", p.head_dim // 2),
            f32("text_sin", "text", p.head_dim // 2),
        ],
        outputs=[f32("context", *steps, "batch", "text", p.hidden_size)],
        dims={
            "batch": Varying(example=2),
            "text": Varying(example=6),
            **({"steps": Varying(example=3)} if p.flow_map else {}),
        },
        config=vars(p),
        runs="schedule",
        blocks=("txt_mode_blocks",),
        fp8_layers=("txt_mode_blocks.",),
    )


def references_stage(part: Part, p: Flux3Params) -> Stage:
    """Reference pictures by themselves: once, or in a flow map before each step."""
    return Stage(
        name="references",
        part="transformer",
        build=partial(References, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("reference_latents", "batch", "reference", p.in_channels),
            f32("reference_cos", "reference", p.head_dim // 2),
            f32("reference_sin", "reference", p.head_dim // 2),
            f32("reference_modulation", EARLY_ROWS, p.hidden_size),
        ],
        outputs=[_references(p)],
        dims={"batch": Varying(example=2), "reference": Varying(example=7)},
        config=vars(p),
        runs="step" if p.flow_map else "picture",
        blocks=("content_mode_blocks.image_cond",),
    )


def denoiser_stage(part: Part, p: Flux3Params) -> Stage:
    """One step of the picture's latents."""
    return Stage(
        name="denoiser",
        part="transformer",
        build=partial(Denoiser, p),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("latents", "batch", "tokens", p.in_channels),
            f32("dt", "batch", "tokens", 1),
            f32("context", "batch", "text", p.hidden_size),
            f32("modulation", ROWS, p.hidden_size),
            f32("cos", "sequence", p.head_dim // 2),
            f32("sin", "sequence", p.head_dim // 2),
            _references(p),
        ],
        outputs=[
            f32("next_latents", "batch", "tokens", p.in_channels),
            f32("velocity", "batch", "tokens", p.in_channels),
        ],
        dims={
            "batch": Varying(example=2),
            "tokens": Varying(example=10),
            "text": Varying(example=6),
            "reference": Varying(example=7),
            "sequence": Varying(example=23, free=True, rule="text + tokens + reference"),
        },
        config=vars(p),
        runs="step",
        blocks=("content_mode_blocks.image", "single_blocks"),
        fp8_layers=("content_mode_blocks.", "single_blocks."),
        in_fp8=True,
        fp8_attention=True,
    )


def _references(p: Flux3Params) -> Tensor:
    return f32("references", "batch", "reference", p.hidden_size)
