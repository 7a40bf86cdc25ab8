"""Stages with LoRA branches: beside every linear layer two thin ones, whose weights are inputs of the graph.

    y = W x + b + (x A) B        A [in, rank], B [rank, out]; zeros change nothing

The branches of layers that are alike come in one pair of inputs, A's stacked [layers, in, rank] and B's
[layers, rank, out], with a rank of their own: an update of q, k and v apart takes three times its rank in
`qkv`, and should not take that everywhere. The plain stage's weights are used where they are. A and B come in
float16 unless the stage computes in float32: half the memory, and finer than the bfloat16 that LoRAs are in.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from flux_trt.exporter.families.layers import Linear
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.stage import Stage, Varying, f32, skeleton
from flux_trt.runtime.bundle.adapters import Adapters, Branch
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.lora.forms import Modules

MODULES = "lora.json"
"""The file of a bundle with the names that LoRAs have for its layers."""
SUFFIX = "_lora"
Build = Callable[[], nn.Module]


def all_branches(model: Model, plan: Sequence[Stage], rank: int) -> list[Branch]:
    """The branches of all stages that LoRAs change.

    Raises:
        BuildError: there is no such stage.
    """
    modules = model.modules(model.checkpoint)
    found = [each for stage in plan for each in branches(stage, modules, rank)]
    if not found:
        raise BuildError(
            f"no LoRA changes {', '.join(stage.name for stage in plan)} of {model.title}; "
            "leave --lora-rank out, or build the denoiser, too"
        )
    return found


def with_branches(plan: Sequence[Stage], found: Sequence[Branch]) -> list[Stage]:
    """The plain stages, and behind them those with branches."""
    own = {stage.name: [each for each in found if each.stage == stage.name] for stage in plan}
    return [*plan, *(branched(stage, own[stage.name]) for stage in plan if own[stage.name])]


def adapters(plan: Sequence[Stage], found: Sequence[Branch], rank: int) -> Adapters | None:
    """What the manifest says of them."""
    stages = {stage.shares: stage.name for stage in plan if stage.shares is not None}
    return Adapters(rank=rank, modules=MODULES, stages=stages, branches=list(found)) if stages else None


def branches(stage: Stage, modules: Modules, rank: int) -> list[Branch]:
    """The branches of a stage, in the order in which its layers are; [] of one that no LoRA changes.

    Args:
        stage: a plain one.
        modules: all that LoRAs may change.
        rank: of the largest LoRA, as trainers count it: for q, k and v apart.
    """
    table = modules.tables.get(stage.part, {})
    changed = {place.weight for place in table.values()}
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, layer in skeleton(stage).named_modules():
        if isinstance(layer, Linear) and (weight := f"{name}.weight") in changed:
            pieces = _pieces({place.rows for place in table.values() if place.weight == weight})
            alike.setdefault((layer.in_features, layer.out_features, pieces), []).append(weight)
    found = []
    for (_, _, pieces), weights in alike.items():
        name = re.sub(r"\.\d+(?=\.)", "", weights[0].removesuffix(".weight")).replace(".", "_")
        found.append(
            Branch(
                stage=stage.name,
                down=f"lora_{name}_down",
                up=f"lora_{name}_up",
                rank=f"rank_{name}",
                pieces=pieces,
                most=rank * pieces,
                weights=weights,
            )
        )
    return found


def _pieces(rows: set[tuple[int, int] | None]) -> int:
    """Of how many parts a parameter is made for those who split it most."""
    parts = {each for each in rows if each is not None}
    whole = {
        each for each in parts for other in parts - {each} if each[0] <= other[0] and other[1] <= each[1]
    }
    return max(len(parts - whole), 1)


def branched(stage: Stage, found: Sequence[Branch]) -> Stage:
    """The stage with these branches; its weights are the plain one's."""
    layers = dict(skeleton(stage).named_modules())
    inputs, dims = list(stage.inputs), dict(stage.dims)
    for index, branch in enumerate(found):
        layer = layers[branch.weights[0].removesuffix(".weight")]
        count = len(branch.weights)
        inputs += [
            f32(branch.down, count, int(layer.in_features), branch.rank),
            f32(branch.up, count, branch.rank, int(layer.out_features)),
        ]
        dims[branch.rank] = Varying(example=2 + index)
    return replace(
        stage,
        name=stage.name + SUFFIX,
        build=partial(_build, stage.build, [each.name for each in inputs], found),
        inputs=inputs,
        dims=dims,
        shares=stage.name,
        carried=stage.carried | {each.name for each in inputs[len(stage.inputs) :]},
    ).typed()


def _build(build: Build, inputs: Sequence[str], found: Sequence[Branch]) -> nn.Module:
    """The module, whose call takes the branches' weights after its own inputs and lays them on its layers."""
    module = build()
    plain, own = module.forward, len(inputs) - 2 * len(found)
    layers = dict(module.named_modules())

    def forward(*given: Tensor) -> Tensor | tuple[Tensor, ...]:
        factors = iter(given[own:])
        for branch, down, up in zip(found, factors, factors, strict=True):
            for index, weight in enumerate(branch.weights):
                layer = layers[weight.removesuffix(".weight")]
                assert isinstance(layer, Linear)
                layer.branch = down[index], up[index]
        return plain(*given[:own])

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    module.forward = forward
    return module
