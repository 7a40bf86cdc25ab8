"""The six stages: for each its module, its recipe for every weight, and its named inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.recipe import Recipe, Tensors
from flux_trt.exporter.families import text, vae
from flux_trt.exporter.families.fit import check, check_whole
from flux_trt.exporter.families.flux1 import STAGES, names
from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
from flux_trt.exporter.families.flux1.params import FluxParams, flux_params
from flux_trt.exporter.quantise.e4m3 import Quantisation
from flux_trt.runtime.bundle.manifest import Precision, StageName, Tensor
from flux_trt.runtime.errors import BuildError, CheckpointError

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS: dict[StageName, str] = {
    "clip": "clip",
    "t5": "t5",
    "conditioner": "transformer",
    "denoiser": "transformer",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}
SAFER: dict[Precision, dict[StageName, Precision]] = {
    "fp16": {"t5": "fp32", "vae_encoder": "fp32", "vae_decoder": "fp32"}
}
LARGE_LAYERS: dict[StageName, tuple[str, ...]] = {
    "denoiser": ("double_blocks.", "single_blocks."),
    "t5": ("encoder.block.",),
    "conditioner": ("",),
}
"""Where the linear layers are that fp8 quantises. The conditioner's only when it is asked for by name."""
IN_FP8: tuple[StageName, ...] = ("denoiser", "t5")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One graph to be: `build()` makes its module (weights absent), `recipes` say where they come from."""

    name: StageName
    precision: Precision
    build: Callable[[], nn.Module]
    tensors: Tensors
    recipes: Mapping[str, Recipe]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    config: Mapping[str, Any]
    base: Precision | None = None
    """Of fp8: the precision of all that is not quantised."""
    quantisation: Quantisation | None = None
    """Of fp8: what is quantised; known when a calibration is."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters that are not quantised."""
        return DTYPES[self.base or self.precision]

    @property
    def files(self) -> list[Path]:
        """The checkpoint files its weights lie in."""
        return sorted({info.file for info in self.tensors.values()})

    @property
    def part(self) -> str:
        """The part of the checkpoint it is made from."""
        return PARTS[self.name]


def precision_of(
    stage: StageName, precision: Precision, chosen: Mapping[StageName, Precision], base: Precision = "bf16"
) -> tuple[Precision, Precision | None]:
    """The precision inside a stage when the bundle is asked for in `precision`, and the base of fp8.

    T5 overflows in float16 and the VAE loses accuracy in it (peers have both on record), so an fp16 bundle
    keeps them in fp32 unless `chosen` says otherwise. Of an fp8 bundle the denoiser and T5 are quantised, and
    all else is as in a bundle of the base precision.

    Raises:
        BuildError: T5 in float16, or fp8 where nothing is to be quantised.
    """
    safer = SAFER.get(base, {}).get(stage, base)
    whole = precision if precision != "fp8" or stage in IN_FP8 else base
    found = chosen.get(stage, SAFER.get(whole, {}).get(stage, whole))
    if stage == "t5" and found == "fp16":
        raise BuildError("T5 overflows in fp16 and its text turns into nan; use t5=bf16 or t5=fp32")
    if found == "fp8" and stage not in LARGE_LAYERS:
        raise BuildError(f"{stage} has no fp8; fp8 is for {', '.join(LARGE_LAYERS)}: use {stage}={safer}")
    return found, safer if found == "fp8" else None


def _f32(name: str, *dims: int | str) -> Tensor:
    return Tensor(name=name, dtype="float32", dims=list(dims))


def make_stages(
    checkpoint: Checkpoint,
    precision: Precision,
    wanted: Sequence[StageName] = STAGES,
    chosen: Mapping[StageName, Precision] | None = None,
    base: Precision = "bf16",
) -> list[Stage]:
    """The wanted stages, checked: every weight has its tensors, of the right shape, and none is left over.

    Raises:
        CheckpointError: a part is missing, or its tensors do not fit.
        BuildError: a precision that a stage cannot have.
    """
    pairs = []
    for name in wanted:
        part = checkpoint.parts.get(PARTS[name])
        if part is None:
            way = {"clip": "--text-encoders", "t5": "--text-encoders", "vae": "--vae"}.get(PARTS[name])
            hint = f"give it with {way}" if way else "give a whole checkpoint"
            raise CheckpointError(
                f"{checkpoint.source} has no {PARTS[name]}; {hint}, or leave {name} out with --stages"
            )
        inside, around = precision_of(name, precision, chosen or {}, base)
        try:
            stage = replace(MAKERS[name](name, part, inside), base=around)
            pairs.append((stage, skeleton(stage)))
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise CheckpointError(
                f"no {PARTS[name]} can be made from its config ({fault!r}); copy or download it again"
            ) from fault
    for stage, module in pairs:
        check(stage, module)
    check_whole([pair for pair in pairs if pair[0].part == "transformer"])
    return [stage for stage, _ in pairs]


