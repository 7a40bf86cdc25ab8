"""onnxruntime's CUDA provider on a simulated GPU: sessions of the CPU provider that read and write the bound
addresses when their turn comes on the stream of `user_compute_stream`.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import onnxruntime as ort
from simulator_cuda import CudaSimulator, DeviceError, Error

NUMPY = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


class Value:
    """An output that the provider has allocated."""

    def __init__(self, cuda: CudaSimulator, kind: str, shape: tuple[int, ...]) -> None:
        self._kind, self._shape = kind, shape
        code, self._address = cuda.cudaMalloc(math.prod(shape) * np.dtype(NUMPY[kind]).itemsize)
        if code != Error.cudaSuccess:
            raise RuntimeError("Failed to allocate memory")
        weakref.finalize(self, cuda.cudaFree, self._address)

    def data_ptr(self) -> int:
        return self._address

    def shape(self) -> list[int]:
        return list(self._shape)

    def data_type(self) -> str:
        return self._kind


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.made: list[Any] = []

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.inputs[name] = np.dtype(element_type), tuple(shape), buffer_ptr

    def bind_output(
        self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None
    ):
        assert (device_type, device_id) == ("cuda", 0)
        self.outputs[name] = element_type and (np.dtype(element_type), tuple(shape), buffer_ptr)

    def clear_binding_outputs(self):
        self.outputs.clear()

    def get_outputs(self):
        return self.made


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, name, value):
        self.entries[name] = value


class Session:
    def __init__(self, library: OrtSimulator, path: Any, options: Any, providers: list[Any]) -> None:
        (name, settings), rest = providers
        assert (name, rest) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        self._cuda, self._stream = library.cuda, int(settings["user_compute_stream"])
        self._session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, iobinding: Binding, run_options: RunOptions | None = None) -> None:
        places = {**iobinding.inputs, **iobinding.outputs}
        iobinding.made = []
        if missing := [each.name for each in self.get_inputs() if each.name not in iobinding.inputs]:
            raise RuntimeError(f"missing input: {missing[0]}")
        for output in self.get_outputs():
            if output.name in places and places[output.name] is None:
                zeros = {name: np.zeros(shape, kind) for name, (kind, shape, _) in iobinding.inputs.items()}
                shape = self._session.run([output.name], zeros)[0].shape
                value = Value(self._cuda, output.type, shape)
                places[output.name] = np.dtype(NUMPY[output.type]), shape, value.data_ptr()
                iobinding.made.append(value)
        inputs = set(iobinding.inputs)
        self._cuda.stream(self._stream).add(lambda: self._compute(places, inputs))
        if not run_options or run_options.entries.get("disable_synchronize_execution_providers") != "1":
            self._cuda.cudaStreamSynchronize(self._stream)

    def _compute(self, places: dict[str, Any], inputs: set[str]) -> None:
        binding = self._session.io_binding()
        for name, (kind, shape, address) in places.items():
            self._cuda.expect(address, math.prod(shape) * kind.itemsize, name)
            bind = binding.bind_input if name in inputs else binding.bind_output
            bind(name, "cpu", 0, kind.type, list(shape), address)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as fault:
            raise DeviceError(Error.cudaErrorLaunchFailure, str(fault)) from fault


class OrtSimulator:
    """Stands for the module `onnxruntime` of onnxruntime-gpu."""

    SessionOptions = ort.SessionOptions
    RunOptions = RunOptions

    def __init__(self, cuda: CudaSimulator) -> None:
        self.cuda = cuda

    def set_default_logger_severity(self, severity):
        ort.set_default_logger_severity(severity)

    def disable_telemetry_events(self):
        ort.disable_telemetry_events()

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self):
        pass

    def InferenceSession(self, path, options, providers):  # noqa: N802
        return Session(self, path, options, providers)
