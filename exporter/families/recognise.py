"""Which family a checkpoint belongs to."""

from __future__ import annotations

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.families.catalogue import VARIANTS
from flux_trt.exporter.families.flux1.flux1 import Flux1
from flux_trt.exporter.families.flux2.flux2 import Flux2
from flux_trt.exporter.families.model import Model
from flux_trt.runtime.errors import CheckpointError

FAMILIES = (Flux2, Flux1)
"""A new family stands before those whose tensors it shares."""


def recognise(checkpoint: Checkpoint, variant: str | None = None) -> Model:
    """The checkpoint as its family reads it.

    Args:
        checkpoint: any.
        variant: chooses among the members of a family whose tensors are alike.

    Raises:
        CheckpointError: no transformer, none of a known family, or not that variant's.
    """
    if "transformer" not in checkpoint.parts:
        what = f" (its model_index.json says {checkpoint.pipeline})" if checkpoint.pipeline else ""
        raise CheckpointError(f"{checkpoint.source} has no transformer{what}; give a whole checkpoint")
    for family in FAMILIES:
        if family.tells(checkpoint):
            return family(checkpoint, variant)
    raise CheckpointError(f"{checkpoint.source}: the transformer is of no family that is known here")


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
