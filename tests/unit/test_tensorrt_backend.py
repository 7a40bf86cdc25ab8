"""The TensorRT backend's own rules and messages, on simulated engines."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulator_bundle
import tiny_bundle
from simulator_cuda import CudaSimulator

from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import engine, manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BackendError, BundleError, GpuMemoryError

NARROW = {**simulator_bundle.WIDE, "tokens": (4, 4, 8), "batch": (1, 1, 2), "sequence": (10, 10, 14)}


@pytest.fixture
def make(tiny, tmp_path):
    """A bundle with engines that are as asked."""

    def build(**how):
        root = tmp_path / "bundle"
        if not root.exists():
            shutil.copytree(tiny, root)
        simulator_bundle.add_engines(root, **how)
        return root

    return build


def load(backend, root, name="denoiser"):
    stage = manifest.read(root).stages[name]
    return backend.load(root / stage.graph, name, stage)


def inputs(batch=1, tokens=4, text=tiny_bundle.TEXT):
    rng = np.random.default_rng(0)
    shapes = {
        "latents": (batch, tokens, tiny_bundle.CHANNELS),
        "dt": (batch, tokens, 1),
        "context": (batch, text, 1),
        "modulation": (batch, 3, 1),
        "cos": (text + tokens, tiny_bundle.HEAD // 2),
        "sin": (text + tokens, tiny_bundle.HEAD // 2),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def velocity(values):
    drift = values["modulation"][:, 0] + values["modulation"][:, 1] / 8 + values["modulation"][:, 2] / 16
    return tiny_bundle.RATE * values["latents"] + drift[:, None]


def test_all_outputs_or_only_those_asked_for(make):
    root = make()
    backend = simulator_bundle.backend(root, CudaSimulator())
    graph, values = load(backend, root), inputs()
    found = graph.run(values)
    assert set(found) == {"next_latents", "velocity"}
    np.testing.assert_allclose(found["velocity"].numpy(), velocity(values), rtol=1e-5, atol=1e-6)
    target = backend.gpu.empty((1, 4, tiny_bundle.CHANNELS), np.float32)
    assert graph.run(values, into={"velocity": target}) == {"velocity": target}
    np.testing.assert_array_equal(target.numpy(), found["velocity"].numpy())
    with pytest.raises(BackendError, match=r"gives velocity as float32 \(1, 4, 16\), not float32 \(4, 16\)"):
        graph.run(values, into={"velocity": target.reshape(4, 16)})


def test_inputs_are_bound_once(make):
    root = make()
    backend = simulator_bundle.backend(root, CudaSimulator())
    graph = load(backend, root)
    held = {name: backend.upload(value) for name, value in inputs().items()}
    target = {"next_latents": backend.gpu.empty((1, 4, tiny_bundle.CHANNELS), np.float32)}
    graph.run(held, target)
    (shaped,) = graph._shaped.values()
    bound = []
    real = shaped.context.set_tensor_address
    shaped.context.set_tensor_address = lambda name, memory: bound.append(name) or real(name, memory)
    graph.run(held, target)
    assert bound == []
    graph.run({**held, "dt": backend.upload(inputs()["dt"])}, target)
    assert bound == ["dt"]


def test_one_arena_serves_all_contexts(make):
    root = make()
    cuda = CudaSimulator()
    backend = simulator_bundle.backend(root, cuda)
    graph = load(backend, root)
    for tokens in (4, 16, 8, 4):
        values = inputs(tokens=tokens)
        found = graph.run(values)["velocity"].numpy()
        np.testing.assert_allclose(found, velocity(values), rtol=1e-5, atol=1e-6)
    memory = backend.arena.memory
    assert len(graph._shaped) == 3
    assert memory.nbytes == max(shaped.activations for shaped in graph._shaped.values())
    assert cuda.used == (1 << 12) + memory.nbytes, "the weights and one arena, none of before it grew"
    del memory
    graph.close()
    assert (backend.arena.memory, cuda.used) == (None, 0)


def test_contexts_are_few(make):
    root = make()
    backend = simulator_bundle.backend(root, CudaSimulator())
    graph = load(backend, root)
    epoch = backend.gpu.epoch
    for tokens in range(1, 13):
        values = inputs(tokens=tokens)
        np.testing.assert_allclose(
            graph.run(values)["velocity"].numpy(), velocity(values), rtol=1e-5, atol=1e-6
        )
    assert len(graph._shaped) == 8
    assert backend.gpu.epoch > epoch


@pytest.mark.parametrize(("tokens", "chosen"), [(4, 0), (8, 0), (7, 0), (16, 1), (60, 1)])
def test_the_nearest_profile_is_chosen(make, tokens, chosen):
    root = make(profiles=[NARROW, simulator_bundle.WIDE])
    graph = load(simulator_bundle.backend(root, CudaSimulator()), root)
    values = inputs(tokens=tokens)
    np.testing.assert_allclose(graph.run(values)["velocity"].numpy(), velocity(values), rtol=1e-5, atol=1e-6)
    (shaped,) = graph._shaped.values()
    assert shaped.context.active_optimization_profile == chosen


def test_a_shape_outside_the_profiles_names_engine_gpu_and_the_nearest(make):
    root = make(profiles=[NARROW, {**NARROW, "tokens": (20, 30, 30), "sequence": (26, 36, 36)}])
    graph = load(simulator_bundle.backend(root, CudaSimulator()), root)
    with pytest.raises(BackendError) as fault:
        graph.run(inputs(tokens=18))
    text = str(fault.value)
    assert "the engine denoiser-" in text and "(tensorrt-rtx 1.7.1.116, fp32, sm 8.9, 12.0)" in text
    assert "on Simulated GPU (sm 8.9)" in text
    assert "was not built for tokens 18, sequence 24; the nearest that fits: tokens 20, sequence 26." in text
    assert "--no-pairs" not in text
    with pytest.raises(BackendError, match=r"batch 3; .* fits: batch 2\. .* without --no-pairs"):
        graph.run(inputs(batch=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dt": np.zeros((1, 4, 1))},
            r"takes dt as float32 \['batch', 'tokens', 1\], not float64 \(1, 4, 1\)",
        ),
        (
            {"dt": np.zeros((1, 5, 1), np.float32)},
            r"dt.*not float32 \(1, 5, 1\) with \{'batch': 1, 'tokens': 4\}",
        ),
        ({"dt": np.zeros((1, 4), np.float32)}, r"dt.*not float32 \(1, 4\)"),
        ({"tables": np.zeros(1, np.float32)}, "tables is missing or too much"),
    ],
)
def test_wrong_inputs_are_refused(make, change, message):
    root = make()
    graph = load(simulator_bundle.backend(root, CudaSimulator()), root)
    with pytest.raises(BackendError, match=message):
        graph.run({**inputs(), **change})
    with pytest.raises(BackendError, match="cos is missing"):
        graph.run({name: value for name, value in inputs().items() if name != "cos"})


def test_a_closed_stage_says_so_and_its_results_stay(make):
    root = make()
    cuda = CudaSimulator()
    backend = simulator_bundle.backend(root, cuda)
    graph, other = load(backend, root, "clip"), load(backend, root)
    pooled = graph.run({"ids": np.full((1, tiny_bundle.TEXT), 3)})["pooled"]
    epoch = backend.gpu.epoch
    graph.close()
    graph.close()
    assert backend.gpu.epoch == epoch + 1, "recordings that used it are stale"
    other.close()
    np.testing.assert_array_equal(pooled.numpy(), [[3]])
    with pytest.raises(BackendError, match="the stage clip is closed"):
        graph.run({"ids": np.full((1, tiny_bundle.TEXT), 3)})
    del pooled
    assert cuda.used == 0


def test_a_bundle_without_engines_says_how_to_build_them(tiny):
    backend = simulator_bundle.backend(tiny, CudaSimulator())
    with pytest.raises(
        BackendError,
        match=r"no engine of clip .*build it with flux-export engines .* --backend tensorrt-rtx --sm 8.9",
    ):
        backend.refuse("clip", manifest.read(tiny).stages["clip"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"capabilities": ["12.0"]}, "was built for sm 12.0"),
        ({"version": "1.6.0.1"}, "was built by tensorrt-rtx 1.6.0.1"),
        ({"graph": "0" * 64}, "is of another graph than the bundle now has"),
        ({"flavour": "tensorrt"}, "no engine of clip for tensorrt-rtx 1.7.1.116 and sm 8.9;"),
    ],
)
def test_an_engine_for_something_else_is_never_loaded(make, recipe, message):
    root = make(**recipe)
    with pytest.raises(BackendError, match=message):
        simulator_bundle.pipeline(root, CudaSimulator())


def test_of_several_engines_the_one_that_runs_here_is_taken(make):
    root = make(capabilities=["12.0"])
    make(version="1.6.0.1")
    make(profiles=[NARROW])
    make()
    make(profiles=[NARROW, simulator_bundle.WIDE])
    backend = simulator_bundle.backend(root, CudaSimulator())
    folder, found = backend._find("denoiser")
    assert len(found.recipe.profiles) == 2
    assert folder.name in str(load(backend, root))


def test_streaming_wants_engines_built_for_it(make):
    root = make()
    with pytest.raises(
        BackendError, match=r"was built without --weight-streaming; build it with .*--weight-stre"
    ):
        simulator_bundle.pipeline(root, CudaSimulator(), "streaming")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_tampered_plan_is_refused(make, damage):
    root = make()
    (plan,) = root.glob("engines/denoiser-*/engine.plan")
    data = bytearray(plan.read_bytes())
    if damage == "flip":
        data[100] ^= 1
    plan.unlink()
    if damage != "gone":
        plan.write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises(BundleError, match=r"engine\.plan.*remove its folder and build again"):
        simulator_bundle.pipeline(root, CudaSimulator())


def test_a_record_in_the_wrong_folder_is_refused(make):
    root = make()
    (folder,) = root.glob("engines/denoiser-*")
    folder.rename(folder.with_name("denoiser-0000000000000000"))
    with pytest.raises(BundleError, match="is not in the folder of its key"):
        simulator_bundle.pipeline(root, CudaSimulator())


def test_what_tensorrt_refuses_is_told_with_its_reason(make):
    """A plan that lies about itself passes our checks and not TensorRT's."""
    root = make(plan={"version": "1.6.0.1"})
    with pytest.raises(BackendError) as fault:
        simulator_bundle.pipeline(root, CudaSimulator())
    text = str(fault.value)
    assert "the engine clip-" in text and "cannot be loaded on Simulated GPU (sm 8.9)" in text
    assert "built by version 1.6.0.1, this is 1.7.1.116" in text and "\n" not in text


