"""The stages that are wanted, each in its precision, checked against the checkpoint before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from flux_trt.exporter.checkpoints.checkpoint import BROUGHT_BY
from flux_trt.exporter.families.fit import check, check_whole
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.stage import Stage, skeleton, unbuildable
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.bundle.manifest import QUANTISED, Precision, StageName
from flux_trt.runtime.errors import BuildError, CheckpointError


def make_stages(
    model: Model,
    precision: Precision,
    wanted: Sequence[StageName] | None = None,
    chosen: Mapping[StageName, Precision] | None = None,
    base: Precision = "bf16",
    faults: Faults | None = None,
) -> list[Stage]:
    """The wanted stages, checked: every weight has its tensors, of the right shape, and none is left over.

    Args:
        model: the checkpoint, as its family reads it.
        precision: of the bundle.
        wanted: names of stages; None: all.
        chosen: another precision for single stages.
        base: with fp8 and its like, the precision of all that is not quantised.
        faults: where they are collected, and stages with one left out; None: the first is raised.

    Raises:
        CheckpointError: a part is missing, or its tensors do not fit.
        BuildError: a precision that a stage cannot have.
    """
    faults = faults or Faults()
    for name in (*(wanted or ()), *(chosen or ())):
        with faults.met():
            if name not in model.parts:
                has = ", ".join(model.parts)
                raise BuildError(f"{model.title} has no stage {name}; its stages are {has}")
    names = [name for name in (model.parts if wanted is None else wanted) if name in model.parts]
    parts = dict.fromkeys(model.parts[name] for name in names)
    plan: list[Stage] = []
    for part in parts:
        mine = [name for name in names if model.parts[name] == part]
        with faults.met():
            if part not in model.checkpoint.parts:
                raise CheckpointError(missing_part(model, mine[0]))
            plan += _of_part(model, part, mine, faults, partial(in_precision, precision, chosen or {}, base))
    with faults.met():
        _agree(plan)
    return sorted(plan, key=lambda stage: names.index(stage.name))


def _agree(plan: Sequence[Stage]) -> None:
    """What is carried has one type at both ends."""
    ends = [(each, stage) for stage in plan for each in (*stage.inputs, *stage.outputs)]
    for name in sorted({name for stage in plan for name in stage.carried}):
        mine = [(each.dtype, stage) for each, stage in ends if each.name == name]
        if len({dtype for dtype, _ in mine}) > 1:
            stages = " and ".join(f"{stage.name} ({stage.base or stage.precision})" for _, stage in mine)
            raise BuildError(
                f"{stages} hand each other {name}, in one type: give both 16 bits or both fp32 with "
                f"--stage-precision"
            )


def _of_part(
    model: Model, part: str, wanted: Sequence[StageName], faults: Faults, decide: Callable[[Stage], Stage]
) -> list[Stage]:
    """The wanted stages that are made from a part.

    All of its stages are looked at, wanted or not: a tensor that none of them uses is not to be passed over.
    """
    stages = {name: model.stage(name) for name, of in model.parts.items() if of == part}
    modules = {name: _module(stage) for name, stage in stages.items()}
    found = []
    for name in wanted:
        with faults.met():
            check(stages[name], modules[name], model.family)
            found.append(decide(stages[name]))
    with faults.met():
        check_whole([(stages[name], modules[name]) for name in stages], model.ignored(part), model.family)
    return found


def _module(stage: Stage) -> nn.Module:
    try:
        return skeleton(stage)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise CheckpointError(unbuildable(stage.part, fault)) from fault


def missing_part(model: Model, stage: StageName) -> str:
    """That a stage's part is not there, and how to bring it."""
    part = model.parts[stage]
    way = f"give it with {BROUGHT_BY[part]}" if part in BROUGHT_BY else "give a whole checkpoint"
    return f"{model.checkpoint.source} has no {part}; {way}, or leave {stage} out with --stages"


def in_precision(
    precision: Precision, chosen: Mapping[StageName, Precision], base: Precision, stage: Stage
) -> Stage:
    """The stage in the precision that it has in a bundle asked for in `precision`.

    A stage that loses too much in a precision has a safer one unless `chosen` says otherwise. Of a
    quantised bundle the stages that are made for it are quantised, and all else is as in a bundle of the base
    precision.

    Raises:
        BuildError: a precision that the stage refuses, or a quantised one where nothing is to be quantised.
    """
    whole = precision if precision not in QUANTISED or stage.in_fp8 else base
    found = chosen.get(stage.name, stage.safer.get(whole, whole))
    safer = stage.safer.get(base, base)
    if found in stage.refuses:
        raise BuildError(stage.refuses[found])
    if found in QUANTISED and not stage.fp8_layers:
        raise BuildError(f"{stage.name} has no {found}; nothing in it is quantised: use {stage.name}={safer}")
    return replace(stage, precision=found, base=safer if found in QUANTISED else None).typed()
