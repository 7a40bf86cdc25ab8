"""A checkpoint with the LoRAs in it that were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.lora.merge import merged
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.lora import fit
from flux_trt.runtime.lora.file import read_lora
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Lora


class Adaptable(Protocol):
    """What a family knows of the modules that LoRAs change; without any checkpoint's object."""

    family: str

    @staticmethod
    def modules(checkpoint: Checkpoint | None) -> Modules:
        """All modules of a checkpoint, or of the family's largest model."""

    @staticmethod
    def recipes(name: str, part: Part) -> Mapping[str, Recipe]:
        """How a part's parameters are made of its tensors; {}: of a part that no LoRA changes."""

    @staticmethod
    def widened(part: Part, columns: int) -> Part:
        """The transformer, told that it takes `columns` channels."""


def adapted(checkpoint: Checkpoint, family: Adaptable, faults: Faults) -> Checkpoint:
    """The checkpoint, its parts changed by every LoRA that was asked for, in order.

    Raises:
        CheckpointError: a LoRA that cannot be read, or does not fit; where faults are collected, left out.
    """
    if not checkpoint.asked:
        return checkpoint
    modules = family.modules(checkpoint)
    recipes = {name: family.recipes(name, part) for name, part in checkpoint.parts.items()}
    shapes = {
        part: {
            name: recipe.shape(checkpoint.parts[part].tensors)
            for name, recipe in own.items()
            if set(recipe.names) <= set(checkpoint.parts[part].tensors)
        }
        for part, own in recipes.items()
    }
    loras: list[Lora] = []
    notes = list(checkpoint.notes)
    columns: int | None = None
    for wanted in checkpoint.asked:
        with faults.met():
            if wanted.strength == 0:
                notes.append(f"{wanted.path.name}: a strength of 0 leaves it out")
                continue
            lora = read_lora(wanted, modules, family.family, checkpoint.partial)
            wide = fit.widened(lora, shapes)
            grown = {**shapes, "transformer": {**shapes.get("transformer", {}), **wide}}
            fit.check(lora, grown, family.family)
            shapes = grown
            columns = max([columns or 0, *(shape[1] for shape in wide.values())]) or None
            loras.append(lora)
            notes += _notes(lora, checkpoint)
    parts = {}
    for name, part in checkpoint.parts.items():
        touching = [lora for lora in loras if lora.targets.get(name)]
        if touching and columns is not None and name == "transformer":
            made = merged(name, part, recipes[name], touching, columns)
            parts[name] = family.widened(made, columns)
        else:
            parts[name] = merged(name, part, recipes[name], touching, None) if touching else part
    return replace(checkpoint, parts=parts, loras=tuple(loras), notes=tuple(notes))


def _notes(lora: Lora, checkpoint: Checkpoint) -> list[str]:
    """What of a LoRA a user would not expect."""
    name = lora.path.name
    found = [f"{name} at {lora.strength:g}: {lora.describe}", *(f"{name}: {note}" for note in lora.notes)]
    for part, count in lora.targets.items():
        if part not in checkpoint.parts:
            many = f"{count} modules of {part} are" if count > 1 else f"1 module of {part} is"
            found.append(f"{name}: {many} not merged, for the checkpoint has no {part}")
    if lora.strength != 1:
        if any(term.kind == "set" for term in lora.terms):
            found.append(f"{name}: some of its values replace the model's, whatever the strength")
        if any("magnitude" in term.tensors for term in lora.terms):
            found.append(f"{name}: a DoRA at {lora.strength:g} is that share of the way to its whole effect")
    return found
