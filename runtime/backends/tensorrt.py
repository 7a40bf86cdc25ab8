"""The TensorRT backend: engines of a bundle on one GPU, either flavour.

All contexts share one arena for their activations, and every shape of a stage has a context of its own, so
that a recording of one shape stays valid while others run.
Source: TensorRT Python API, `ICudaEngine` and `IExecutionContext`; developer guide, "CUDA graphs".
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends import protocols
from flux_trt.runtime.backends.device import DeviceBuffer, Gpu, Memory
from flux_trt.runtime.backends.memory import MemoryMode, way_out
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import Engine, Profile, choose_profile, find, nearest, read_plan
from flux_trt.runtime.bundle.flavour import FLAVOURS, Flavour, FlavourName
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.record import Tensor
from flux_trt.runtime.errors import BackendError, BundleError, GpuMemoryError

SHAPES = 8  # contexts that a stage keeps, one per shape
HEADROOM = 1 << 28  # bytes left free when weights are streamed: CUDA's own and the pictures' buffers

_log = logging.getLogger(__name__)


class Arena:
    """The memory that holds the activations of whichever context runs."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.memory: Memory | None = None

    def fit(self, nbytes: int) -> Memory:
        """Memory of at least `nbytes`; when it grows, all recordings are stale."""
        if self.memory is None or self.memory.nbytes < nbytes:
            self.drop()
            self.memory = Memory(self._gpu, nbytes)
        return self.memory

    def drop(self) -> None:
        """Free the memory once the queued work is done."""
        if self.memory is not None:
            self._gpu.synchronize()
            self._gpu.epoch += 1
            self.memory = None


@dataclass
class Shaped:
    """A context for one shape of every input, and what it is bound to."""

    context: Any
    outputs: dict[str, tuple[int, ...]]
    activations: int
    """Bytes."""
    arena: tuple[int, int] = (0, 0)
    """Address and bytes."""
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: dict[str, DeviceBuffer] = field(default_factory=dict)
    """Outputs that nobody asks for; TensorRT wants an address for each."""
    capturable: bool | None = None
    """Whether a recording may have it; None before it has been asked."""


