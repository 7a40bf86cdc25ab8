"""A FLUX.3 checkpoint as the rest of the exporter sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families import encoder, vae, vae_statistics
from flux_trt.exporter.families.fit import no_condition
from flux_trt.exporter.families.flux3 import modules, names, reference, stages
from flux_trt.exporter.families.flux3.params import Flux3Params, flux3_params, recipes_of
from flux_trt.exporter.families.flux3.variants import PARTS, PROMPTS, QWEN3_VL, tasks_of, variant_of
from flux_trt.exporter.families.model import Numbers
from flux_trt.exporter.families.oracle import Case
from flux_trt.exporter.families.scheduler import PLAIN, scheduler
from flux_trt.exporter.families.stage import Stage, unbuildable
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.bundle.rules import Canvas, Inpaint, ReferencePositions, References
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.forms import Modules

LARGEST_SIDE = 4096
SAMPLE = 64
"""Latent tokens of the default picture's side."""
PATCH = 16
SHIFTED: dict[str, Any] = {**PLAIN, "shift": 6.93}
"""diffusers' Flux3SetTimestepsStep."""
MARKS = ("content_mode_blocks.image.", "mode_blocks.image.")


class Flux3:
    """See `families.model.Model`."""

    family = "FLUX.3"

    def __init__(self, checkpoint: Checkpoint, variant: str | None = None) -> None:
        """Read the transformer's shape, which tells the variant.

        Raises:
            CheckpointError: no FLUX.3, or not that variant.
        """
        self.checkpoint = checkpoint
        self._params = flux3_params(checkpoint.parts["transformer"])
        self._kind = variant_of(self._params, variant)

    @staticmethod
    def tells(checkpoint: Checkpoint) -> bool:
        """Whether pictures have blocks of their own."""
        return any(name.startswith(MARKS) for name in checkpoint.parts["transformer"].tensors)

    @staticmethod
    def modules(checkpoint: Checkpoint | None) -> Modules:
        """What LoRAs may change: of a checkpoint, or of the distilled member."""
        if checkpoint is None:
            return modules.modules()
        return modules.modules(flux3_params(checkpoint.parts["transformer"]))

    @staticmethod
    def recipes(name: str, part: Part) -> Mapping[str, Recipe]:
        """How the transformer's parameters are made."""
        return recipes_of(part) if name == "transformer" else {}

    @staticmethod
    def widened(part: Part, columns: int) -> Part:
        """No member takes a condition beside its latents.

        Raises:
            CheckpointError: always.
        """
        raise no_condition(columns)

    @property
    def variant(self) -> str:
        """As in "Klein base"."""
        return self._kind.title

    @property
    def title(self) -> str:
        """As in "FLUX.3 Klein base"."""
        return f"{self.family} {self.variant}"

    @property
    def parts(self) -> Mapping[StageName, str]:
        """Every stage -> its part."""
        return PARTS

    @property
    def choices(self) -> list[str]:
        """The tensors tell the member."""
        return []

    def stage(self, name: StageName) -> Stage:
        """A stage, in float32."""
        part, p = self.checkpoint.parts[PARTS[name]], self._params
        makers: Mapping[StageName, Callable[[Part], Stage]] = {
            "text": lambda part: encoder.text_stage(part, QWEN3_VL),
            "time": lambda part: stages.time_stage(part, p),
            "context": lambda part: stages.context_stage(part, p),
            "references": lambda part: stages.references_stage(part, p),
            "denoiser": lambda part: stages.denoiser_stage(part, p),
            "vae_encoder": vae_statistics.encoder_stage,
            "vae_decoder": vae_statistics.decoder_stage,
        }
        try:
            return makers[name](part)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise CheckpointError(unbuildable(PARTS[name], fault)) from fault

    def ignored(self, part: str) -> Mapping[str, str]:
        """Names that the public models have and FLUX.3 has no use for."""
        patterns = {"transformer": names.IGNORED, "text": encoder.IGNORED, "vae": vae_statistics.IGNORED}
        return patterns.get(part, {})

    def numbers(self) -> Numbers:
        """What the runtime must know of the model, the picture and the text."""
        p, kind = self._params, self._kind
        part = self.checkpoint.parts.get("vae")
        patch = vae.patch_of(vae_statistics.config_of(part)) if part else PATCH
        side, rounded = SAMPLE * patch, self._rounded
        schedule = scheduler(self.checkpoint.scheduler, SHIFTED, self.family)
        if schedule.kind != "constant":
            raise CheckpointError(
                "the scheduler shifts by the picture's size, which FLUX.3 does not; "
                'set "use_dynamic_shifting" to false'
            )
        guided = kind.guidance is not None
        return Numbers(
            encoders=[manifest.Encoder(stage="text", tokenizer="text")],
            prompts=PROMPTS,
            model=manifest.Model(
                patch=patch,
                positions=positions_of(p),
                noise=manifest.Noise(channels=p.in_channels, cell=1, order="chw", round=rounded),
                references=References(
                    enters="input",
                    most=10,
                    size=Canvas(area=4 * 1024 * 1024, side=4096, least=64, several=1024 * 1024),
                ),
                inpaint=Inpaint(mask="bilinear"),
            ),
            schedule=schedule.model_copy(update={"round": rounded}),
            guidance=manifest.Guidance(
                kind="true" if guided else "none", default=kind.guidance, negative="" if guided else None
            ),
            sizes=manifest.Sizes(smallest=patch, largest=LARGEST_SIDE),
            defaults=manifest.Defaults(width=side, height=side, steps=kind.steps),
            padding={"text": encoder.padding_of(QWEN3_VL)},
        )

    @property
    def _rounded(self) -> Literal["bf16"] | None:
        """What noise and times are rounded to: the reference holds them in the transformer's own type."""
        tensors = self.checkpoint.parts["transformer"].tensors.values()
        return "bf16" if any(each.dtype == torch.bfloat16 for each in tensors) else None

    def tasks(self, stages: Collection[StageName]) -> list[Task]:
        """What a bundle with these stages can do."""
        return tasks_of(self._kind, stages)

    def disagreements(self) -> list[str]:
        """Widths that the transformer was made for and a part does not have."""
        parts, p, found = self.checkpoint.parts, self._params, []
        if "vae" in parts:
            latent = vae_statistics.config_of(parts["vae"])["latent_channels"]
            if 4 * latent != p.in_channels:
                found.append(
                    f"the VAE has {latent} latent channels and the transformer paints {p.in_channels // 4}; "
                    f"give {self.family}'s VAE with --vae"
                )
        if "text" in parts:
            tower = encoder.tower_of(parts["text"], QWEN3_VL)
            if tower.width != p.context_in_dim:
                found.append(
                    f"the text encoder gives {len(tower.taps)} x {tower.hidden_size} = {tower.width} "
                    f"channels and the transformer takes {p.context_in_dim}; "
                    "give this model's own with --text-encoders"
                )
        return found

    def case(self, stage: StageName) -> Case:
        """Seeded inputs of a stage and its oracle's outputs; its part is in memory in float32 meanwhile."""
        part = self.checkpoint.parts[PARTS[stage]]
        with torch.no_grad():
            return reference.CASES[stage](part)


def positions_of(params: Flux3Params) -> manifest.Positions:
    """Text is numbered on the last axis; reference pictures lie before 0 on it, each on a grid of its own."""
    return manifest.Positions(
        axes=list(params.axes_dim),
        theta=params.theta,
        text_axis=3,
        grid_axes=[1, 2],
        grid_scale=0.5,
        reference=ReferencePositions(axis=3, start=-1, stride=-1),
    )
