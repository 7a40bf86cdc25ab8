"""What a quantised precision is made of: how a weight is kept, and how what enters its layer is rounded.

A weight [out, in] becomes tensors of the stage's safetensors file, by what is added to its name: "" are the
codes, `SCALE` and `SCALE_2` what they are multiplied by. The graph's nodes make numbers of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise.drawing import Drawing
from flux_trt.runtime.bundle.manifest import Precision

SCALE, SCALE_2 = "_scale", "_scale_2"
"""Added to a weight's name: the name of its scale, and of the scale of its scales."""
Shape = tuple[int, ...]


class Weights(Protocol):
    """How weights are kept."""

    @property
    def kind(self) -> ir.DataType:
        """Of the codes in the graph."""

    @property
    def turned(self) -> bool:
        """Whether the codes lie as [in, out], which backends multiply as they stand without a copy."""

    def parts(self, shape: Shape, base: torch.dtype, per_channel: bool) -> Mapping[str, tuple[Any, Shape]]:
        """Dtype and shape in the file of everything that a weight [out, in] becomes."""

    def encode(self, weight: Tensor, base: torch.dtype, per_channel: bool) -> Mapping[str, Tensor]:
        """Those, of a weight in float32."""

    def decode(self, parts: Mapping[str, Tensor], base: torch.dtype) -> Tensor:
        """The weight that the graph makes of them, in `base`, the type around it."""

    def draw(self, to: Drawing, weight: ir.Value, before: ir.Node, per_channel: bool) -> ir.Value:
        """Nodes, and initializers without values, that do the same; `weight` becomes the codes.

        What they give is [out, in], or [in, out] where the codes lie so.
        """


class Inputs(Protocol):
    """How what enters a layer is rounded, while it runs."""

    @property
    def kind(self) -> ir.DataType:
        """Of the codes in the graph."""

    def scale_of(self, amax: float, base: torch.dtype) -> Tensor:
        """The scale, in `base`, of a value whose largest is expected to be `amax`."""

    def draw_input(self, to: Drawing, value: ir.Value, before: ir.Node, amax: float) -> ir.Value:
        """Nodes that round a value whose largest is expected to be `amax`."""

    def rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        """The same, in x's dtype, with the scale that the graph has."""


@dataclass(frozen=True)
class Format:
    """A quantised precision."""

    weights: Weights
    inputs: Inputs | None = None
    """None: what enters a layer stays in the type around it, and no calibration is needed."""
    block: int = 1
    """Channels that share a scale: a layer takes a multiple of it, or the format `otherwise`."""
    otherwise: Precision | None = None
