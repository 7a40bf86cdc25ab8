"""The stress of tests/unit/test_threads.py, larger: all bundles, all memory modes, more threads."""

import shutil

import pytest
import simulator_bundle
from painting_threads import ASKED, CONTROL, FILL, REFERENCE, stress
from simulator_cuda import CudaSimulator
from simulator_ort import OrtSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.ort import OnnxRuntime
from flux_trt.runtime.bundle.bundle import Bundle

pytestmark = pytest.mark.slow
PROFILE = {**simulator_bundle.WIDE, "text": (1, 64, 512), "tokens": (1, 16, 64), "sequence": (1, 80, 1024)}
TASKS = {
    "flux-nano": [*ASKED.values(), REFERENCE],
    "fill-like": [FILL],
    "canny-like": [CONTROL],
    "kontext-like": [REFERENCE, ASKED["text"]],
}
LARGE, SMALL = {"threads": 8, "rounds": 1}, {"threads": 3, "rounds": 1}
FEW = ("text, batch", "guided", "inpaint")
"""Of flux-nano's tasks, where every batch loads its graphs anew."""


def asked(name, memory="resident"):
    """What `stress` gets: much, and little where it takes long."""
    if memory == "resident":
        return {"tasks": TASKS[name], **LARGE}
    return {"tasks": [ASKED[each] for each in FEW] if name == "flux-nano" else TASKS[name], **SMALL}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_on_a_cpu(bundle, backend, memory, name):
    with Pipeline.load(bundle(name), backend, "cpu", memory=memory) as pipeline:
        assert stress(pipeline, **asked(name, memory)) == []


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("memory", ["resident", "sequential", "streaming"])
@pytest.mark.parametrize("record", [True, False])
def test_on_a_simulated_gpu(bundle, tmp_path, record, memory, name):
    shutil.copytree(bundle(name), tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", profiles=[PROFILE], weight_streaming=True)
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda, memory, record) as pipeline:
        assert stress(pipeline, **asked(name, memory)) == []
    assert not cuda.faults
    assert cuda.used == 0


@pytest.mark.parametrize("name", TASKS)
def test_on_onnxruntime_s_simulated_gpu(bundle, name):
    cuda = CudaSimulator()
    backend = OnnxRuntime("cuda", OrtSimulator(cuda), cuda)
    with Pipeline(Bundle.open(bundle(name)), backend) as pipeline:
        assert stress(pipeline, **asked(name)) == []
    assert not cuda.faults
