"""A FLUX.1 checkpoint as the rest of the exporter sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.checkpoints.tokenizer import Padding
from flux_trt.exporter.families import text, vae, vae_oracle
from flux_trt.exporter.families.flux1 import modules, reference, stages
from flux_trt.exporter.families.flux1.params import FluxParams, flux_params, recipes_of
from flux_trt.exporter.families.flux1.variants import PARTS, REFERENCES, candidates, tasks_of
from flux_trt.exporter.families.model import Numbers
from flux_trt.exporter.families.oracle import Case
from flux_trt.exporter.families.scheduler import PLAIN, SHIFTING, scheduler
from flux_trt.exporter.families.stage import Stage, unbuildable
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.bundle.rules import ReferencePositions
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.forms import Modules

LARGEST_SIDE = 4096
SIDE = 1024
"""Pixels of a picture where the VAE does not say what it was made for."""
CLIP_LENGTH = 77
PATCH = 16


class Flux1:
    """See `families.model.Model`."""

    family = "FLUX.1"
    parts: Mapping[StageName, str] = PARTS

    def __init__(self, checkpoint: Checkpoint, variant: str | None = None) -> None:
        """Read the transformer's shape and tell the variant; `variant` chooses among those it can be.

        Raises:
            CheckpointError: no FLUX.1, or not that variant.
        """
        self.checkpoint = checkpoint
        self._params = flux_params(checkpoint.parts["transformer"])
        shifting = (checkpoint.scheduler or {}).get("use_dynamic_shifting")
        self._kind, *alike = candidates(self._params, checkpoint.pipeline, variant, shifting)
        self._alike = [each.name for each in alike]

    @staticmethod
    def tells(checkpoint: Checkpoint) -> bool:
        """Whether the transformer has double blocks under BFL's or diffusers' name."""
        names = checkpoint.parts["transformer"].tensors
        return any(name.startswith(("double_blocks.", "transformer_blocks.")) for name in names)

    @staticmethod
    def modules(checkpoint: Checkpoint | None) -> Modules:
        """What LoRAs may change: of a checkpoint, or of FLUX.1 dev."""
        if checkpoint is None:
            return modules.modules()
        parts = checkpoint.parts
        layers = {
            name: text.layers(name, parts[name].tensors) if name in parts else most
            for name, most in (("clip", modules.CLIP_LAYERS), ("t5", modules.T5_BLOCKS))
        }
        return modules.modules(flux_params(parts["transformer"]), **layers)

    @staticmethod
    def recipes(name: str, part: Part) -> Mapping[str, Recipe]:
        """How the transformer's and the text encoders' parameters are made."""
        if name == "transformer":
            return recipes_of(part)
        return text.text_encoder(part.tensors) if name in ("clip", "t5") else {}

    @staticmethod
    def widened(part: Part, columns: int) -> Part:
        """The transformer with that many input channels: the condition's behind the picture's."""
        if not part.config:
            return part
        old = part.config["in_channels"]
        own = {"in_channels": columns, "out_channels": part.config.get("out_channels") or old}
        return replace(part, config={**part.config, **own})

    @property
    def variant(self) -> str:
        """One of `variants.VARIANTS`."""
        return self._kind.name

    @property
    def title(self) -> str:
        """As in "FLUX.1 dev"."""
        return f"{self.family} {self.variant}"

    @property
    def choices(self) -> list[str]:
        """A line where other members have the same tensors and pipeline and none was asked for."""
        if not self._alike:
            return []
        others = " and ".join(self._alike)
        return [f"{others} cannot be told from {self.variant} by their files; --variant chooses"]

    def stage(self, name: StageName) -> Stage:
        """A stage, in float32."""
        part = self.checkpoint.parts[self.parts[name]]
        try:
            return self._makers[name](part)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise CheckpointError(unbuildable(self.parts[name], fault)) from fault

    @property
    def _makers(self) -> Mapping[StageName, Callable[[Part], Stage]]:
        return {
            "clip": text.clip_stage,
            "t5": text.t5_stage,
            "conditioner": lambda part: stages.conditioner_stage(part, self._params),
            "denoiser": lambda part: stages.denoiser_stage(part, self._params),
            "vae_encoder": vae.encoder_stage,
            "vae_decoder": vae.decoder_stage,
        }

    def ignored(self, part: str) -> Mapping[str, str]:
        """Names that the public encoders have and FLUX.1 has no use for."""
        return {"clip": text.CLIP_IGNORED, "t5": text.T5_IGNORED}.get(part, {})

    def numbers(self) -> Numbers:
        """What the runtime must know of the model, the picture and the text."""
        p, kind = self._params, self._kind
        part = self.checkpoint.parts.get("vae")
        config = vae.config_of(part) if part else {}
        patch, side = vae.patch_of(config) if config else PATCH, int(config.get("sample_size") or SIDE)
        guided = p.guidance_embed
        return Numbers(
            encoders=[manifest.Encoder(stage=name, tokenizer=name) for name in ("clip", "t5")],
            model=manifest.Model(
                patch=patch,
                positions=positions_of(p),
                noise=manifest.Noise(channels=p.out_channels // 4, cell=2, order="chw", round=None),
                references=REFERENCES if kind.references else None,
            ),
            schedule=scheduler(self.checkpoint.scheduler, SHIFTING if kind.shifting else PLAIN, self.family),
            guidance=manifest.Guidance(
                kind="embedded" if guided else "none",
                default=kind.guidance if guided else None,
                negative=None,
            ),
            sizes=manifest.Sizes(smallest=patch, largest=LARGEST_SIDE),
            defaults=manifest.Defaults(width=side, height=side, steps=kind.steps),
            padding={
                "clip": Padding(CLIP_LENGTH, token="<|endoftext|>"),
                "t5": Padding(kind.text_length, token="<pad>"),
            },
        )

    def tasks(self, stages: Collection[StageName]) -> list[Task]:
        """What a bundle with these stages can do."""
        return tasks_of(self._kind, stages)

    def disagreements(self) -> list[str]:
        """Widths that the transformer was made for and a part does not have."""
        parts, p = self.checkpoint.parts, self._params
        clip = text.clip_config(parts["clip"]) if "clip" in parts else {}
        t5 = text.t5_config(parts["t5"]) if "t5" in parts else {}
        latent = vae.config_of(parts["vae"])["latent_channels"] if "vae" in parts else None
        found = []
        if latent is not None and 4 * latent != p.out_channels:
            found.append(
                f"the VAE has {latent} latent channels and the transformer paints {p.out_channels // 4}; "
                f"give {self.family}'s VAE with --vae"
            )
        for name, has, takes in (
            ("clip", clip.get("hidden_size"), p.vec_in_dim),
            ("t5", t5.get("d_model"), p.context_in_dim),
        ):
            if has not in (None, takes):
                found.append(
                    f"{name} has a width of {has} and the transformer takes {takes}; "
                    "give this model's own with --text-encoders"
                )
        if (positions := clip.get("max_position_embeddings", CLIP_LENGTH)) < CLIP_LENGTH:
            found.append(f"clip has {positions} positions, fewer than the {CLIP_LENGTH} tokens of a prompt")
        return found

    def case(self, stage: StageName) -> Case:
        """Seeded inputs of a stage and its oracle's outputs; its part is in memory in float32 meanwhile."""
        cases: Mapping[StageName, Callable[[Part], Case]] = {
            "clip": text.clip_case,
            "t5": text.t5_case,
            "conditioner": reference.conditioner_case,
            "denoiser": reference.denoiser_case,
            "vae_encoder": vae_oracle.encoder_case,
            "vae_decoder": vae_oracle.decoder_case,
        }
        with torch.no_grad():
            return cases[stage](self.checkpoint.parts[self.parts[stage]])


def positions_of(params: FluxParams) -> manifest.Positions:
    """Text stands at 0; of a picture's tokens the first axis has the number, then come row and column."""
    return manifest.Positions(
        axes=list(params.axes_dim),
        theta=params.theta,
        text_axis=None,
        grid_axes=[1, 2],
        grid_scale=1.0,
        reference=ReferencePositions(axis=0, start=1, stride=1),
    )
