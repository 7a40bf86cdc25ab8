import pytest

from flux_trt.runtime.backends import connect as connecting
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.openvino import OpenVino
from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.errors import BackendError


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
    monkeypatch.setattr(connecting, "find_spec", lambda name: name if name in installed else None)
    assert isinstance(connect("auto", device), kind)
