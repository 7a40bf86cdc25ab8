"""The CUDA path of the onnxruntime backend on a simulated GPU: the same device layer, the same pictures."""

import numpy as np
import pytest
from simulator_cuda import CudaSimulator
from simulator_ort import OrtSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BackendError, GpuMemoryError

WANTED = {"count": 2, "batch": 2, "steps": 4, "size": (80, 48)}
PROMPTS = ["a red circle", "blue", "left"]


def pipeline(tiny, cuda, memory="resident", record=True):
    backend = OnnxRuntime("cuda", OrtSimulator(cuda), cuda)
    assert backend.device == "cuda"
    return Pipeline(Bundle.open(tiny), backend, memory, record)


def pixels(images):
    return [np.asarray(image) for image in images]


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_pictures_are_those_of_the_cpu(tiny, memory, record):
    cuda = CudaSimulator()
    with pipeline(tiny, cuda, memory, record) as gpu, Pipeline.load(tiny, "onnxruntime", device="cpu") as cpu:
        found, exact = pixels(gpu.generate(PROMPTS, **WANTED)), pixels(cpu.generate(PROMPTS, **WANTED))
    np.testing.assert_array_equal(found, exact)
    assert cuda.calls["cudaGraphLaunch"] == (2 if record else 0)
    assert not cuda.faults


def test_runs_do_not_wait(tiny):
    cuda = CudaSimulator()
    with pipeline(tiny, cuda) as gpu:
        gpu.generate("a", steps=4)
        cuda.calls.clear()
        gpu.generate("a", steps=9)
    # CLIP's and T5's outputs, the look at the latents, the picture, and the graphs that are closed.
    assert cuda.calls["cudaStreamSynchronize"] <= 4 + 5


def test_auto_takes_the_cpu_where_there_is_no_gpu(tiny):
    class NoGpu(CudaSimulator):
        def cudaSetDevice(self, device):  # noqa: N802
            return (self.cudaError_t.cudaErrorNoDevice,)

    cuda = NoGpu()
    assert OnnxRuntime("auto", OrtSimulator(cuda), cuda).device == "cpu"
    with pytest.raises(BackendError, match=r"CUDA does not work .*cudaErrorNoDevice.*use --device cpu"):
        OnnxRuntime("cuda", OrtSimulator(cuda), cuda)


def test_weights_that_cannot_fit_are_refused_before_loading(tiny):
    with pytest.raises(GpuMemoryError, match=r"--memory resident needs .*use --memory sequential"):
        pipeline(tiny, CudaSimulator(memory=1 << 10))


def test_memory_that_runs_out_while_painting_is_told(tiny):
    weights = sum(file.bytes for name, file in Bundle.open(tiny).manifest.files.items() if "tok" not in name)
    with (
        pipeline(tiny, CudaSimulator(memory=weights + 4096)) as gpu,
        pytest.raises(GpuMemoryError, match="out of memory"),
    ):
        gpu.generate("a", size=(128, 128))
