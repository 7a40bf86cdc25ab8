"""A FLUX.2 checkpoint as the rest of the exporter sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families import encoder, vae, vae_statistics, vae_statistics_oracle
from flux_trt.exporter.families.fit import no_condition
from flux_trt.exporter.families.flux2 import modules, reference, stages
from flux_trt.exporter.families.flux2.params import Flux2Params, flux2_params, recipes_of
from flux_trt.exporter.families.flux2.variants import PARTS, candidates, size_of, tasks_of
from flux_trt.exporter.families.model import Numbers
from flux_trt.exporter.families.oracle import Case
from flux_trt.exporter.families.scheduler import SHIFTING, scheduler
from flux_trt.exporter.families.stage import Stage, unbuildable
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.bundle.rules import Empirical, Inpaint, Line, ReferencePositions, References, Shrunk
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.forms import Modules

LARGEST_SIDE = 4096
SAMPLE = 64
"""Latent tokens of the default picture's side."""
PATCH = 16
SCHEDULE = Empirical(
    few=Line(steps=10, slope=8.73809524e-05, offset=1.89833333),
    many=Line(steps=200, slope=0.00016927, offset=0.45666666),
    large=4300,
    round=None,
)
"""diffusers' compute_empirical_mu."""


class Flux2:
    """See `families.model.Model`."""

    family = "FLUX.2"

    def __init__(self, checkpoint: Checkpoint, variant: str | None = None) -> None:
        """Read the transformer's shape and tell the variant; `variant` chooses among those it can be.

        Raises:
            CheckpointError: no FLUX.2, or not that variant.
        """
        self.checkpoint = checkpoint
        self._params = flux2_params(checkpoint.parts["transformer"])
        self._kind, *alike = candidates(self._params, checkpoint.index, variant)
        self._alike = [each.name for each in alike]

    @staticmethod
    def tells(checkpoint: Checkpoint) -> bool:
        """Whether one modulation serves all blocks; FLUX.1's blocks have one each."""
        names = checkpoint.parts["transformer"].tensors
        return any(name.startswith("single_stream_modulation.") for name in names)

    @staticmethod
    def modules(checkpoint: Checkpoint | None) -> Modules:
        """What LoRAs may change: of a checkpoint, or of dev."""
        if checkpoint is None:
            return modules.modules()
        return modules.modules(flux2_params(checkpoint.parts["transformer"]))

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
        """As in "klein 4B", "klein base 9B", "klein 9B KV", "dev"."""
        words = self._kind.title.format(size_of(self._params) or "").split()
        return " ".join(words)

    @property
    def title(self) -> str:
        """As in "FLUX.2 klein 4B"."""
        return f"{self.family} {self.variant}"

    @property
    def parts(self) -> Mapping[StageName, str]:
        """Every stage of this member -> its part."""
        return {name: part for name, part in PARTS.items() if name != "references" or self._kind.cached}

    @property
    def choices(self) -> list[str]:
        """A line where other members have the same tensors and none was named."""
        if not self._alike:
            return []
        others = " and ".join(self._alike)
        return [f"{others} cannot be told from {self._kind.name} by their files; --variant chooses"]

    def stage(self, name: StageName) -> Stage:
        """A stage, in float32."""
        part = self.checkpoint.parts[self.parts[name]]
        try:
            return self._makers[name](part)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise CheckpointError(unbuildable(self.parts[name], fault)) from fault

    @property
    def _makers(self) -> Mapping[StageName, Callable[[Part], Stage]]:
        p, kind = self._params, self._kind
        return {
            "text": lambda part: encoder.text_stage(part, kind.language),
            "conditioner": lambda part: stages.conditioner_stage(part, p, kind.cached),
            "references": lambda part: stages.references_stage(part, p),
            "denoiser": lambda part: stages.denoiser_stage(part, p, kind.cached),
            "vae_encoder": vae_statistics.encoder_stage,
            "vae_decoder": vae_statistics.decoder_stage,
        }

    def ignored(self, part: str) -> Mapping[str, str]:
        """Names that the public models have and FLUX.2 has no use for."""
        return {"text": encoder.IGNORED, "vae": vae_statistics.IGNORED}.get(part, {})

    def numbers(self) -> Numbers:
        """What the runtime must know of the model, the picture and the text."""
        p, kind = self._params, self._kind
        part = self.checkpoint.parts.get("vae")
        patch = vae.patch_of(vae_statistics.config_of(part)) if part else PATCH
        side = SAMPLE * patch
        guided: Literal["true", "embedded", "none"] = "embedded" if p.guidance_embed else "none"
        if kind.true_guidance:
            guided = "true"
        return Numbers(
            encoders=[manifest.Encoder(stage="text", tokenizer="text")],
            model=manifest.Model(
                patch=patch,
                positions=positions_of(p),
                noise=manifest.Noise(channels=p.in_channels, cell=1, order="chw", round=None),
                references=References(
                    enters="keys" if kind.cached else "latents",
                    size=Shrunk(area=1024 * 1024, least=64, aspect=8),
                ),
                inpaint=Inpaint(mask="bilinear", source=True),
            ),
            schedule=scheduler(self.checkpoint.scheduler, SHIFTING, self.family, SCHEDULE),
            guidance=manifest.Guidance(
                kind=guided, default=kind.guidance, negative="" if kind.true_guidance else None
            ),
            sizes=manifest.Sizes(smallest=patch, largest=LARGEST_SIDE),
            defaults=manifest.Defaults(width=side, height=side, steps=kind.steps),
            padding={"text": encoder.padding_of(kind.language)},
        )

    def tasks(self, stages: Collection[StageName]) -> list[Task]:
        """What a bundle with these stages can do."""
        return tasks_of(self.parts, stages)

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
            tower = encoder.tower_of(parts["text"], self._kind.language)
            if tower.width != p.context_in_dim:
                found.append(
                    f"the text encoder gives {len(tower.taps)} x {tower.hidden_size} = {tower.width} "
                    f"channels and the transformer takes {p.context_in_dim}; "
                    "give this model's own with --text-encoders"
                )
        return found

    def case(self, stage: StageName) -> Case:
        """Seeded inputs of a stage and its oracle's outputs; its part is in memory in float32 meanwhile."""
        part, kind = self.checkpoint.parts[self.parts[stage]], self._kind
        cases: Mapping[StageName, Callable[[], Case]] = {
            "text": lambda: reference.text_case(part, kind.language),
            "conditioner": lambda: reference.conditioner_case(part, kind.cached),
            "references": lambda: reference.references_case(part),
            "denoiser": lambda: reference.denoiser_case(part, kind.cached),
            "vae_encoder": lambda: vae_statistics_oracle.encoder_case(part),
            "vae_decoder": lambda: vae_statistics_oracle.decoder_case(part),
        }
        with torch.no_grad():
            return cases[stage]()


def positions_of(params: Flux2Params) -> manifest.Positions:
    """Text is numbered on the last axis; pictures' first axis has 0, 10, 20, ..., then row and column."""
    return manifest.Positions(
        axes=list(params.axes_dim),
        theta=params.theta,
        text_axis=3,
        grid_axes=[1, 2],
        grid_scale=1.0,
        reference=ReferencePositions(axis=0, start=10, stride=10),
    )
