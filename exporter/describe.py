"""What the manifest says of a checkpoint: the numbers that the runtime needs."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.defaults import FLOW_MATCH_EULER
from flux_trt.exporter.families.flux1 import STAGES
from flux_trt.exporter.families.flux1.params import FluxParams
from flux_trt.exporter.families.flux1.variants import Variant
from flux_trt.exporter.families.vae import config_from_bfl
from flux_trt.exporter.reuse import versions
from flux_trt.runtime.bundle.manifest import (
    Defaults,
    Encoder,
    File,
    GlueName,
    Guidance,
    Manifest,
    Model,
    Noise,
    Positions,
    Provenance,
    References,
    Runs,
    Schedule,
    Sizes,
    Source,
    Stage,
    StageName,
    Task,
    Tokenizer,
)
from flux_trt.runtime.bundle.rules import Constant, Exponential, Preferred, ReferencePositions
from flux_trt.runtime.errors import CheckpointError

LARGEST_SIDE = 4096
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
ENCODERS = ("clip", "t5")
RUNS: dict[StageName, Runs] = {
    "clip": "prompt",
    "t5": "prompt",
    "conditioner": "schedule",
    "denoiser": "step",
    "vae_encoder": "reference",
    "vae_decoder": "picture",
}
REFERENCES = References(
    enters="latents",
    size=Preferred(
        sizes=[
            [672, 1568],
            [688, 1504],
            [720, 1456],
            [752, 1392],
            [800, 1328],
            [832, 1248],
            [880, 1184],
            [944, 1104],
            [1024, 1024],
            [1104, 944],
            [1184, 880],
            [1248, 832],
            [1328, 800],
            [1392, 752],
            [1456, 720],
            [1504, 688],
            [1568, 672],
        ],
        area=1024 * 1024,
    ),
)
"""What FLUX.1 Kontext was trained on. Source: diffusers, PREFERRED_KONTEXT_RESOLUTIONS."""
SHIFTING: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def describe(
    checkpoint: Checkpoint,
    variant: Variant,
    params: FluxParams,
    sources: Mapping[Path, File],
    stages: Mapping[StageName, Stage],
    glue: Mapping[GlueName, Stage],
    tokenizers: Mapping[str, Tokenizer],
    files: Mapping[str, File],
) -> Manifest:
    """The manifest of a bundle with these stages, listing of `files` those that it uses."""
    patch, side = picture(checkpoint)
    condition = params.in_channels - params.out_channels
    used = {path for each in (*stages.values(), *glue.values()) for path in (each.graph, *each.weights)}
    used |= {tokenizer.file for tokenizer in tokenizers.values()}
    return Manifest(
        variant=variant.name,
        tasks=tasks(variant, condition, params.out_channels, stages),
        encoders=[Encoder(stage=name, tokenizer=name) for name in ENCODERS],
        tokenizers=dict(tokenizers),
        model=Model(
            patch=patch,
            positions=positions_of(params),
            noise=noise_of(params),
            references=REFERENCES if variant.references else None,
        ),
        schedule=scheduler(checkpoint, variant),
        guidance=Guidance(
            kind="embedded" if params.guidance_embed else "none",
            default=variant.guidance if params.guidance_embed else None,
            negative=None,
        ),
        sizes=Sizes(smallest=patch, largest=LARGEST_SIDE),
        defaults=Defaults(width=side, height=side, steps=variant.steps),
        stages={
            name: stages[name].model_copy(update={"runs": runs})
            for name, runs in RUNS.items()
            if name in stages
        },
        glue=dict(glue),
        files={path: files[path] for path in sorted(used)},
        provenance=Provenance(
            checkpoint=checkpoint.source,
            text_encoders=checkpoint.text_encoders,
            vae=checkpoint.vae,
            layout=checkpoint.layout,
            sources=[
                Source(name=f"{path.parent.name}/{path.name}", bytes=file.bytes, sha256=file.sha256)
                for path, file in sources.items()
            ],
            tool=f"flux_trt {version('flux_trt')}",
            packages=versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
    )


def tasks(variant: Variant, condition: int, channels: int, stages: Collection[StageName]) -> list[Task]:
    """What a bundle with these stages can do."""
    if missing := set(STAGES) - set(stages):
        return ["generate"] if missing == {"vae_encoder"} and not condition else []
    if condition:
        return ["control"] if condition == channels else ["fill"]
    plain: list[Task] = ["generate", "image", "inpaint", "edit"]
    return [*plain, "reference"] if variant.references else plain


def positions_of(params: FluxParams) -> Positions:
    """Text stands at 0; of a picture's tokens the first axis has the number, then come row and column."""
    return Positions(
        axes=list(params.axes_dim),
        theta=params.theta,
        text_axis=None,
        grid_axes=[1, 2],
        grid_scale=1.0,
        reference=ReferencePositions(axis=0, start=1, stride=1),
    )


def noise_of(params: FluxParams) -> Noise:
    """Drawn in the form of the VAE's latents, of which a token is 2 x 2."""
    return Noise(channels=params.out_channels // 4, cell=2, order="chw", round=None)


def picture(checkpoint: Checkpoint) -> tuple[int, int]:
    """Pixels of a latent token's side, and of the picture's that the model was made for."""
    vae = _vae_config(checkpoint)
    return 2 ** len(vae["block_out_channels"]) if vae else 16, int(vae.get("sample_size") or 1024)


def _vae_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    part = checkpoint.parts.get("vae")
    if part is None:
        return {}
    return config_from_bfl(part.tensors) if part.naming == "bfl" else part.config


def scheduler(checkpoint: Checkpoint, variant: Variant) -> Schedule:
    """From `scheduler_config.json`, or the variant's own numbers when there is none.

    Raises:
        CheckpointError: a scheduler that FLUX's loop does not follow.
    """
    numbers = SHIFTING if variant.shifting else {**SHIFTING, "use_dynamic_shifting": False, "shift": 1.0}
    if checkpoint.scheduler is None:
        return _schedule(numbers)
    config = dict(checkpoint.scheduler)
    kind = config.pop("_class_name", None)
    if kind != SCHEDULER:
        raise CheckpointError(f"the scheduler is {kind}; FLUX.1 needs {SCHEDULER}")
    for name, value in config.items():
        if name in numbers or name.startswith("_"):
            continue
        if name not in FLOW_MATCH_EULER or value != FLOW_MATCH_EULER[name]:
            raise CheckpointError(
                f"the scheduler sets {name} to {value!r}, which FLUX.1's loop does not follow; take it out"
            )
    return _schedule({name: config[name] for name in numbers})


def _schedule(numbers: Mapping[str, Any]) -> Schedule:
    """diffusers' numbers as a rule of the bundle."""
    if not numbers["use_dynamic_shifting"]:
        return Constant(shift=numbers["shift"], round=None)
    return Exponential(
        tokens=[numbers["base_image_seq_len"], numbers["max_image_seq_len"]],
        mu=[numbers["base_shift"], numbers["max_shift"]],
        round=None,
    )