class TensorRTGraph:
    """A stage's engine with a context for every shape."""

    def __init__(self, engine: Any, record: Engine, stage: Stage, owner: TensorRT) -> None:
        self._engine: Any = engine
        self._record, self._owner, self._stage = record, owner, stage
        self._inputs = {tensor.name: tensor for tensor in stage.inputs}
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in (*stage.inputs, *stage.outputs)}
        self._outputs = [tensor.name for tensor in stage.outputs]
        self._shaped: OrderedDict[tuple[Any, ...], Shaped] = OrderedDict()

    def run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None = None,
    ) -> dict[str, protocols.Buffer]:
        """Queue one run; see `protocols.Graph.run`."""
        with self._owner.gpu.lock:
            return self._run(inputs, into)

    def _run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None,
    ) -> dict[str, protocols.Buffer]:
        name, gpu = self._record.recipe.stage, self._owner.gpu
        if self._engine is None:
            raise BackendError(f"the stage {name} is closed; load the pipeline again")
        held = {key: self._owner.hold(value) for key, value in inputs.items()}
        found = self._prepare(held)
        made = {
            key: gpu.empty(found.outputs[key], self._dtypes[key]) for key in self._outputs if into is None
        }
        delivered = made if into is None else {key: self._owner.hold(value) for key, value in into.items()}
        for key, buffer in delivered.items():
            if (buffer.shape, buffer.dtype) != (found.outputs[key], self._dtypes[key]):
                raise BackendError(
                    f"the stage {name} gives {key} as {self._dtypes[key]} {found.outputs[key]}, "
                    f"not {buffer.dtype} {buffer.shape}; give a buffer of that kind"
                )
        for key in self._outputs:
            if key not in delivered and key not in found.scratch:
                found.scratch[key] = gpu.empty(found.outputs[key], self._dtypes[key])
        for key, buffer in {**found.scratch, **held, **delivered}.items():
            if found.addresses.get(key) != buffer.pointer:
                self._expect(found.context.set_tensor_address(key, buffer.pointer), f"cannot bind {key}")
                found.addresses[key] = buffer.pointer
        self._give_arena(found)
        self._expect_capturable(found)
        self._expect(found.context.execute_async_v3(gpu.stream), "failed to run")
        if found.capturable is None and not gpu.recording:  # a first run brings what a capture must not
            found.capturable = self._owner.flavour.capturable(found.context, gpu.stream)
            _log.info("%s can%s be recorded", self, "" if found.capturable else "not")
        return dict(into if into is not None else made)

    def close(self) -> None:
        """Free the contexts, the engine and its weights, once the queued work is done."""
        with self._owner.gpu.lock:
            if self._engine is not None:
                self._owner.gpu.synchronize()
                self._owner.gpu.epoch += 1
                self._shaped.clear()
                self._engine = None
                self._owner.forget(self)

    @property
    def activations(self) -> int:
        """Bytes that any shape of any profile needs at most."""
        return int(self._engine.device_memory_size_v2)

    def _prepare(self, held: Mapping[str, DeviceBuffer]) -> Shaped:
        """The context for these inputs' shapes, made if there is none yet."""
        key = tuple((name, held[name].shape) for name in self._inputs if name in held)
        if key in self._shaped and len(held) == len(self._inputs):
            self._shaped.move_to_end(key)
            return self._shaped[key]
        dims = self._dims(held)
        index = choose_profile(self._record.recipe.profiles, dims)
        if index is None:
            self._refuse_dims(dims)
        self._stream_weights()
        gpu = self._owner.gpu
        context = self._owner.flavour.context(self._owner.trt, self._engine)
        self._expect(context is not None, "cannot make an execution context")
        if index:
            self._expect(context.set_optimization_profile_async(index, gpu.stream), f"has no profile {index}")
        for name, buffer in held.items():
            self._expect(context.set_input_shape(name, buffer.shape), f"refuses {name} {buffer.shape}")
        if missing := context.infer_shapes():
            raise BackendError(f"{self} lacks {', '.join(missing)}; give every input")
        outputs = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        made = Shaped(context, outputs, int(context.update_device_memory_size_for_shapes()))
        while len(self._shaped) >= SHAPES:
            gpu.synchronize()
            gpu.epoch += 1
            self._shaped.popitem(last=False)
        self._shaped[key] = made
        return made

    def _dims(self, held: Mapping[str, DeviceBuffer]) -> dict[str, int]:
        """The size of every dim that varies, by its name."""
        if missing := sorted(set(self._inputs) ^ set(held)):
            raise BackendError(f"{self} takes {', '.join(self._inputs)}; {missing[0]} is missing or too much")
        sizes: dict[str, int] = {}
        for name, tensor in self._inputs.items():
            buffer = held[name]
            if buffer.dtype != tensor.dtype or not _fits(tensor, buffer.shape, sizes):
                raise BackendError(
                    f"{self} takes {name} as {tensor.dtype} {tensor.dims}, not {buffer.dtype} {buffer.shape}"
                    f"{f' with {sizes}' if sizes else ''}; give it in that form"
                )
        return sizes

    def _refuse_dims(self, dims: Mapping[str, int]) -> None:
        near = nearest(self._record.recipe.profiles, dims)
        asked = ", ".join(f"{dim} {dims[dim]}" for dim in near)
        fits = ", ".join(f"{dim} {size}" for dim, size in near.items())
        pairs = ", and for true guidance and FlowEdit without --no-pairs" if "batch" in near else ""
        raise BackendError(
            f"{self} was not built for {asked}; the nearest that fits: {fits}. "
            f"Use a size or batch that fits, or build with such --sizes and --max-batch{pairs}"
        )

    def _stream_weights(self) -> None:
        """Before the first context: what runs every step may keep what is free, and all others stream."""
        if self._owner.memory != "streaming" or self._shaped:
            return
        self._engine.weight_streaming_budget_v2 = 0
        if self._stage.runs == "step":
            spare = self._owner.gpu.free_bytes() - self._owner.still_to_grow() - HEADROOM
            budget = max(0, min(int(self._engine.streamable_weights_size), spare))
            self._engine.weight_streaming_budget_v2 = budget

    def _give_arena(self, found: Shaped) -> None:
        try:
            memory = self._owner.arena.fit(found.activations)
        except GpuMemoryError as fault:
            raise GpuMemoryError(
                f"{self} needs {found.activations / 1e9:.2f} GB for activations, of which "
                f"{self._owner.gpu.free_bytes() / 1e9:.2f} GB are free; {way_out(self._owner.memory)}"
            ) from fault
        if found.arena != (memory.address, memory.nbytes):
            found.arena = memory.address, memory.nbytes
            found.context.set_device_memory(*found.arena)

    def _expect_capturable(self, found: Shaped) -> None:
        """Say why a recording cannot have it, where TensorRT has said so, instead of breaking the capture."""
        if self._owner.gpu.recording and found.capturable is False:
            raise BackendError(f"{self} may allocate while it runs; build it again, those of now do not")

    def _expect(self, good: bool, what: str) -> None:
        if not good:
            self._owner.fail(f"{self} {what}")

    def __str__(self) -> str:
        recipe = self._record.recipe
        return (
            f"the engine {Path(recipe.folder).name} ({recipe.flavour} {recipe.version}, {recipe.precision}, "
            f"sm {', '.join(recipe.capabilities)}) on {self._owner.gpu}"
        )


