"""What enters the linear layers and the attentions of a model that runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flux_trt.exporter.families.stage import Stage, large_layers
from flux_trt.exporter.quantise.calibration import ATTENTION, HEADS
from flux_trt.exporter.quantise.histogram import Histogram

COUNTS, AMAX = "counts/", "amax/"


class Watch(TorchFunctionMode):
    """Counts what enters linear layers, and the attention while it is entered as a context."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()` of another run, if they are in `state`."""
        super().__init__()
        self.block = ""
        self.seen: dict[str, Histogram] = {}
        for name in (name.removeprefix(COUNTS) for name in state if name.startswith(COUNTS)):
            self.seen[name] = Histogram(state[COUNTS + name], float(state[AMAX + name]))

    def tensors(self) -> dict[str, Tensor]:
        """All that was counted."""
        counts = {COUNTS + name: each.counts for name, each in self.seen.items()}
        amaxes = {AMAX + name: torch.tensor(each.amax, device="cpu") for name, each in self.seen.items()}
        return counts | amaxes

    def layers(self, stage: Stage, module: nn.Module) -> None:
        """Watch the large layers of a stage's module."""
        for layer in large_layers(stage):
            see = partial(self._enters, f"{stage.name}/{layer}")
            module.get_submodule(layer).register_forward_pre_hook(see)

    def _enters(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        for part in args:
            self._see(name, part)

    def _see(self, name: str, x: Tensor) -> None:
        self.seen.setdefault(name, Histogram()).add(x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            for head, x in zip(HEADS, args, strict=False):
                self._see(f"denoiser/{self.block}.{ATTENTION}.{head}", x)
        return func(*args, **(kwargs or {}))
