"""The TensorRT runtime on a simulated GPU: engines that run their stage's ONNX graph through onnxruntime.

A simulated plan is JSON that names the graph. Classes, methods and rules are those of the real runtime as its
documentation has them; `test_simulator.py` compares names and parameters with the real classes. Graphs run on
the very addresses that were bound, in the order of the stream. An error is logged and tells by False or None,
as in TensorRT.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from simulator_cuda import ALIGNMENT, POISON, CudaSimulator, DeviceError, Error

MAGIC = "simulated plan"
VERSION = "1.7.1.116"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    UINT8 = "uint8"


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy


class Runtime:
    """Of one simulated GPU; `module` makes the class for it."""

    _cuda: CudaSimulator
    _version: str

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        try:
            plan = json.loads(bytes(serialized_engine))
            whole = plan["kind"] == MAGIC
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            return self._refuse("Serialization assertion failed: the plan is not an engine")
        if plan["version"] != self._version:
            return self._refuse(f"the engine was built by version {plan['version']}, this is {self._version}")
        if "{}.{}".format(*self._cuda.capability) not in plan["capabilities"]:
            return self._refuse("the engine plan file is not compatible with this device")
        engine = ICudaEngine(plan, self._cuda, self.logger)
        if not plan["streamable"] and not engine._bring_weights():
            return None
        return engine

    def _refuse(self, why: str) -> None:
        self.logger.log(ILogger.ERROR, why)


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], cuda: CudaSimulator, logger: ILogger) -> None:
        self._plan, self._cuda, self._logger = plan, cuda, logger
        self._tensors = {each["name"]: each for each in (*plan["inputs"], *plan["outputs"])}
        self._inputs = [each["name"] for each in plan["inputs"]]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(plan["graph"], options, ["CPUExecutionProvider"])
        self._inferred: dict[Any, dict[str, tuple[int, ...]]] = {}
        self._weights: int | None = None
        self._budget = plan["weights"]
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()

    def _bring_weights(self) -> bool:
        """Put the weights that do not stream onto the GPU."""
        if self._weights is None:
            size = (
                min(self._budget, self._plan["weights"])
                if self._plan["streamable"]
                else self._plan["weights"]
            )
            code, address = self._cuda.cudaMalloc(size)
            if code != Error.cudaSuccess:
                self._logger.log(
                    ILogger.ERROR, f"Requested amount of GPU memory ({size} bytes): out of memory"
                )
                return False
            self._weights = address
            weakref.finalize(self, self._cuda.cudaFree, address)
        return True

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan["profiles"])

    @property
    def streamable_weights_size(self) -> int:
        return self._plan["weights"] if self._plan["streamable"] else 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if not self._plan["streamable"] or len(self._contexts) or budget < 0:
            self._logger.log(ILogger.ERROR, "the weight streaming budget cannot be set now")
            return
        self._budget = budget

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._activations(
            {name: ranges[2] for name, ranges in self._plan["profiles"][profile_index].items()}
        )

    def _activations(self, shapes: dict[str, Any]) -> int:
        """Twice the inputs' bytes, and something."""
        inside = sum(
            2 * math.prod(shape) * np.dtype(self._tensors[name]["dtype"]).itemsize
            for name, shape in shapes.items()
        )
        return (inside // ALIGNMENT + 2) * ALIGNMENT

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensors[name]["dtype"])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
        if self._cuda.forbid() or not self._bring_weights():
            return None
        context = IExecutionContext(self, runtime_config)
        self._contexts.add(context)
        return context


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        assert (
            config.get_execution_context_allocation_strategy()
            == ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self.engine, self._cuda = engine, engine._cuda
        self.active_optimization_profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._needed = engine.device_memory_size_v2
        self._ran = False
        """Since shapes or profile were set: what is put off until the first run would break a capture."""

    def _refuse(self, why: str) -> bool:
        self.engine._logger.log(ILogger.ERROR, why)
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles or self._cuda.forbid():
            return self._refuse(f"profile {profile_index} cannot be set")
        self.active_optimization_profile = profile_index
        self._shapes, self._ran = {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = self.engine._plan["profiles"][self.active_optimization_profile].get(name)
        if ranges is None:
            return self._refuse(f"{name} is no input")
        if len(shape) != len(ranges[0]) or not all(
            a <= n <= b for a, n, b in zip(ranges[0], shape, ranges[2], strict=True)
        ):
            return self._refuse(
                f"{name} {shape} is not in profile {self.active_optimization_profile}: {ranges}"
            )
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name], self._ran = tuple(shape), False
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        dims = self.engine._tensors[name]["dims"]
        if self.infer_shapes():
            return tuple(dim if isinstance(dim, int) else -1 for dim in dims)
        # Shape inference, as exact as it can be: by running on zeros, once.
        known, key = self.engine._inferred, tuple(sorted(self._shapes.items()))
        if key not in known:
            zeros = {each: np.zeros(shape, self._dtype(each)) for each, shape in self._shapes.items()}
            names = [each["name"] for each in self.engine._plan["outputs"]]
            found = self.engine._session.run(names, zeros)
            known[key] = {each: value.shape for each, value in zip(names, found, strict=True)}
        return known[key][name]

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes(), "all shapes must be set before"
        self._needed = self.engine._activations(self._shapes)
        self._memory = None
        return self._needed

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT or size < self._needed:
            self._refuse(f"device memory of {size} bytes at {memory:#x} will not do for {self._needed}")
            return
        self._memory = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._tensors or memory % ALIGNMENT:
            return self._refuse(
                f"{name} cannot be bound to {memory:#x}: unknown, or not aligned to {ALIGNMENT} bytes"
            )
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def is_stream_capturable(self, stream: int) -> bool:
        """Of TensorRT-RTX alone: an engine built without REQUIRE_USER_ALLOCATION may allocate in a run."""
        self._cuda.stream(stream)
        return bool(self.engine._plan["user_allocation"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        if missing := self.infer_shapes():
            return self._refuse(f"the shape of {missing[0]} is not set")
        if unbound := [name for name in self.engine._tensors if not self._addresses.get(name)]:
            return self._refuse(f"{unbound[0]} is not bound")
        if self._memory is None:
            return self._refuse("no device memory is given")
        stream = self._cuda.stream(stream_handle)
        plan = self.engine._plan
        if stream.kept is not None and not (self._ran and plan["recordable"] and plan["user_allocation"]):
            stream.broken = True
            return self._refuse("operation not permitted when stream is capturing")
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in self.engine._tensors}
        addresses, memory = dict(self._addresses), self._memory
        stream.add(_alive(self, shapes, addresses, memory))
        self._ran = True
        return True

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(self.engine._tensors[name]["dtype"])

    def _compute(self, shapes: dict[str, Any], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        """Run the graph on the addresses; the activations' memory is overwritten, as a run does."""
        name = self.engine._plan["graph"]
        for each, address in addresses.items():
            self._cuda.expect(
                address, math.prod(shapes[each]) * self._dtype(each).itemsize, f"{name}: {each}"
            )
        self._cuda.expect(*memory, f"{name}: activations")
        ctypes.memset(memory[0], POISON, memory[1])
        binding = self.engine._session.io_binding()
        for each, address in addresses.items():
            bind = binding.bind_input if each in self.engine._inputs else binding.bind_output
            bind(each, "cpu", 0, self._dtype(each).type, list(shapes[each]), address)
        try:
            self.engine._session.run_with_iobinding(binding)
        except Exception as fault:
            raise DeviceError(Error.cudaErrorLaunchFailure, f"{name}: {fault}") from fault


def _alive(context: IExecutionContext, *run: Any) -> Callable[[], None]:
    """The queued run of a context; one that is gone by then, or when a graph is launched, is a fault."""
    found, graph = weakref.ref(context), context.engine._plan["graph"]

    def work() -> None:
        if (alive := found()) is None:
            raise DeviceError(Error.cudaErrorContextIsDestroyed, f"{graph}: its execution context is gone")
        alive._compute(*run)

    return work


def module(cuda: CudaSimulator, version: str = VERSION) -> types.SimpleNamespace:
    """What stands for the module `tensorrt_rtx` or `tensorrt` on that GPU."""
    return types.SimpleNamespace(
        __version__=version,
        Runtime=type("Runtime", (Runtime,), {"_cuda": cuda, "_version": version}),
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        IRuntimeConfig=IRuntimeConfig,
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
        nptype=lambda kind: np.dtype(kind.value).type,
    )
