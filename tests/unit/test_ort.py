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


def test_q_dq_are_carried_out_as_they_stand_on_a_cpu_alone(tiny, stages):
    """onnxruntime's CPU fusions of them do not load before 1.32; a GPU has none, but would unpack weights."""
    import onnxruntime
    from simulator_cuda import CudaSimulator
    from simulator_ort import OrtSimulator

    from flux_trt.runtime.backends.ort import OnnxRuntime

    seen = []

    class Noted(onnxruntime.SessionOptions):
        def add_session_config_entry(self, name, value):
            seen.append((name, value))
            super().add_session_config_entry(name, value)

    class Library:
        SessionOptions = Noted

        def __getattr__(self, name):
            return getattr(onnxruntime, name)

    plain, cuda = ("session.disable_quant_qdq", "1"), CudaSimulator()
    alone = ("session.qdq_matmulnbits_accuracy_level", "1")

    def of(precision):
        return stages["clip"].model_copy(update={"precision": precision, "base": "fp32"})

    for precision, told in (("fp8", {plain}), ("w8a16", {alone}), ("w4a16", {alone}), ("int8", set())):
        seen.clear()
        OnnxRuntime("cpu", Library()).load(tiny / "clip.onnx", "clip", of(precision))
        assert {plain, alone} & set(seen) == told, precision
    seen.clear()
    settings = {"session.disable_quant_qdq": "0"}
    OnnxRuntime("cpu", Library(), settings=settings).load(tiny / "clip.onnx", "clip", of("fp8"))
    assert plain not in seen
    assert ("session.disable_quant_qdq", "0") in seen
    seen.clear()
    simulated = OrtSimulator(cuda)
    simulated.SessionOptions = Noted
    OnnxRuntime("cuda", simulated, cuda).load(tiny / "clip.onnx", "clip", stages["clip"])
    assert seen
    assert "session.disable_quant_qdq" not in dict(seen)
