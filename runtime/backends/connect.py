"""The backend of a name: what is installed here, and on which device it runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import cast

from flux_trt.runtime.backends.cpus import refuse_threads, threads_of
from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.backends.protocols import Backend, Compute, Device
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BackendError

BACKENDS = ("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def connect(
    name: str,
    device: Device,
    bundle: Bundle | None = None,
    memory: MemoryMode = "resident",
    check: bool = True,
    threads: int | None = None,
    compute: Compute = "auto",
) -> Backend:
    """The backend of that name.

    Args:
        name: one of `BACKENDS`. "auto" is onnxruntime where it has a GPU, else `best_cpu_backend`; TensorRT
            is asked for by name.
        device: "auto" takes the GPU where there is one that the backend can use.
        bundle: whose engines TensorRT is to run; the others need none.
        memory: what may be on a GPU at once.
        check: compare the SHA-256 of engines before they are loaded.
        threads: of a CPU backend; None: the CPUs that this process may use.
        compute: see `OpenVino`; another than "auto" is for that backend, and for float32 in onnxruntime.

    Raises:
        BackendError: an unknown backend, or one that is not installed, or without such a device or mode; a
            number of threads on a GPU.
    """
    if name == "auto":
        if device != "cpu" and (device == "cuda" or find_spec("onnxruntime")):
            found = connect("onnxruntime", device, bundle, memory, threads=threads)
            if found.gpu:
                _refuse_compute(compute, found.name, found.device)
                return found
        name = best_cpu_backend()
    if name == "onnxruntime":
        from flux_trt.runtime.backends.ort import OnnxRuntime

        if memory == "streaming":
            raise BackendError("onnxruntime cannot stream weights; use --memory sequential, or TensorRT")
        runtime = OnnxRuntime(device, threads=threads_of(threads))
        if runtime.gpu:
            refuse_threads(threads, name)
        _refuse_compute(compute, name, runtime.device)
        return runtime
    if name == "openvino":
        from flux_trt.runtime.backends.openvino import OpenVino

        if memory == "streaming":
            raise BackendError("openvino cannot stream weights; use --memory sequential")
        return OpenVino(device, threads=threads_of(threads), compute=compute)
    if name in ("tensorrt", "tensorrt-rtx"):
        from flux_trt.runtime.backends.tensorrt import TensorRT
        from flux_trt.runtime.bundle.flavour import FlavourName

        refuse_threads(threads, name)
        _refuse_compute(compute, name, "cuda")
        if device == "cpu" or bundle is None:
            raise BackendError(
                f"{name} runs a bundle's engines on a GPU; use --backend onnxruntime for a CPU"
            )
        return TensorRT(bundle, cast(FlavourName, name), memory, check)
    raise BackendError(f"no backend is called {name!r}; there are: {', '.join(BACKENDS)}")


def _refuse_compute(compute: Compute, backend: str, device: str) -> None:
    if device == "cpu" and compute == "bf16":
        raise BackendError(
            f"{backend} has no CPU kernels for bf16; use --backend openvino, or --compute fp32"
        )
    if device != "cpu" and compute != "auto":
        raise BackendError(
            f"on a GPU {backend} computes in what the bundle was built in; leave --compute out, or use "
            "--device cpu"
        )


def best_cpu_backend() -> str:
    """OpenVINO where it is installed: it is the faster one (benchmarks/results/cpu.json), and runs bf16."""
    return "openvino" if find_spec("openvino") else "onnxruntime"
