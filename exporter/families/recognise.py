"""Which family a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.exporter.families.adapted import adapted
from flux_trt.exporter.families.catalogue import VARIANTS
from flux_trt.exporter.families.flux1.flux1 import Flux1
from flux_trt.exporter.families.flux2.flux2 import Flux2
from flux_trt.exporter.families.flux3.flux3 import Flux3
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora import keys
from flux_trt.runtime.lora.file import asked, read_lora
from flux_trt.runtime.lora.term import Lora

FAMILIES = (Flux3, Flux2, Flux1)
"""A new family stands before those whose tensors it shares."""


def recognise(checkpoint: Checkpoint, variant: str | None = None, faults: Faults | None = None) -> Model:
    """The checkpoint as its family reads it, with the LoRAs in it that were asked for.

    Args:
        checkpoint: any.
        variant: chooses among the members of a family whose tensors are alike.
        faults: where those of LoRAs are collected, which are left out then; None: the first one is raised.

    Raises:
        CheckpointError: no transformer, none of a known family, or not that variant's.
    """
    if "transformer" not in checkpoint.parts:
        what = f" (its model_index.json says {checkpoint.pipeline})" if checkpoint.pipeline else ""
        raise CheckpointError(f"{checkpoint.source} has no transformer{what}; give a whole checkpoint")
    for family in FAMILIES:
        if family.tells(checkpoint):
            return family(adapted(checkpoint, family, faults or Faults()), variant)
    raise CheckpointError(f"{checkpoint.source}: the transformer is of no family that is known here")


def recognise_lora(path: Path) -> tuple[Lora, str] | None:
    """A LoRA by itself and the family that it is for, its keys without a place listed; None: it is no LoRA.

    Raises:
        CheckpointError: a LoRA that is for no known family, or of a kind that is not read.
    """
    try:
        path = asked(str(path)).path
    except CheckpointError:
        return None
    if is_gguf(path) or not keys.is_lora(list(read_header(path))):
        return None
    found: list[tuple[Lora, str]] = []
    first: CheckpointError | None = None
    for family in reversed(FAMILIES):
        try:
            found.append(
                (read_lora(asked(str(path)), family.modules(None), family.family, True), family.family)
            )
        except CheckpointError as fault:
            first = first or fault
    if first is not None and not found:
        raise first
    return min(found, key=lambda each: len(each[0].unknown))  # families share names


def recognise_as(checkpoint: Checkpoint, label: str) -> Model:
    """The checkpoint as the variant that a bundle of it says it is, even where no file tells it.

    Raises:
        CheckpointError: as `recognise`.
    """
    found = recognise(checkpoint)
    for name in VARIANTS if found.variant != label else ():
        try:
            if (other := recognise(checkpoint, name)).variant == label:
                return other
        except CheckpointError:  # not with these tensors
            continue
    return found
