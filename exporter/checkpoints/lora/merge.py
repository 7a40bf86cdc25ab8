"""A part with LoRAs in it: its tensors are made of the checkpoint's and the files' when they are read.

The part has its family's own names then, whatever names the checkpoint has: what a file changes may be one
tensor there and several here. What no LoRA touches stays the very tensor that it was, where it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.lora.arithmetic import changed
from flux_trt.exporter.checkpoints.recipe import Key, Recipe
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, Decoded, TensorInfo
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.term import Lora, Term, by_parameter

Step = tuple[Lora, Term]


def merged(
    part: str, own: Part, recipes: Mapping[str, Recipe], loras: Sequence[Lora], columns: int | None
) -> Part:
    """The part with LoRAs in it, one after the other.

    Args:
        part: its name.
        own: as the checkpoint has it.
        recipes: how the parameters under the family's names are made of its tensors.
        loras: of which some change it.
        columns: what the parameters that are widened get; None: none is.
    """
    steps: dict[str, list[Step]] = {}
    for lora in loras:
        for name, terms in by_parameter(lora.terms, part).items():
            steps.setdefault(name, []).extend((lora, term) for term in terms)
    tensors: dict[str, AnyTensor] = {}
    used: set[str] = set()
    for name, recipe in recipes.items():
        if set(recipe.names) <= set(own.tensors):
            used |= set(recipe.names)
            tensors[name] = _made(name, own, recipe, steps.get(name, []), columns)
    left = {name: info for name, info in own.tensors.items() if name not in used}
    naming = "bfl" if part == "transformer" else own.naming
    return replace(own, tensors=left | tensors, naming=naming, folder=None, plain=own, loras=tuple(loras))


def _made(name: str, own: Part, recipe: Recipe, steps: Sequence[Step], columns: int | None) -> AnyTensor:
    sources = [own.tensors[each] for each in recipe.names]
    if not steps and isinstance(recipe, Key):
        return sources[0]
    shape = recipe.shape(own.tensors)
    if columns is not None and any(term.place.widens and term.parameter == name for _, term in steps):
        shape = (shape[0], columns) if len(shape) == 2 else shape
    parts = [
        piece for source in sources for piece in (source.parts if isinstance(source, Decoded) else [source])
    ]
    types = {source.dtype for source in sources}
    plain = types.pop() if len(types) == 1 and not steps else torch.float32
    return Decoded(
        format="with LoRA" if steps else str(plain).removeprefix("torch."),
        shape=shape,
        parts=(*parts, *(TensorInfo.of(each) for _, term in steps for each in term.tensors.values())),
        make=_Make(name, recipe, tuple(sources), tuple(steps), shape),
        dtype=plain,
        told=f"{recipe!r} " + "; ".join(f"{lora.strength!r} x {term.told}" for lora, term in steps),
    )


@dataclass(frozen=True)
class _Make:
    """From all the parts' tensors, the parameter."""

    name: str
    recipe: Recipe
    sources: tuple[AnyTensor, ...]
    steps: tuple[Step, ...]
    shape: tuple[int, ...]

    def __call__(self, *parts: Tensor) -> Tensor:
        """The sources' parts first, in order, then every term's."""
        given = iter(parts)
        made = self.recipe.make(*(_decoded(source, given) for source in self.sources))
        if not self.steps:
            return made
        weight = made.float()
        if weight.shape != self.shape:
            weight = F.pad(weight, (0, self.shape[1] - weight.shape[1]))
        for lora, term in self.steps:
            weight = changed(weight, term, {role: next(given) for role in term.tensors}, lora.strength)
            if not weight.isfinite().all() and made.isfinite().all():
                raise CheckpointError(
                    f"{lora.path}: at a strength of {lora.strength:g} {self.name} is not finite; use less"
                )
        return weight


def _decoded(source: AnyTensor, given: Iterator[Tensor]) -> Tensor:
    if isinstance(source, TensorInfo):
        return next(given)
    return source.make(*(next(given) for _ in source.parts)).reshape(source.shape)