class TensorRT:
    """The engines of one bundle on the present GPU."""

    device = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        flavour: FlavourName,
        memory: MemoryMode = "resident",
        check: bool = True,
        module: ModuleType | Any = None,
        driver: Any = None,
    ) -> None:
        """Find TensorRT and the GPU; no engine is read yet.

        Args:
            bundle: whose engines are meant.
            flavour: "tensorrt" or "tensorrt-rtx".
            memory: how much may be on the GPU at once.
            check: compare every plan's SHA-256 before it is loaded.
            module: the flavour's Python module, or what offers the same classes.
            driver: see `Gpu`.

        Raises:
            BackendError: the flavour or cuda-python is not installed, or there is no GPU.
        """
        self.name: str = flavour
        self.flavour: Flavour = FLAVOURS[flavour]
        self.trt = module or self.flavour.module()
        self.version = str(self.trt.__version__)
        self.gpu = Gpu(driver)
        self.memory = memory
        self.arena = Arena(self.gpu)
        self._bundle, self._check = bundle, check
        self._logger = _logger(self.trt)
        self._runtime = self.trt.Runtime(self._logger)
        self._loaded: list[TensorRTGraph] = []
        self._profiles: dict[str, list[Profile]] = {}

    def refuse(self, name: str, stage: Stage) -> None:
        """Refuse a stage that has no engine for this GPU and this TensorRT."""
        self._find(name)

    def profiles(self, name: str) -> list[Profile]:
        """What the stage's engine takes."""
        if name not in self._profiles:
            self._profiles[name] = self._find(name)[1].recipe.profiles
        return self._profiles[name]

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """Bytes of the stage's plan, which are its weights but for a little."""
        return self._find(name)[1].plan.bytes

    def load(self, path: Path, name: str, stage: Stage) -> TensorRTGraph:
        """Load the engine of the graph at `path`; a plan that was changed since it was built is refused."""
        folder, record = self._find(name)
        plan = read_plan(folder, record, self._check)
        if record.recipe.plugins:
            from flux_trt.plugins.qk_norm_rope import plugin

            plugin.register(self.trt)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            self.fail(
                f"the engine {folder.name} ({self.flavour.name} {self.version}, "
                f"sm {', '.join(record.recipe.capabilities)}) cannot be loaded on {self.gpu}, "
                f"where {self.gpu.free_bytes() / 1e9:.2f} GB are free for its {plan.nbytes / 1e9:.2f} GB"
            )
        _agree(folder, self.trt, engine, stage)
        graph = TensorRTGraph(engine, record, stage, self)
        self._loaded.append(graph)
        return graph

    def upload(self, array: npt.NDArray[Any]) -> DeviceBuffer:
        """Put an array into a new buffer on the GPU."""
        return self.gpu.upload(np.ascontiguousarray(array))

    def hold(self, value: protocols.Buffer | npt.NDArray[Any]) -> DeviceBuffer:
        """A buffer as it is; an array uploaded."""
        return value if isinstance(value, DeviceBuffer) else self.upload(np.asarray(value))

    def still_to_grow(self) -> int:
        """Bytes that the arena may grow by, for the engines that are loaded."""
        most = max((graph.activations for graph in self._loaded), default=0)
        return max(0, most - (self.arena.memory.nbytes if self.arena.memory else 0))

    def forget(self, graph: TensorRTGraph) -> None:
        """A graph was closed; one engine at a time needs no arena of the one before."""
        self._loaded.remove(graph)
        if self.memory == "sequential" or not self._loaded:
            self.arena.drop()

    def fail(self, what: str) -> None:
        """Raise `what` with the last error that TensorRT has logged."""
        why = self._logger.take()
        if "out of memory" in why.lower():
            raise GpuMemoryError(f"{what}: {why}; {way_out(self.memory)}")
        raise BackendError(f"{what}: {why}; build the engines anew on this machine if this stays")

    def _find(self, name: Any) -> tuple[Path, Engine]:
        return find(
            self._bundle.manifest,
            self._bundle.root,
            name,
            self.flavour.name,
            self.version,
            self.gpu.capability,
            self.memory == "streaming",
            self._bundle.engines,
        )


def _logger(trt: Any) -> Any:
    """An ILogger that remembers the last error and passes warnings on."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            line = " ".join(message.split())
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = line
            elif severity == trt.ILogger.WARNING:
                _log.info("TensorRT: %s", line)

        def take(self) -> str:
            """The last error, once."""
            line, self.last = self.last or "TensorRT gave no reason", ""
            return line

    return Log()


def _fits(tensor: Tensor, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether a shape has the tensor's dims; `sizes` learns those that vary."""
    if len(shape) != len(tensor.dims):
        return False
    return all(
        size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        for dim, size in zip(tensor.dims, shape, strict=True)
    )


def _agree(folder: Path, trt: Any, engine: Any, stage: Stage) -> None:
    """Compare an engine's inputs and outputs with the manifest's: names, sides and types."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        (name, engine.get_tensor_mode(name), np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
        for name in names
    }
    mode = trt.TensorIOMode
    expected = {(each.name, mode.INPUT, np.dtype(each.dtype)) for each in stage.inputs}
    expected |= {(each.name, mode.OUTPUT, np.dtype(each.dtype)) for each in stage.outputs}
    if found != expected:
        name = sorted(str(each[0]) for each in found ^ expected)[0]
        raise BundleError(
            f"{folder} and the manifest disagree about {name}; remove the folder and build the engine again"
        )