def test_weights_that_do_not_fit_name_the_next_mode(make):
    """The plan is small on disk and large on the GPU."""
    root = make(plan={"weights": 1 << 27})
    cuda = CudaSimulator(memory=1 << 28)
    with pytest.raises(GpuMemoryError, match=r"cannot be loaded.*out of memory; use --memory sequential"):
        simulator_bundle.pipeline(root, cuda)
    assert cuda.used == 0, "what had been loaded is freed"
    cuda = CudaSimulator(memory=1 << 26)
    with (
        simulator_bundle.pipeline(root, cuda, "sequential") as pipeline,
        pytest.raises(
            GpuMemoryError, match="use --memory streaming with engines built with --weight-streaming"
        ),
    ):
        pipeline.generate("a")


def test_activations_that_do_not_fit_name_the_next_mode(make):
    root = make(weights=4096)
    cuda = CudaSimulator(memory=4096 + 3 * 8192)
    graph = load(simulator_bundle.backend(root, cuda), root)
    with pytest.raises(
        GpuMemoryError,
        match=r"engine .* on Simulated GPU.* needs 0.00 GB for activations.*use --memory sequential",
    ):
        graph.run(inputs(tokens=64))


def test_buffers_that_do_not_fit_name_the_next_mode(make):
    root = make(weights=4096)
    cuda = CudaSimulator(memory=5 * 4096 + 3000)
    with (
        simulator_bundle.pipeline(root, cuda) as pipeline,
        pytest.raises(GpuMemoryError, match=r"Simulated GPU.*out of memory: .*use --memory sequential"),
    ):
        pipeline.generate("a", size=(128, 128))


