import json

import numpy as np
import openvino as ov
import pytest

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends import connect as connecting
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.openvino import OpenVino
from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.bundle.manifest import Stage
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


def stage(precision, runs="step"):
    return Stage(graph="a.onnx", weights=[], precision=precision, inputs=[], outputs=[], runs=runs, key="a")


AMX, NONE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16"), ("avx2", "avx512f", "avx512_bf16")


@pytest.mark.parametrize(
    ("compute", "features", "able", "hints"),
    [
        ("auto", AMX, {"FP32", "BF16"}, {"bf16": "bf16", "fp32": "f32", "fp16": "f32"}),
        ("auto", NONE, {"FP32", "BF16"}, {"bf16": "f32", "fp32": "f32", "fp16": "f32"}),
        ("auto", None, {"FP32", "BF16"}, {"bf16": "bf16"}),  # where the system does not tell
        ("auto", None, {"FP32"}, {"bf16": "f32"}),
        ("bf16", NONE, {"FP32", "BF16"}, {"bf16": "bf16", "fp32": "bf16"}),
        ("fp32", AMX, {"FP32", "BF16"}, {"bf16": "f32", "fp32": "f32"}),
    ],
)
def test_it_computes_in_what_is_faster_here(compute, features, able, hints, caplog):
    backend = OpenVino(compute=compute) if "BF16" in able else OpenVino()
    backend._features, backend._able = features, able
    assert {each: backend._hint(stage(each)) for each in hints} == hints
    told = [line for line in caplog.messages if "no AMX" in line]
    assert len(told) == (compute == "auto" and features == NONE), "in one line, once"
    backend._hint(stage("bf16"))
    assert [line for line in caplog.messages if "no AMX" in line] == told


def test_what_runs_once_keeps_its_precision():
    backend = OpenVino()
    backend.compute, backend._able = "bf16", {"FP32", "BF16"}
    assert backend._hint(stage("fp32", "picture")) == "f32"


def test_what_cannot_be_computed_is_refused(monkeypatch):
    with pytest.raises(BackendError, match="onnxruntime has no CPU kernels for bf16; use --backend openvino"):
        connect("onnxruntime", "cpu", compute="bf16")
    assert connect("onnxruntime", "cpu", compute="fp32").device == "cpu"
    monkeypatch.setattr(ov.Core, "get_property", lambda self, *names: ["FP32"])
    with pytest.raises(BackendError, match="does not compute in bf16; leave --compute out"):
        connect("openvino", "cpu", compute="bf16")


def test_the_cpu_s_own_arithmetic_follows(bundle):
    """fp32 pictures computed in bf16 are near and not the same; said so, fp32 is fp32."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bf16")
    made = {}
    for compute in ("auto", "fp32", "bf16"):
        with Pipeline.load(bundle("flux-nano"), "openvino", "cpu", compute=compute) as pipeline:
            (image,) = pipeline.generate("a red circle at the top left on a white background", steps=4)
        made[compute] = np.asarray(image).astype(int)
        assert json.loads(image.info["flux_trt"]).get("compute") == {"auto": None}.get(compute, compute)
    np.testing.assert_array_equal(made["auto"], made["fp32"])
    assert (made["bf16"] != made["fp32"]).any()
    assert np.abs(made["bf16"] - made["fp32"]).mean() < 3
