"""A backend that runs the traced modules themselves, in torch, with the weights of a bundle.

It runs what no other backend has kernels for here, such as bfloat16 on a CPU, so that a precision can be
judged before there is an engine for it. Not a way to deploy: it needs torch and the checkpoint's configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from flux_trt.exporter.checkpoints.tensorfile import TensorInfo
from flux_trt.exporter.families.branches import branched
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.stage import skeleton
from flux_trt.exporter.quantise.format import SCALE, SCALE_2
from flux_trt.exporter.quantise.formats import STORED
from flux_trt.exporter.quantise.quantize import attention_scales
from flux_trt.exporter.quantise.rounded import round_inputs, rounding_attention
from flux_trt.runtime.backends import protocols
from flux_trt.runtime.bundle.manifest import Adapters, Stage
from flux_trt.runtime.errors import BackendError

CODES = {
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT4: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.uint8,
}


@dataclass(frozen=True)
class EagerBuffer:
    """A torch tensor as a backend's buffer."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return tuple(self.tensor.shape)

    @property
    def on_host(self) -> bool:
        """Whether the memory is the host's."""
        return self.tensor.device.type == "cpu"

    def __getitem__(self, row: int) -> EagerBuffer:
        if not 0 <= row < self.shape[0]:
            raise IndexError(row)
        return EagerBuffer(self.tensor[row])

    def head(self, rows: int) -> EagerBuffer:
        """The first `rows` rows of the first dim."""
        if not 0 < rows <= self.shape[0]:
            raise IndexError(rows)
        return EagerBuffer(self.tensor[:rows])

    def reshape(self, *shape: int) -> EagerBuffer:
        """The same memory in another shape."""
        return EagerBuffer(self.tensor.view(shape))

    def numpy(self) -> npt.NDArray[Any]:
        """The values on the host."""
        return self.tensor.cpu().numpy()

    def fill(self, other: EagerBuffer) -> None:
        """Copy another's values here."""
        self.tensor.copy_(other.tensor)


class EagerGraph:
    """A stage's module with its weights."""

    def __init__(
        self,
        module: nn.Module,
        record: Stage,
        device: str,
        attention: Sequence[Sequence[float]],
        softmax: bool = False,
    ) -> None:
        self._module: nn.Module | None = module.to(device)
        self._record, self._device, self._attention = record, device, attention
        self._softmax = softmax

    @torch.no_grad()
    def run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None = None,
    ) -> dict[str, protocols.Buffer]:
        """Run once; see `protocols.Graph.run`."""
        if self._module is None:
            raise BackendError("the stage is closed; load the pipeline again")
        args = [_tensor(inputs[tensor.name]).to(self._device) for tensor in self._record.inputs]
        with rounding_attention(self._attention, self._softmax):
            found = self._module(*args)
        values = found if isinstance(found, tuple) else (found,)
        named = {tensor.name: v for tensor, v in zip(self._record.outputs, values, strict=True)}
        if into is None:
            return {name: EagerBuffer(value) for name, value in named.items()}
        for name, target in into.items():
            _tensor(target).copy_(named[name])
        return dict(into)

    def close(self) -> None:
        """Let the weights go."""
        self._module = None


class Eager:
    """torch eager on one device."""

    name = "eager"

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        adapters: Adapters | None = None,
        softmax: bool = False,
    ) -> None:
        """The checkpoint tells the modules' shapes; weights and LoRA branches are the bundle's.

        Args:
            model: of the checkpoint.
            device: of torch.
            adapters: of LoRAs.
            softmax: round as TensorRT's engines do, not as the graph does: see `rounding_attention`.
        """
        self.model, self.device, self._adapters, self._softmax = model, device, adapters, softmax

    gpu = None

    def refuse(self, name: str, stage: Stage) -> None:
        """Torch runs every precision."""

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """Bytes of the files that hold the stage's weights."""
        return protocols.file_bytes(path, stage)

    def load(self, path: Path, name: str, stage: Stage) -> EagerGraph:
        """The traced module of the stage, with the weights that the graph at `path` refers to."""
        base = stage.base or "bf16"
        takes = self._adapters
        plain = next((own for own, each in takes.stages.items() if each == name), name) if takes else name
        (traced,) = make_stages(self.model, stage.precision, [plain], {plain: stage.precision}, base)
        if takes and plain != name:
            traced = branched(traced, [each for each in takes.branches if each.stage == plain])
        module, graph = skeleton(traced), ir.load(path)
        stored = {
            name: value.const_value
            for name, value in graph.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        parts = {name + suffix for name in stored for suffix in (SCALE, SCALE_2)}
        for parameter, tensor in stored.items():
            if parameter in parts:
                continue
            weight = _weight(stored, parameter, tensor, traced.dtype)
            holder, _, attribute = parameter.rpartition(".")
            setattr(module.get_submodule(holder), attribute, nn.Parameter(weight, requires_grad=False))
        round_inputs(module, graph)
        for owner in module.modules():
            for unused in [
                name for name, value in owner._parameters.items() if value is not None and value.is_meta
            ]:
                owner._parameters[unused] = None  # of the VAE's other half
        return EagerGraph(module, stage, self.device, attention_scales(graph), self._softmax)

    def upload(self, array: npt.NDArray[Any]) -> EagerBuffer:
        """Put a copy of an array on the device."""
        return EagerBuffer(torch.from_numpy(np.array(array)).to(self.device))


def _tensor(value: protocols.Buffer | npt.NDArray[Any]) -> torch.Tensor:
    return value.tensor if isinstance(value, EagerBuffer) else torch.from_numpy(np.array(value))


def _weight(
    stored: Mapping[str, ir.ExternalTensor], name: str, tensor: ir.ExternalTensor, dtype: torch.dtype
) -> torch.Tensor:
    """A parameter in the stage's dtype, as the graph makes it of what is stored."""
    if tensor.dtype not in STORED:
        return _read(tensor, dtype)
    there = {suffix: stored[name + suffix] for suffix in ("", SCALE, SCALE_2) if name + suffix in stored}
    return STORED[tensor.dtype].decode({suffix: _read(each, dtype) for suffix, each in there.items()}, dtype)


def _read(tensor: ir.ExternalTensor, dtype: torch.dtype) -> torch.Tensor:
    """The bytes that an initializer points at: codes, packed if they have four bits, or the stage's dtype."""
    kind, shape = CODES.get(tensor.dtype, dtype), tuple(tensor.shape.numpy())
    if kind == torch.uint8:
        shape = *shape[:-1], shape[-1] // 2
    return TensorInfo(Path(tensor.path), kind, shape, tensor.offset or 0, tensor.length or 0).read()