def skeleton(stage: Stage) -> nn.Module:
    """The stage's module in its dtype with parameters on the meta device; small buffers are real."""
    with init_empty_weights(include_buffers=False):
        module = stage.build().eval()
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=stage.dtype, device="meta")
                owner._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return module


def large_layers(stage: Stage) -> list[str]:
    """The linear layers of a stage that fp8 quantises, in the module's order."""
    linears = (name for name, module in skeleton(stage).named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if name.startswith(LARGE_LAYERS[stage.name])]


def _clip(name: StageName, part: Part, precision: Precision) -> Stage:
    config = part.config
    return Stage(
        name=name,
        precision=precision,
        build=partial(text.clip, config),
        tensors=part.tensors,
        recipes=names.text_encoder(part.tensors),
        inputs=[Tensor(name="ids", dtype="int64", dims=["batch", config["max_position_embeddings"]])],
        outputs=[_f32("pooled", "batch", config["hidden_size"])],
        config=config,
    )


def _t5(name: StageName, part: Part, precision: Precision) -> Stage:
    return Stage(
        name=name,
        precision=precision,
        build=partial(text.t5, part.config),
        tensors=part.tensors,
        recipes=names.text_encoder(part.tensors),
        inputs=[Tensor(name="ids", dtype="int64", dims=["batch", "text"])],
        outputs=[_f32("text", "batch", "text", part.config["d_model"])],
        config=part.config,
    )


def _transformer_recipes(part: Part, params: FluxParams) -> dict[str, Recipe]:
    if part.naming == "bfl":
        return names.transformer_from_bfl(part.tensors)
    return names.transformer_from_diffusers(params.depth, params.depth_single_blocks, params.guidance_embed)


def _conditioner(name: StageName, part: Part, precision: Precision) -> Stage:
    p = flux_params(part)
    return Stage(
        name=name,
        precision=precision,
        build=partial(Conditioner, p),
        tensors=part.tensors,
        recipes=_transformer_recipes(part, p),
        inputs=[
            _f32("timesteps", "steps"),
            _f32("pooled", "batch", p.vec_in_dim),
            _f32("text", "batch", "text", p.context_in_dim),
            *([_f32("guidance", "batch")] if p.guidance_embed else []),
        ],
        outputs=[
            _f32("modulation", "steps", "batch", p.modulation_rows, p.hidden_size),
            _f32("context", "batch", "text", p.hidden_size),
        ],
        config=vars(p),
    )


def _denoiser(name: StageName, part: Part, precision: Precision) -> Stage:
    p = flux_params(part)
    condition = p.in_channels - p.out_channels
    return Stage(
        name=name,
        precision=precision,
        build=partial(Denoiser, p),
        tensors=part.tensors,
        recipes=_transformer_recipes(part, p),
        inputs=[
            _f32("latents", "batch", "tokens", p.out_channels),
            _f32("dt", "batch", "tokens", 1),
            _f32("context", "batch", "text", p.hidden_size),
            _f32("modulation", "batch", p.modulation_rows, p.hidden_size),
            _f32("cos", "sequence", p.head_dim // 2),
            _f32("sin", "sequence", p.head_dim // 2),
            *([_f32("condition", "batch", "tokens", condition)] if condition else []),
        ],
        outputs=[
            _f32("next_latents", "batch", "tokens", p.out_channels),
            _f32("velocity", "batch", "tokens", p.out_channels),
        ],
        config=vars(p),
    )


def _vae(name: StageName, part: Part, precision: Precision) -> Stage:
    bfl = part.naming == "bfl"
    config = vae.config_from_bfl(part.tensors) if bfl else part.config
    levels = len(config["block_out_channels"])
    latents, deviation = (
        _f32(each, "batch", "h", "w", 4 * config["latent_channels"]) for each in ("latents", "deviation")
    )
    pixels = _f32("image", "batch", "height", "width", 3)
    picture = Tensor(name="image", dtype="uint8", dims=["batch", "height", "width", 3])
    encoding = name == "vae_encoder"
    return Stage(
        name=name,
        precision=precision,
        build=partial(vae.encoder if encoding else vae.decoder, config),
        tensors=part.tensors,
        recipes=names.vae_from_bfl(part.tensors, levels) if bfl else names.same(part.tensors),
        inputs=[pixels if encoding else latents],
        outputs=[latents, deviation] if encoding else [picture],
        config=config,
    )


MAKERS: dict[StageName, Callable[[StageName, Part, Precision], Stage]] = {
    "clip": _clip,
    "t5": _t5,
    "conditioner": _conditioner,
    "denoiser": _denoiser,
    "vae_encoder": _vae,
    "vae_decoder": _vae,
}
