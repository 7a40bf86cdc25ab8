"""One graph to be: a module without weights, where its weights come from, and what it needs on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from flux_trt.exporter.checkpoints.recipe import Recipe, Tensors
from flux_trt.runtime.bundle.manifest import Precision, Runs, StageName, Tensor
from flux_trt.runtime.bundle.record import Dtype

OF_TEXTS: Mapping[Precision, Precision] = {
    "fp16": "fp32",
    "int8": "w8a16",
    "w4a16": "w8a16",
    "nvfp4": "fp8",
}
"""Precision of a bundle -> what its large text encoder has instead: the inputs of its layers have outliers
that no static scale of INT8 holds, and a prompt that is rounded to 4 bits cannot be mended by any step."""
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Varying:
    """A dim that varies: how large it is while the stage is traced, and what is known of it."""

    example: int
    most: int | None = None
    of: str | None = None
    """Another dim that it is a multiple of."""
    times: int = 1
    free: bool = False
    """The tracer finds out how it depends on others."""
    rule: str = ""
    """What a free dim is of others, for whoever reads the graph: text + tokens."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What of a stage is quantised, and the largest value that each tensor is expected to have."""

    layers: Mapping[str, Precision]
    """Linear layer -> the format of its weight, `<layer>.weight`, and of its input."""
    inputs: Mapping[str, float] = field(default_factory=dict)
    """Linear layer -> of its input, where the format rounds that."""
    attention: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Block -> of q, k and v, in the order of the graph's Attention nodes; empty: not quantised."""
    per_channel: bool = True

    @property
    def weights(self) -> frozenset[str]:
        """The quantised parameters."""
        return frozenset(f"{layer}.weight" for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One graph to be: `build()` makes its module (weights absent), `recipes` say where they come from."""

    name: StageName
    part: str
    """The part of the checkpoint that it is made from."""
    build: Callable[[], nn.Module]
    tensors: Tensors
    recipes: Mapping[str, Recipe]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    dims: Mapping[str, Varying]
    config: Mapping[str, Any]
    runs: Runs
    """When."""
    uses: tuple[str, ...] = ("",)
    """How the names of the parameters begin that are its own; a VAE's module holds both halves."""
    blocks: tuple[str, ...] = ()
    """Lists of blocks, which may be loaded one at a time."""
    fp8_layers: tuple[str, ...] = ()
    """How the names of the linear layers begin that fp8 and its like quantise; empty: none are."""
    in_fp8: bool = False
    """Whether a quantised bundle has it quantised without being asked for it by name."""
    fp8_attention: bool = False
    """Whether its attention may be quantised too."""
    safer: Mapping[Precision, Precision] = field(default_factory=dict)
    """Precision of a bundle -> what the stage has instead, when nothing else is asked for."""
    refuses: Mapping[Precision, str] = field(default_factory=dict)
    """Precision -> why the stage cannot have it, and what to take."""
    precision: Precision = "fp32"
    base: Precision | None = None
    """Where it is quantised: the precision of all that is not."""
    quantisation: Quantisation | None = None
    """What is quantised; known when a calibration is, if that is needed."""
    shares: StageName | None = None
    """The stage whose weights it uses, which is built before it."""
    inline: bool = False
    """Whether its graph is to be of standard operators alone."""
    carried: frozenset[str] = frozenset()
    """Inputs and outputs of the runtime's own: float16 unless the stage computes in float32.

    The runtime has no bfloat16; float16 holds what bfloat16 does between 6e-5 and 65504 exactly.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters that are not quantised."""
        return DTYPES[self.base or self.precision]

    def typed(self) -> Stage:
        """The stage with what is carried in the type that its precision gives it."""
        kind: Dtype = "float32" if self.dtype == torch.float32 else "float16"

        def of(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [
                each.model_copy(update={"dtype": kind}) if each.name in self.carried else each
                for each in tensors
            ]

        return replace(self, inputs=of(self.inputs), outputs=of(self.outputs)) if self.carried else self

    @property
    def files(self) -> list[Path]:
        """The checkpoint files its weights lie in."""
        return sorted({file for info in self.tensors.values() for file in info.files})


def skeleton(stage: Stage) -> nn.Module:
    """The stage's module in its dtype with parameters on the meta device; small buffers are real."""
    with init_empty_weights(include_buffers=False):
        module = stage.build().eval()
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=stage.dtype, device="meta")
                owner._parameters[name] = nn.Parameter(empty, requires_grad=False)
    for name, kept in stage.quantisation.layers.items() if stage.quantisation else ():
        module.get_submodule(name).joined = kept != "fp8"  # type: ignore[assignment]
    return module


def unbuildable(part: str, fault: Exception) -> str:
    """That a part's config makes no module."""
    return f"no {part} can be made from its config ({fault!r}); copy or download it again"


def parameters(stage: Stage, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the module that are the stage's own."""
    return {name: value for name, value in module.named_parameters() if name.startswith(stage.uses)}


def large_layers(stage: Stage) -> list[str]:
    """The linear layers of a stage that are quantised, in the module's order."""
    linears = (name for name, module in skeleton(stage).named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if name.startswith(stage.fp8_layers)]


def f32(name: str, *dims: int | str) -> Tensor:
    """A float32 input or output."""
    return Tensor(name=name, dtype="float32", dims=list(dims))
