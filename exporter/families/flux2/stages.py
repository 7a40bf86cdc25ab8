"""The transformer's stages: inputs, outputs, and what each needs on the way."""

from __future__ import annotations

from functools import partial

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.flux2.model import Conditioner, Denoiser, References
from flux_trt.exporter.families.flux2.params import REFERENCE_ROWS, ROWS, Flux2Params, recipes_of
from flux_trt.exporter.families.stage import Stage, Varying, f32
from flux_trt.runtime.bundle.manifest import Tensor

BLOCKS = ("double_blocks", "single_blocks")
FP8_LAYERS = ("double_blocks.", "single_blocks.")
CARRIED = frozenset({"keys", "values"})


def conditioner_stage(part: Part, p: Flux2Params, cached: bool) -> Stage:
    """All that depends on times, guidance and text alone, for all steps at once."""
    return Stage(
        name="conditioner",
        part="transformer",
        build=partial(Conditioner, p, cached),
        tensors=part.tensors,
        recipes=recipes_of(part),
        inputs=[
            f32("timesteps", "steps"),
            f32("text", "batch", "text", p.context_in_dim),
            *([f32("guidance", "batch")] if p.guidance_embed else []),
        ],
        outputs=[
            f32("modulation", "steps", "batch", ROWS, p.hidden_size),
            f32("context", "batch", "text", p.hidden_size),
            *([f32("reference_modulation", REFERENCE_ROWS, p.hidden_size)] if cached else []),
        ],
        dims={"steps": Varying(example=3), "batch": Varying(example=2), "text": Varying(example=6)},
        config={**vars(p), "cached": cached},
        runs="schedule",
    )


def denoiser_stage(part: Part, p: Flux2Params, cached: bool) -> Stage:
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
            f32("modulation", "batch", ROWS, p.hidden_size),
            f32("cos", "sequence", p.head_dim // 2),
            f32("sin", "sequence", p.head_dim // 2),
            *(_known(p) if cached else []),
        ],
        outputs=[
            f32("next_latents", "batch", "tokens", p.in_channels),
            f32("velocity", "batch", "tokens", p.in_channels),
        ],
        dims={
            "batch": Varying(example=2),
            "tokens": Varying(example=10),
            "text": Varying(example=6),
            "sequence": Varying(example=16, free=True),
            **({"reference": Varying(example=7)} if cached else {}),
        },
        config={**vars(p), "cached": cached},
        runs="step",
        blocks=BLOCKS,
        fp8_layers=FP8_LAYERS,
        in_fp8=True,
        fp8_attention=True,
        carried=CARRIED,
    )


def references_stage(part: Part, p: Flux2Params) -> Stage:
    """What every step attends of reference pictures, once for all of them."""
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
            f32("reference_modulation", REFERENCE_ROWS, p.hidden_size),
        ],
        outputs=_known(p),
        dims={"batch": Varying(example=2), "reference": Varying(example=7)},
        config=vars(p),
        runs="picture",
        blocks=BLOCKS,
        carried=CARRIED,
    )


def _known(p: Flux2Params) -> list[Tensor]:
    return [f32(name, "batch", p.blocks, p.num_heads, "reference", p.head_dim) for name in sorted(CARRIED)]
