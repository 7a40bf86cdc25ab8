"""What the manifest says of a checkpoint: the numbers that the runtime needs."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.defaults import FLOW_MATCH_EULER
from flux_trt.exporter.families.flux1.params import FluxParams
from flux_trt.exporter.families.flux1.variants import Variant
from flux_trt.exporter.families.vae import config_from_bfl
from flux_trt.exporter.reuse import versions
from flux_trt.runtime.bundle.manifest import (
    STAGES,
    Defaults,
    File,
    GlueName,
    Manifest,
    Model,
    Provenance,
    Scheduler,
    Sizes,
    Source,
    Stage,
    StageName,
    Task,
    Tokenizer,
)
from flux_trt.runtime.errors import CheckpointError

LARGEST_SIDE = 4096
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
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
        model=Model(
            channels=params.out_channels,
            condition_channels=condition,
            guidance=params.guidance_embed,
            rope_axes=list(params.axes_dim),
            rope_theta=params.theta,
            patch=patch,
        ),
        scheduler=scheduler(checkpoint, variant),
        tokenizers=dict(tokenizers),
        sizes=Sizes(smallest=patch, largest=LARGEST_SIDE),
        defaults=Defaults(width=side, height=side, steps=variant.steps, guidance=variant.guidance),
        stages=dict(stages),
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
    """What a bundle with these stages can do, by the names of `flux_trt.runtime.tasks.request.WAYS`."""
    if missing := set(STAGES) - set(stages):
        return ["generate"] if missing == {"vae_encoder"} and not condition else []
    if condition:
        return ["control"] if condition == channels else ["fill"]
    plain: list[Task] = ["generate", "image", "inpaint", "edit"]
    return [*plain, "reference"] if variant.references else plain


def picture(checkpoint: Checkpoint) -> tuple[int, int]:
    """Pixels of a latent token's side, and of the picture's that the model was made for."""
    vae = _vae_config(checkpoint)
    return 2 ** len(vae["block_out_channels"]) if vae else 16, int(vae.get("sample_size") or 1024)


def _vae_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    part = checkpoint.parts.get("vae")
    if part is None:
        return {}
    return config_from_bfl(part.tensors) if part.naming == "bfl" else part.config


def scheduler(checkpoint: Checkpoint, variant: Variant) -> Scheduler:
    """From `scheduler_config.json`, or the variant's own numbers when there is none.

    Raises:
        CheckpointError: a scheduler that FLUX's loop does not follow.
    """
    numbers = SHIFTING if variant.shifting else {**SHIFTING, "use_dynamic_shifting": False, "shift": 1.0}
    if checkpoint.scheduler is None:
        return Scheduler(**numbers)
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
    return Scheduler(**{name: config[name] for name in numbers})
