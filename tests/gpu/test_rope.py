"""The compiled RoPE kernel and the plugin on a GPU, against the oracle."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from rope_case import RopeCase, draw

from flux_trt.plugins.qk_norm_rope.contract import Attributes
from flux_trt.plugins.qk_norm_rope.launch import prepare
from flux_trt.runtime.backends.device import DeviceBuffer, Gpu
from flux_trt.runtime.errors import BackendError

pytestmark = pytest.mark.gpu
TESTS = Path(__file__).parents[1]
SHAPES = [(1, 7, 2, 32, 0), (2, 33, 5, 48, 96), (1, 300, 24, 128, 3072), (2, 9, 1, 256, 256)]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    try:
        found = Gpu()
    except BackendError as fault:
        pytest.skip(f"needs an NVIDIA GPU: {fault}")
    yield found
    found.close()


def ready(gpu: Gpu, case: RopeCase, out: type, fp8: tuple[float, float] | None = None):
    """What starts the kernel for a case, and its two output buffers."""
    (B, L, C), E = case.qkv.shape, case.tensors["q_scale"].size
    attributes = Attributes(case.heads, case.epsilon, fp8)
    start = prepare(attributes, (B, L, C), E, case.qkv.dtype.name, len(case.tensors))
    inputs = [gpu.upload(x) for x in case.tensors.values()]
    outputs = [gpu.upload(np.zeros((B, case.heads, L, E), out)) for _ in range(2)]

    def run(kept: list[DeviceBuffer] = inputs) -> None:
        start.run([x.pointer for x in kept], [x.pointer for x in outputs], gpu.stream)

    return run, outputs


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_kernel_equals_the_oracle(gpu: Gpu, dtype: type, shape: tuple[int, ...], apart: bool) -> None:
    case = draw(dtype, *shape, apart=apart)
    run, outputs = ready(gpu, case, dtype)
    run()
    case.check([x.numpy() for x in outputs])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_fp8_is_the_quotient_rounded_and_saturated(gpu: Gpu, dtype: type) -> None:
    if tuple(map(int, gpu.capability.split("."))) < (8, 9):
        pytest.skip(f"{gpu} has no FP8; 8.9 is the first")
    case, scales = draw(dtype, 2, 33, 3, 128, extra=128), (0.05, 0.002)
    run, outputs = ready(gpu, case, ml_dtypes.float8_e4m3fn, scales)
    run()
    for found, exact, scale in zip(outputs, case.expected, scales, strict=True):
        quotient = np.clip(exact / scale, -448, 448)
        limit = np.maximum(2.0**-4 * np.abs(quotient), 2.0**-10) * (1 + 1e-5) + 1e-5
        assert (np.abs(found.numpy().astype(np.float64) - quotient) <= limit).all()


def test_a_cuda_graph_captures_it(gpu: Gpu) -> None:
    case = draw(np.float16, 1, 65, 24, 128, 3072)
    run, outputs = ready(gpu, case, np.float16)
    replay = gpu.record(run)
    assert not outputs[0].numpy().any(), "recording must not run it"
    replay()
    case.check([x.numpy() for x in outputs])
    replay.close()


@pytest.mark.parametrize("rope", ["native", "plugin"])
@pytest.mark.parametrize(
    ("flavour", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")], ids=str
)
def test_the_engine_equals_the_oracle(gpu: Gpu, flavour: str, module: str, rope: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {flavour}")
    if flavour == "tensorrt-rtx" and gpu.capability == "9.0":
        pytest.skip("TensorRT-RTX is not made for data-centre GPUs")
    case = draw(np.float16, 2, 33, 3, 64, extra=64)
    files = (tmp_path / "case.npz", tmp_path / "out.npz")
    np.savez(files[0], heads=case.heads, **case.tensors)
    child = subprocess.run(
        [sys.executable, TESTS / "rope_engine_child.py", flavour, rope, *files],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    with np.load(files[1]) as found:
        case.check([found["q"], found["k"]])
        case.check([found["q_replayed"], found["k_replayed"]])
