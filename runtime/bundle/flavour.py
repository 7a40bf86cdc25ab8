"""The two TensorRTs. Only this file knows in what they differ; everything else takes `Flavour.module()`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from flux_trt.runtime.errors import BackendError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Flavour:
    """One TensorRT: a package with the API of the other."""

    name: FlavourName
    package: str
    """To install."""
    cross_builds: bool
    """Whether engines for GPUs that are not present can be built, even with no GPU at all."""
    capabilities: tuple[str, ...]
    """The compute capabilities that engines can be built for; () means whatever GPU is present."""
    polygraphy: str
    """What `POLYGRAPHY_USE_TENSORRT_RTX` must be for Polygraphy to use it."""
    float32: float = 0.0
    """The compute capability from which it multiplies float32."""
    builder_flags: tuple[str, ...] = ()
    """Of `BuilderFlag`, set for every engine."""

    def module(self) -> ModuleType:
        """The flavour's Python module, `tensorrt` or `tensorrt_rtx`.

        Raises:
            BackendError: it is not installed.
        """
        try:
            module = importlib.import_module(self.name.replace("-", "_"))
            if not hasattr(module, "Runtime"):
                raise ImportError("only its type stubs are there")
            return module
        except ImportError as fault:
            raise BackendError(
                f"{self.name} is not installed ({fault}); pip install {self.package}"
            ) from None

    def version(self) -> str:
        """As the package names it; an engine runs only with the version that built it.

        Raises:
            BackendError: it is not installed.
        """
        return str(self.module().__version__)

    def context(self, trt: Any, engine: Any) -> Any:
        """An execution context whose memory the caller gives.

        TensorRT-RTX compiles kernels for a shape when it first sees it. It would run a slower kernel until
        then, and a recording would keep that one, so it is told to compile at once.

        Args:
            trt: the flavour's module.
            engine: an ICudaEngine.
        """
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.name == "tensorrt-rtx":
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return engine.create_execution_context(config)

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether the context's runs can be recorded as part of a CUDA graph, as far as it can be asked.

        Args:
            context: an IExecutionContext with shapes, addresses and memory.
            stream: handle of one that is not being captured.
        """
        return bool(context.is_stream_capturable(stream)) if self.name == "tensorrt-rtx" else True


FLAVOURS: dict[FlavourName, Flavour] = {
    "tensorrt": Flavour("tensorrt", "tensorrt", cross_builds=False, capabilities=(), polygraphy="0"),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx",
        "tensorrt-rtx-cu13",
        cross_builds=True,
        capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        polygraphy="1",
        float32=8.0,  # "FP32 GEMM is not supported" on Turing
        # Else an engine may allocate while it runs, and a recording is refused (release notes of 1.2).
        builder_flags=("REQUIRE_USER_ALLOCATION",),
    ),
}
