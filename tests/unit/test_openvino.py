from dataclasses import replace

import pytest

from flux_trt.runtime import backend
from flux_trt.runtime.backend import best_cpu_backend, connect
from flux_trt.runtime.bundle import Bundle
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


@pytest.mark.parametrize(
    ("precision", "installed", "first", "best"),
    [
        ("fp32", {"onnxruntime"}, True, "onnxruntime"),
        ("fp32", {"onnxruntime", "openvino"}, True, "openvino"),
        ("fp32", {"onnxruntime", "openvino"}, False, "onnxruntime"),
        ("fp32", {"openvino"}, False, "openvino"),
        ("bf16", {"onnxruntime", "openvino"}, False, "openvino"),
        ("bf16", {"onnxruntime"}, False, "onnxruntime"),
        ("fp8", {"onnxruntime", "openvino"}, False, "openvino"),
    ],
)
def test_the_best_backend_on_a_cpu(tiny, monkeypatch, precision, installed, first, best):
    found = Bundle.open(tiny, check=False)
    stages = {**found.manifest.stages}
    update = {"precision": precision, "base": "bf16" if precision == "fp8" else None}
    stages["denoiser"] = stages["denoiser"].model_copy(update=update)
    found = replace(found, manifest=found.manifest.model_copy(update={"stages": stages}))
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(backend, "OPENVINO_FIRST", first)
    assert best_cpu_backend(found) == best


@pytest.mark.parametrize(("first", "kind"), [(True, OpenVino), (False, OnnxRuntime)])
def test_auto_is_the_best_of_a_cpu(tiny, monkeypatch, first, kind):
    monkeypatch.setattr(backend, "OPENVINO_FIRST", first)
    assert isinstance(connect("auto", "cpu", Bundle.open(tiny, check=False)), kind)
    assert isinstance(connect("auto", "cpu"), OnnxRuntime), "no bundle: nothing to look at"
