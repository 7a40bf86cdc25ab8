"""The OpenVINO backend: every stage and precision on a CPU.

Arrays are bound by pointer, inputs and outputs alike. The precision is the stage's own: left alone, OpenVINO
computes a float32 graph in bfloat16 on CPUs that are faster with it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends import protocols
from flux_trt.runtime.backends.cpus import features
from flux_trt.runtime.bundle.manifest import Precision, Stage, Tensor
from flux_trt.runtime.errors import BackendError

try:
    import openvino as ov
    from openvino.frontend.onnx import ConversionExtension

    from flux_trt.runtime.backends.openvino_rope import qk_norm_rope
except ImportError:
    raise BackendError(
        "openvino is not installed; install flux_trt with its extra: flux_trt[openvino]"
    ) from None

_log = logging.getLogger(__name__)
SHAPES = 64
"""Shapes per graph whose kernels are kept. By itself OpenVINO keeps 5000, in practice all: 2 MB for each size
of picture (benchmarks/results/soak.json)."""
WEIGHTS_ALONE = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""Of w8a16 and w4a16: by itself OpenVINO rounds what such weights are multiplied with to 8 bits, too."""
_HINTS: dict[Precision, tuple[str, str]] = {
    "fp32": ("f32", "FP32"),
    "bf16": ("bf16", "BF16"),
    # In f16, what the graph keeps in float32 for a reason, such as the embedded time, would be f16 too.
    "fp16": ("f32", "FP32"),
}
"""What OpenVINO is to compute in, and what it calls that among a CPU's abilities."""
_NUMPY = {
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
    "boolean": "bool",
}


@dataclass(frozen=True)
class HostBuffer:
    """An array in the host's memory."""

    array: npt.NDArray[Any]

    on_host = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return self.array.shape

    def __getitem__(self, row: int) -> HostBuffer:
        if not 0 <= row < len(self.array):
            raise IndexError(row)
        return HostBuffer(self.array[row])

    def head(self, rows: int) -> HostBuffer:
        """The first `rows` rows of the first dim."""
        if not 0 < rows <= len(self.array):
            raise IndexError(rows)
        return HostBuffer(self.array[:rows])

    def reshape(self, *shape: int) -> HostBuffer:
        """The same memory in another shape."""
        if math.prod(shape) != self.array.size:
            raise ValueError(f"{self.shape} cannot be seen as {shape}")
        return HostBuffer(self.array.reshape(shape))

    def numpy(self) -> npt.NDArray[Any]:
        """The values: the memory itself."""
        return self.array

    def fill(self, other: HostBuffer) -> None:
        """Copy another's values here."""
        self.array[...] = other.array.reshape(self.shape)


