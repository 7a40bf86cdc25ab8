"""The device layer, and what is built on it, on a real GPU."""

import importlib.util

import numpy as np
import pytest

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.errors import BackendError, GpuMemoryError


def gpu_fault():
    """Why there is no GPU to test on, or None."""
    try:
        Gpu().close()
    except BackendError as fault:
        return str(fault)
    return None


FAULT = gpu_fault()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(FAULT is not None, reason=f"needs a GPU: {FAULT}")]

MODES = ("resident", "sequential", "streaming")
PROMPTS = ["a red circle", "blue square", "left"]
WANTED = {"count": 2, "batch": 2, "steps": 5, "size": (80, 48)}


@pytest.fixture
def gpu():
    made = Gpu()
    yield made
    made.close()


def test_values_go_there_and_back(gpu):
    values = np.arange(1 << 20, dtype=np.float32).reshape(64, -1)
    buffer = gpu.upload(values)
    np.testing.assert_array_equal(buffer.numpy(), values)
    np.testing.assert_array_equal(buffer[63].numpy(), values[63])


@pytest.mark.parametrize("width", [3, 64])
def test_rows_are_aligned(gpu, width):
    values = np.arange(5 * width, dtype=np.float32).reshape(5, width)
    rows = gpu.rows(gpu.upload(values))
    assert all(row.pointer % 256 == 0 for row in rows)
    np.testing.assert_array_equal([row.numpy() for row in rows], values)


def test_memory_comes_back(gpu):
    free = gpu.free_bytes()
    buffer = gpu.empty((1 << 28,), np.uint8)
    assert gpu.free_bytes() <= free - (1 << 28)
    del buffer
    assert gpu.free_bytes() >= free - (1 << 22)


def test_too_much_is_refused_and_nothing_breaks(gpu):
    with pytest.raises(GpuMemoryError, match="is out of memory"):
        gpu.empty((1 << 50,), np.uint8)
    assert gpu.upload(np.ones(1)).numpy() == 1


def test_a_recording_is_not_run_but_can_be_launched_often(gpu):
    buffer = gpu.upload(np.arange(4 * 64, dtype=np.float32).reshape(4, 64))
    kind = gpu.driver.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def work():
        for row in range(3):
            gpu.call("cudaMemcpyAsync", buffer[row + 1].pointer, buffer[row].pointer, 256, kind, gpu.stream)

    launch = gpu.record(work)
    assert buffer.numpy()[1, 0] == 64
    for value in (5, 7):
        gpu.write(buffer[0], np.full(64, value, np.float32))
        launch()
        assert (buffer.numpy() == value).all()
    launch.close()


@pytest.mark.parametrize("deed", [lambda gpu: gpu.empty((1,), np.uint8), lambda gpu: gpu.synchronize()])
def test_what_cuda_forbids_breaks_a_recording_and_nothing_else(gpu, deed):
    with pytest.raises(BackendError):
        gpu.record(lambda: deed(gpu))
    assert gpu.upload(np.ones(1)).numpy() == 1


def pixels(images):
    return [np.asarray(image, int) for image in images]


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", MODES[:2])
def test_onnxruntime_paints_as_on_the_cpu(tiny, memory, record):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    with (
        Pipeline.load(tiny, device="cuda", memory=memory, record=record) as there,
        Pipeline.load(tiny, "onnxruntime", device="cpu") as here,
    ):
        found, exact = pixels(there.generate(PROMPTS, **WANTED)), pixels(here.generate(PROMPTS, **WANTED))
    assert max(np.abs(a - b).max() for a, b in zip(found, exact, strict=True)) <= 1


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def engines(request, bundle, tmp_path_factory):
    """flux-nano with engines of either flavour, built for the present GPU."""
    if importlib.util.find_spec(request.param.replace("-", "_")) is None:
        pytest.skip(f"needs {request.param}")
    import shutil

    from flux_trt.exporter.engines.engine import Options, build_engines

    root = tmp_path_factory.mktemp(request.param) / "bundle"
    shutil.copytree(bundle("flux-nano"), root)
    gpu = Gpu()
    build_engines(root, Options(flavour=request.param, capabilities=(gpu.capability,), weight_streaming=True))
    gpu.close()
    return request.param, root


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", MODES)
def test_tensorrt_paints_as_onnxruntime(engines, memory, record):
    flavour, root = engines
    wanted = {"count": 3, "steps": 4, "guidance": 1.0}
    prompt = "a red circle in the center on a white background"
    with (
        Pipeline.load(root, flavour, memory=memory, record=record) as there,
        Pipeline.load(root, "onnxruntime", device="cpu") as here,
    ):
        found, exact = pixels(there.generate(prompt, **wanted)), pixels(here.generate(prompt, **wanted))
        if record and memory != "sequential":
            assert any(loop.recorded for loop in there.loops)
    assert np.mean([np.abs(a - b) <= 2 for a, b in zip(found, exact, strict=True)]) >= 0.99


def test_a_size_without_engine_names_the_nearest(engines):
    flavour, root = engines
    with (
        Pipeline.load(root, flavour) as there,
        pytest.raises(BackendError, match=r"was not built for .*the nearest that fits"),
    ):
        there.generate("a", size=(256, 256), steps=2)
