"""Does the checkpoint fit the stages? Asked before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from flux_trt.exporter.families.stage import Stage, parameters
from flux_trt.runtime.errors import CheckpointError


def no_condition(columns: int) -> CheckpointError:
    """Why a family whose members take no condition beside their latents refuses a LoRA that brings one."""
    return CheckpointError(
        f"a LoRA brings {columns} input channels, as control LoRAs of another family do; leave it out"
    )


def check(stage: Stage, module: nn.Module, family: str) -> None:
    """Every parameter has its tensors, and they have its shape and are numbers, not the codes of some.

    Raises:
        CheckpointError: tensors that are missing, integers or misshapen: how many, and the first of them.
    """
    missing, misshapen, codes = [], [], []
    for name, parameter in parameters(stage, module).items():
        recipe = stage.recipes.get(name)
        absent = [name] if recipe is None else [key for key in recipe.names if key not in stage.tensors]
        if recipe is None or absent:
            missing += absent
            continue
        codes += [key for key in recipe.names if not stage.tensors[key].dtype.is_floating_point]
        if (shape := recipe.shape(stage.tensors)) != tuple(parameter.shape):
            misshapen.append(f"{recipe.names[0]} is {list(shape)}, not {list(parameter.shape)}")
    _refuse(stage.part, "missing", missing, family)
    _refuse(stage.part, "integers, so it is quantised", codes, family)
    _refuse(stage.part, "of the wrong shape", misshapen, family)


def check_whole(halves: Sequence[tuple[Stage, nn.Module]], ignored: Mapping[str, str], family: str) -> None:
    """All stages of one part together use every tensor that it has, but for those that may be ignored.

    Args:
        halves: all stages that are made from the part, wanted or not, with their modules.
        ignored: patterns of whole names -> why they are not used.
        family: for people.

    Raises:
        CheckpointError: tensors left over: how many, and the first of them.
    """
    stage = halves[0][0]
    used = {
        key
        for half, module in halves
        for name in parameters(half, module)
        if name in half.recipes
        for key in half.recipes[name].names
    }
    left = sorted(set(stage.tensors) - used - set(matching(stage.tensors, ignored)))
    _refuse(stage.part, f"not {family}'s", left, family)


def matching(names: Iterable[str], patterns: Mapping[str, str]) -> dict[str, str]:
    """The names that one of the patterns describes as a whole -> what the pattern stands for."""
    return {name: why for name in names for pattern, why in patterns.items() if re.fullmatch(pattern, name)}


def _refuse(part: str, what: str, which: Sequence[str], family: str) -> None:
    if which:
        few = ", ".join(which[:3]) + (", ..." if len(which) > 3 else "")
        raise CheckpointError(
            f"{part}: {len(which)} tensors are {what}: {few}; check that this is a whole {family}"
        )