class OpenVinoGraph:
    """A compiled stage with its bindings."""

    def __init__(self, request: ov.InferRequest, name: str, stage: Stage) -> None:
        self._request: ov.InferRequest | None = request
        self._name = name
        self._inputs = [tensor.name for tensor in stage.inputs]
        self._outputs = {tensor.name: tensor for tensor in stage.outputs}
        self._bound: dict[str, tuple[tuple[int, tuple[int, ...]], ov.Tensor, object]] = {}
        self._lock = threading.RLock()  # a request's tensors are one caller's until it has run

    def run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None = None,
    ) -> dict[str, protocols.Buffer]:
        """Run once; see `protocols.Graph.run`."""
        with self._lock:
            return self._run(inputs, into)

    def _run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None,
    ) -> dict[str, protocols.Buffer]:
        if self._request is None:
            raise BackendError(f"the stage {self._name} is closed; load the pipeline again")
        protocols.expect_all(self._name, self._inputs, inputs)
        made: dict[str, ov.Tensor] = {}
        try:
            for name, value in inputs.items():
                self._bind(name, _array(value))
            for name, tensor in self._outputs.items():
                if into is not None and name in into:
                    self._bind(name, _array(into[name]))
                else:
                    made[name] = _empty(tensor)
                    self._request.set_tensor(name, made[name])
                    self._bound.pop(name, None)
            self._request.infer()
        except (RuntimeError, ValueError, TypeError) as fault:
            raise _fault(f"the stage {self._name} failed", fault) from fault
        if into is not None:
            return dict(into)
        return {name: HostBuffer(tensor.data) for name, tensor in made.items()}

    def close(self) -> None:
        """Let the compiled graph and its weights go, once the run under way is done."""
        with self._lock:
            self._request = None
            self._bound.clear()

    def _bind(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind the array's own memory, and hold it until another takes its place."""
        key = array.ctypes.data, array.shape
        if name not in self._bound or self._bound[name][0] != key:
            assert self._request is not None
            # OpenVINO shares no read-only memory.
            tensor = ov.Tensor(array, shared_memory=array.flags.writeable)
            self._request.set_tensor(name, tensor)
            self._bound[name] = key, tensor, array


class OpenVino:
    """OpenVINO on the CPU."""

    name = "openvino"
    device = "cpu"
    gpu = None

    def __init__(
        self,
        device: protocols.Device = "auto",
        settings: Mapping[str, Any] | None = None,
        threads: int | None = None,
        compute: protocols.Compute = "auto",
    ) -> None:
        """Start OpenVINO.

        Args:
            device: "auto" or "cpu".
            settings: OpenVINO's own, which take the place of ours, such as `CPU_RUNTIME_CACHE_CAPACITY`.
            threads: that a graph computes on; None: as many as the machine has cores.
            compute: "auto" computes a bf16 stage in bfloat16 where that is faster than float32, which takes
                AMX, and all others in float32. "bf16" and "fp32" compute what runs every step in that.

        Raises:
            BackendError: "cuda", or bfloat16 where the CPU has none.
        """
        if device == "cuda":
            raise BackendError("openvino runs on the CPU; use --device cpu, or --backend onnxruntime")
        self._settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._settings |= settings or {}
        self._one_thread = int(self._settings.get("INFERENCE_NUM_THREADS") or os.cpu_count() or 1) == 1
        self._core = ov.Core()
        self._core.add_extension(ConversionExtension("QKNormRope", "flux", qk_norm_rope))
        self._able = set(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self.compute = compute
        self._features = features()
        self._told = False
        if compute == "bf16" and "BF16" not in self._able:
            raise BackendError("this CPU does not compute in bf16; leave --compute out")

    def refuse(self, name: str, stage: Stage) -> None:
        """Refuse nvfp4. fp8 is computed as its numbers say, in the type of its base, and no faster."""
        protocols.refuse_nvfp4(name, stage)

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """Bytes of the graph's file and of the files beside it that hold its weights."""
        return protocols.file_bytes(path, stage)

    def load(self, path: Path, name: str, stage: Stage) -> OpenVinoGraph:
        """Read and compile a graph; OpenVINO maps the weights from the files beside it."""
        return OpenVinoGraph(self.compile(path, name, stage).create_infer_request(), name, stage)

    def compile(self, path: Path, name: str, stage: Stage) -> ov.CompiledModel:
        """The graph as OpenVINO's own object.

        Raises:
            BackendError, BundleError: those of `load`.
        """
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint(stage),
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_RUNTIME_CACHE_CAPACITY": SHAPES,
            **(WEIGHTS_ALONE if stage.precision in ("w8a16", "w4a16") else {}),
            **self._settings,
        }
        self.refuse(name, stage)
        try:
            model = self._core.read_model(path)
            if self._one_thread and settings["INFERENCE_PRECISION_HINT"] == "bf16" and _shares_inputs(model):
                # OpenVINO 2026.4 is killed by a division by zero, in its kernel for such products.
                settings["INFERENCE_PRECISION_HINT"] = "f32"
                _log.warning(
                    "%s is computed in float32, since OpenVINO computes it in bf16 on two threads or more",
                    name,
                )
            protocols.agree(path, "input", stage.inputs, _found(model.inputs))
            protocols.agree(path, "output", stage.outputs, _found(model.outputs))
            return self._core.compile_model(model, "CPU", settings)
        except (RuntimeError, ValueError) as fault:  # a ValueError: what the graph names is no UTF-8
            raise _fault(f"openvino cannot load {path}", fault) from fault

    def _hint(self, stage: Stage) -> str:
        """What to compute a stage in."""
        if self.compute != "auto" and stage.runs == "step":
            return {"fp32": "f32", "bf16": "bf16"}[self.compute]
        hint, capability = _HINTS[stage.base or stage.precision]
        if hint != "bf16" or capability not in self._able:
            return "f32"
        if self._features is None or "amx_bf16" in self._features:
            return hint
        if not self._told and stage.runs == "step":
            self._told = True
            _log.warning(
                "this CPU has no AMX, without which bf16 is slower: a bf16 bundle is computed in float32; "
                "--compute bf16 computes it in bf16 all the same, in less memory"
            )
        return "f32"

    def upload(self, array: npt.NDArray[Any]) -> HostBuffer:
        """The array where it is."""
        return HostBuffer(np.ascontiguousarray(array))


def _shares_inputs(model: ov.Model) -> bool:
    """Whether several products have one input: queries, keys and values apart, or an MLP's gate and value."""
    seen = Counter(
        before.get_node().get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() == "MatMul"
        for before in (op.input_value(0), op.input_value(1))
    )
    return any(count > 1 for count in seen.values())


def _array(value: protocols.Buffer | npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value.array if isinstance(value, HostBuffer) else np.ascontiguousarray(value)


def _empty(tensor: Tensor) -> ov.Tensor:
    """A tensor that OpenVINO gives its size when it writes to it; where nothing varies it has it already."""
    known = [dim for dim in tensor.dims if isinstance(dim, int)]
    dims = known if len(known) == len(tensor.dims) else [0] * len(tensor.dims)
    return ov.Tensor(ov.Type(np.dtype(tensor.dtype)), ov.Shape(dims))


def _found(ports: list[Any]) -> dict[str, protocols.Port]:
    return {
        port.any_name: (
            _NUMPY.get(port.element_type.get_type_name()),
            [dim.get_length() if dim.is_static else str(dim) for dim in port.partial_shape],
        )
        for port in ports
    }


def _fault(what: str, fault: Exception) -> BackendError:
    """In one line, without the places in OpenVINO's sources."""
    text = " ".join(str(fault).split())
    text = re.sub(r"Exception from \S+:\d+:\s*|(Check '.*?' )?failed at \S+:\d+:\s*", "", text)
    return BackendError(f"{what}: {text}")
