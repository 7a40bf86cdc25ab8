"""Does the checkpoint fit the stages? Asked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from flux_trt.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from flux_trt.exporter.families.flux1.stages import Stage

HALVES = {"vae_encoder": ("encoder.", "quant_conv."), "vae_decoder": ("decoder.", "post_quant_conv.")}


def parameters(stage: Stage, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters a stage uses: the VAE's module holds both halves, its stages one each."""
    prefixes = HALVES.get(stage.name, ("",))
    return {name: value for name, value in module.named_parameters() if name.startswith(prefixes)}


def check(stage: Stage, module: nn.Module) -> None:
    """Every parameter has its tensors, and they have its shape.

    Raises:
        CheckpointError: tensors that are missing or misshapen: how many, and the first of them.
    """
    missing, misshapen = [], []
    for name, parameter in parameters(stage, module).items():
        recipe = stage.recipes.get(name)
        absent = [name] if recipe is None else [key for key in recipe.names if key not in stage.tensors]
        if recipe is None or absent:
            missing += absent
        elif (shape := recipe.shape(stage.tensors)) != tuple(parameter.shape):
            misshapen.append(f"{recipe.names[0]} is {list(shape)}, not {list(parameter.shape)}")
    _refuse(stage, "missing", missing)
    _refuse(stage, "of the wrong shape", misshapen)


def check_whole(transformer: Sequence[tuple[Stage, nn.Module]]) -> None:
    """The conditioner and the denoiser together use every tensor of the transformer.

    Raises:
        CheckpointError: tensors left over: how many, and the first of them.
    """
    if len(transformer) < 2:
        return
    stage = transformer[0][0]
    known = {name for half, module in transformer for name in parameters(half, module)}
    used = {key for name in known for key in stage.recipes[name].names}
    _refuse(stage, "not FLUX.1's", sorted(set(stage.tensors) - used))


def _refuse(stage: Stage, what: str, which: Sequence[str]) -> None:
    if which:
        few = ", ".join(which[:3]) + (", ..." if len(which) > 3 else "")
        raise CheckpointError(
            f"{stage.part}: {len(which)} tensors are {what}: {few}; check that this is a whole FLUX.1"
        )