def test_an_engine_that_disagrees_with_the_manifest(make):
    tensors = [{"name": "ids", "dtype": "float32", "dims": ["batch", 6]}]
    root = make(plan={"inputs": tensors})
    with pytest.raises(BundleError, match="and the manifest disagree about ids"):
        simulator_bundle.pipeline(root, CudaSimulator())


REAL = """
import sys
from pathlib import Path
import simulator_bundle, tensorrt_rtx
from simulator_cuda import CudaSimulator
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.backends.tensorrt import TensorRT
root = Path(sys.argv[1])
simulator_bundle.add_engines(root, version=tensorrt_rtx.__version__)
bundle = Bundle.open(root)
backend = TensorRT(bundle, "tensorrt-rtx", module=tensorrt_rtx, driver=CudaSimulator())
stage = bundle.stage("clip")
try:
    backend.load(root / stage.graph, "clip", stage)
except BackendError as fault:
    print(fault)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
def test_the_real_runtime_takes_our_logger_and_our_bytes(tiny, tmp_path):
    """No GPU, and no real plan: the real library must refuse it, through our logger, with its own words."""
    shutil.copytree(tiny, tmp_path / "bundle")
    child = subprocess.run(
        [sys.executable, "-c", REAL, tmp_path / "bundle"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    (line,) = child.stdout.splitlines()
    assert line.startswith("the engine clip-")
    assert "cannot be loaded on Simulated GPU" in line
    assert "TensorRT gave no reason" not in line
    assert re.search(r"Error Code|Error", line)
    assert child.stderr == "", "nothing goes past our logger"


def test_tensorrt_wants_a_gpu(tiny):
    with pytest.raises(BackendError, match="runs a bundle's engines on a GPU"):
        connect("tensorrt-rtx", "cpu", Bundle.open(tiny))
    with pytest.raises(BackendError, match="onnxruntime cannot stream weights; use --memory sequential"):
        connect("onnxruntime", "cpu", memory="streaming")


def test_profiles_without_dims_take_everything():
    assert engine.choose_profile([{}], {}) == 0
    assert engine.choose_profile([{"batch": (1, 1, 2)}], {"batch": 3}) is None
    assert engine.nearest([{"batch": (1, 1, 2)}, {"batch": (5, 6, 7)}], {"batch": 4}) == {"batch": 5}
