"""Modules larger than memory: their blocks get weights when they run, and lose them when they have run.

The modules are those that are traced; only where their weights are, and how many samples a block sees at
once, is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flux_trt.exporter.families.stage import Stage, parameters, skeleton


def streamed(
    stage: Stage, device: str, rows: int | None = None, before: Callable[[str], None] = lambda block: None
) -> nn.Module:
    """The stage's module on a device: its blocks empty until they run, the rest loaded.

    Args:
        stage: in the precision that it is to run in.
        device: a torch device.
        rows: how many samples a block runs at once, at most; None: all.
        before: told the name of a block before it runs.
    """
    module = skeleton(stage)
    blocks = blocks_of(stage, module)
    inside = tuple(f"{name}." for name in blocks)
    for name in parameters(stage, module):
        if not name.startswith(inside):
            _set(module, name, stage.recipes[name].load(stage.tensors).to(device, stage.dtype))
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = buffer.to(device) if buffer is not None else None
    for name, block in blocks.items():
        block.forward = partial(_run, stage, name, block, block.forward, device, rows, before)
    return module


def blocks_of(stage: Stage, module: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a stage's module that are loaded one at a time, by name."""
    return {
        f"{path}.{index}": block
        for path in stage.blocks
        for index, block in module.get_submodule(path).named_children()
    }


def _run(
    stage: Stage,
    name: str,
    block: nn.Module,
    forward: Callable[..., Any],
    device: str,
    rows: int | None,
    before: Callable[[str], None],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A block's forward with its weights there, on some samples after others."""
    before(name)
    with _loaded(stage, name, block, device):
        if rows is None:
            return forward(*args, **kwargs)
        batch = args[0].shape[0]
        parts = [
            forward(*(_rows(arg, batch, slice(first, first + rows)) for arg in args), **kwargs)
            for first in range(0, batch, rows)
        ]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))
    return torch.cat(parts)


def _rows(arg: Tensor, batch: int, chosen: slice) -> Tensor:
    """Some samples of what has samples: [batch, tokens, channels] or heads; the rotation tables have none."""
    return arg[chosen] if arg.ndim >= 3 and arg.shape[0] == batch else arg


@contextmanager
def _loaded(stage: Stage, name: str, block: nn.Module, device: str) -> Iterator[None]:
    """The block with its weights, read one tensor at a time."""
    absent = dict(block.named_parameters())
    try:
        for inner in absent:
            tensor = stage.recipes[f"{name}.{inner}"].load(stage.tensors)
            _set(block, inner, tensor.to(device, stage.dtype))
        yield
    finally:
        for inner, parameter in absent.items():
            _set(block, inner, parameter)


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    holder, _, attribute = name.rpartition(".")
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(module.get_submodule(holder), attribute, parameter)
