"""What a family tells of a checkpoint: its stages, and the numbers that the runtime needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.tokenizer import Padding
from flux_trt.exporter.families.oracle import Case
from flux_trt.exporter.families.stage import Stage
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.lora.forms import Modules


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the manifest says of a model, whichever of its stages are built."""

    encoders: list[manifest.Encoder]
    model: manifest.Model
    schedule: manifest.Schedule
    guidance: manifest.Guidance
    sizes: manifest.Sizes
    defaults: manifest.Defaults
    prompts: manifest.Prompts | None = None
    padding: Mapping[str, Padding]
    """Tokenizer -> how its prompts are filled up and cut."""


class Model(Protocol):
    """A checkpoint as its family reads it."""

    checkpoint: Checkpoint

    @property
    def title(self) -> str:
        """Family and variant, for people: "FLUX.1 dev"."""

    @property
    def family(self) -> str:
        """The family, for people: "FLUX.1"."""

    @property
    def variant(self) -> str:
        """Which member of the family it is."""

    @property
    def parts(self) -> Mapping[StageName, str]:
        """Every stage of a whole bundle, in the order that they run -> the part that it is made from."""

    @property
    def choices(self) -> list[str]:
        """What was chosen where the checkpoint leaves it open, and the option that chooses otherwise."""

    def stage(self, name: StageName) -> Stage:
        """A stage, in float32.

        Raises:
            CheckpointError: it cannot be made from the part's config.
        """

    def ignored(self, part: str) -> Mapping[str, str]:
        """Patterns of names that a part may hold though no stage uses them -> why they are not used."""

    @staticmethod
    def modules(checkpoint: Checkpoint | None) -> Modules:
        """What LoRAs may change: of a checkpoint, or of the family's largest model."""

    def numbers(self) -> Numbers:
        """What the runtime must know.

        Raises:
            CheckpointError: a scheduler that the loop does not follow.
        """

    def tasks(self, stages: Collection[StageName]) -> list[Task]:
        """What a bundle with these stages can do."""

    def disagreements(self) -> list[str]:
        """What of one part does not fit another: widths, channels, lengths; a line each."""

    def case(self, stage: StageName) -> Case:
        """Seeded inputs of a stage, and what the public implementation makes of them."""
