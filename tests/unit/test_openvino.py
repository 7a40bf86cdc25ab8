import pytest

from flux_trt.runtime import backend
from flux_trt.runtime.backend import connect
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.openvino import OpenVino
from flux_trt.runtime.ort import OnnxRuntime


def test_it_is_a_cpu():
    cpu = connect("openvino", "auto")
    assert (cpu.device, cpu.gpu) == ("cpu", None)
    with pytest.raises(BackendError, match=r"openvino runs on the CPU; use --device cpu"):
        connect("openvino", "cuda")
    with pytest.raises(BackendError, match=r"cannot stream weights; use --memory sequential"):
        connect("openvino", "cpu", memory="streaming")


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize(
    ("installed", "kind"), [({"onnxruntime"}, OnnxRuntime), ({"onnxruntime", "openvino"}, OpenVino)]
)
def test_auto_is_openvino_where_it_is_installed(monkeypatch, device, installed, kind):
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name in installed else None)
    assert isinstance(connect("auto", device), kind)
