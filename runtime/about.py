"""`--version --verbose`: what a report of a fault needs to say of the machine, and no more."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from flux_trt.runtime.errors import FluxTrtError


def facts() -> Iterator[tuple[str, str]]:
    """Versions of Python, the system and packages; what there is to compute on. What fails says why."""
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield from _packages()
    for name, ask in _DEVICES.items():
        try:
            yield name, ask()
        except (FluxTrtError, ImportError) as fault:
            yield name, f"none: {fault}"
        except Exception as fault:  # of a library that is broken here, which is what a report has to say
            yield name, f"fails: {type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"


def _packages() -> Iterator[tuple[str, str]]:
    """Those of our requirements that are installed, extras included."""
    try:
        lines = requires("flux_trt") or []
    except PackageNotFoundError:
        lines = []
    found = {re.split(r"[^\w.-]", line)[0]: None for line in lines}
    for name in sorted(found, key=str.lower):
        if there := installed(name):
            yield name, there


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    from flux_trt.runtime.backends.cpus import allowed, features

    told = features()
    return f"{allowed()} CPUs for this process; {', '.join(told or ()) or 'no features that matter are told'}"


def _gpu() -> str:
    from flux_trt.runtime.backends.device import Gpu

    gpu = Gpu()
    try:
        driver = gpu.call("cudaDriverGetVersion")
        cuda = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"{gpu}, {gpu.free_bytes() / 1e9:.1f} GB free, driver for CUDA {cuda}"
    finally:
        gpu.close()


def _onnxruntime() -> str:
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def _openvino() -> str:
    import openvino

    return ", ".join(openvino.Core().available_devices)


def _tensorrt() -> str:
    from flux_trt.runtime.bundle.flavour import FLAVOURS

    return FLAVOURS["tensorrt"].version()


def _tensorrt_rtx() -> str:
    from flux_trt.runtime.bundle.flavour import FLAVOURS

    return FLAVOURS["tensorrt-rtx"].version()


_DEVICES: dict[str, Callable[[], str]] = {
    "CPU": _cpu,
    "GPU": _gpu,
    "onnxruntime providers": _onnxruntime,
    "OpenVINO devices": _openvino,
    "TensorRT": _tensorrt,
    "TensorRT-RTX": _tensorrt_rtx,
}
