"""What this machine can do at most: its rate of matrix products, and how fast it copies memory.

Both are measured, on large operands that no cache holds, with whatever library here is fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from flux_trt.bench.schema import Ceilings

SIDE = 2048
COPIED = 1 << 28  # bytes
SECONDS = 1.0  # of repeats, for each figure


def ceilings(device: str, seconds: float = SECONDS, side: int = SIDE, copied: int = COPIED) -> Ceilings:
    """Measure the device, "cpu" or "cuda", for about `seconds` a figure."""
    rates: dict[str, float] = {}
    by: dict[str, str] = {}
    for dtype, library, work in _products(device, side):
        rate = 2 * side**3 / _best(work, seconds) / 1e9
        if rate > rates.get(dtype, 0.0):
            rates[dtype], by[dtype] = round(rate, 1), library
    copies = [2 * copied / _best(work, seconds) / 1e9 for work in _copies(device, copied)]
    return Ceilings(matrix_gflops=rates, measured_with=by, copy_gbs=round(max(copies), 2))


def _best(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the repeats, after one that is not counted."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter_ns()
        work()
        best = min(best, (time.perf_counter_ns() - start) / 1e9)
        if time.perf_counter() > end:
            return best


def _products(device: str, side: int) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(dtype, library, product) of square matrices."""
    if device == "cpu":
        a = np.random.default_rng(0).standard_normal((side, side), np.float32)
        out = np.empty_like(a)
        yield "fp32", "numpy", lambda: np.matmul(a, a, out=out)
        yield from _onnxruntime(a)
    torch = _torch()
    if torch is None:
        return
    names = {"fp32": "float32", "bf16": "bfloat16"} | ({"fp16": "float16"} if device == "cuda" else {})
    for dtype, name in names.items():
        b = torch.randn(side, side, dtype=getattr(torch, name), device=device)
        yield dtype, "torch", _finished(torch, device, partial(torch.mm, b, b))


def _onnxruntime(a: np.ndarray) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """With the constant on the right, as a stage has it: onnxruntime packs it once."""
    try:
        import onnx
        import onnxruntime as ort
        from onnx import helper, numpy_helper
    except ImportError:
        return
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, a.shape)
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, a.shape)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [value], [result], [numpy_helper.from_array(a, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    yield "fp32", "onnxruntime", lambda: session.run(None, {"x": a})


def _copies(device: str, nbytes: int) -> Iterator[Callable[[], object]]:
    torch = _torch()
    if device == "cpu":
        source, to = np.ones(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)
        yield lambda: np.copyto(to, source)
    if torch is not None:
        given = torch.ones(nbytes // 4, device=device)
        taken = torch.empty_like(given)
        yield _finished(torch, device, lambda: taken.copy_(given))


def _finished(torch: Any, device: str, work: Callable[[], object]) -> Callable[[], object]:
    """Work that is waited for: a GPU's is only queued."""
    if device == "cpu":
        return work

    def wait() -> None:
        work()
        torch.cuda.synchronize()

    return wait


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch
