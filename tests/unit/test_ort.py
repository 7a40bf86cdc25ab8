import pytest

from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BackendError


@pytest.fixture(scope="module")
def cpu():
    return connect("onnxruntime", "cpu")


@pytest.fixture(scope="module")
def stages(tiny):
    return manifest.read(tiny).stages


def test_bf16_is_refused_on_the_cpu_before_the_graph_is_read(cpu, tmp_path, stages):
    stage = stages["clip"].model_copy(update={"precision": "bf16"})
    with pytest.raises(BackendError, match=r"clip is bf16.*or a CUDA GPU, or build with --precision fp32"):
        cpu.load(tmp_path / "nowhere.onnx", "clip", stage)


def test_an_unknown_backend():
    with pytest.raises(BackendError, match="no backend is called 'directml'"):
        connect("directml", "cpu")


def test_cuda_is_refused_where_it_is_not():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"has no CUDA.*use --device cpu"):
        connect("onnxruntime", "cuda")
    with pytest.raises(BackendError, match=r"has no CUDA.*use --device cpu"):
        connect("auto", "cuda")
    assert connect("onnxruntime", "auto").device == "cpu"
