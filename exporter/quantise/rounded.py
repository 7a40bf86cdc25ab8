"""Torch modules that round as their graphs do: what is quantised in the graph takes its values here too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flux_trt.exporter.quantise.e4m3 import LARGEST, rounded
from flux_trt.exporter.quantise.format import Inputs
from flux_trt.exporter.quantise.formats import ROUNDED
from flux_trt.exporter.quantise.quantize import rounded_inputs


def round_inputs(module: nn.Module, model: ir.Model) -> None:
    """Round the inputs of the linear layers that the graph quantises, with the graph's scales."""
    for weight, (kind, scale) in rounded_inputs(model).items():
        layer = module.get_submodule(weight.removesuffix(".weight"))
        layer.register_forward_pre_hook(_rounding(ROUNDED[kind], scale))


def _rounding(inputs: Inputs, scale: float) -> Any:
    def hook(layer: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dtype = layer.weight.dtype
        return tuple(inputs.rounded(part.to(dtype), torch.tensor(scale)) for part in args)

    return hook


def rounding_attention(
    scales: Sequence[Sequence[float]], softmax: bool = False
) -> AbstractContextManager[object]:
    """While it is entered, once, a module runs with q, k and v of each attention rounded, in their order.

    Args:
        scales: of each attention's q, k and v.
        softmax: round what softmax gives as well, as FP8 kernels do; the graph itself has no place for that.
    """
    return _Attention(scales, softmax) if scales else nullcontext()


class _Attention(TorchFunctionMode):
    def __init__(self, scales: Sequence[Sequence[float]], softmax: bool) -> None:
        super().__init__()
        self._softmax = softmax
        self._scales = iter(scales)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            pairs = zip(args[:3], next(self._scales), strict=True)
            q, k, v = (rounded(x, torch.tensor(scale)) for x, scale in pairs)
            if self._softmax:
                assert len(args) == 3
                assert not kwargs
                shares = F.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
                return rounded(shares, torch.tensor(1 / LARGEST)) @ v
            args = (q, k, v, *args[3:])
        return func(*args, **(kwargs or {}))
