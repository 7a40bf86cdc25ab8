"""onnxruntime on a GPU against onnxruntime on the CPU."""

import numpy as np
import pytest
from at_gpu import FAULT, pixels

from flux_trt.runtime import Pipeline
from flux_trt.runtime.sampling import noise, schedule

ort = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
    ),
    pytest.mark.skipif(FAULT is not None, reason=f"needs a GPU: {FAULT}"),
]

GRID, SEEDS, STEPS = (2, 3), (1, 2), 3


def latents(pipeline):
    levels = schedule.sigmas(pipeline.bundle.manifest.schedule, STEPS, GRID[0] * GRID[1])
    start = noise.draw(pipeline.bundle.manifest.model.noise, SEEDS, GRID)
    conditions = pipeline.condition(pipeline.encode(["a red circle", ""]), levels, 3.5)
    return [
        (step.latents.on_host, step.latents.numpy().copy())
        for step in pipeline.denoise(start, levels, conditions, GRID)
    ]


def test_latents_stay_on_the_gpu_and_equal_those_of_the_cpu(tiny):
    with (
        Pipeline.load(tiny, device="cuda") as gpu,
        Pipeline.load(tiny, "onnxruntime", device="cpu") as cpu,
    ):
        assert gpu.backend.device == "cuda"
        for (on_host, found), (_, expected) in zip(latents(gpu), latents(cpu), strict=True):
            assert not on_host
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_pictures_equal_those_of_the_cpu(tiny):
    with (
        Pipeline.load(tiny, device="cuda") as gpu,
        Pipeline.load(tiny, "onnxruntime", device="cpu") as cpu,
    ):
        for found, expected in zip(
            gpu.generate(["a", "red"], batch=2), cpu.generate(["a", "red"]), strict=True
        ):
            assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_it_paints_as_on_the_cpu(tiny, memory, record):
    """Recorded from outside, as all GPU backends are; what cannot be captured would go on step by step."""
    prompts = ["a red circle", "blue square", "left"]
    wanted = {"count": 2, "batch": 2, "steps": 5, "size": (80, 48)}
    with (
        Pipeline.load(tiny, device="cuda", memory=memory, record=record) as there,
        Pipeline.load(tiny, "onnxruntime", device="cpu") as here,
    ):
        found, exact = pixels(there.generate(prompts, **wanted)), pixels(here.generate(prompts, **wanted))
        if record and memory == "resident":
            assert any(loop.recorded for loop in there.loops), (
                "CUDA's provider does not let itself be captured"
            )
    assert max(np.abs(a - b).max() for a, b in zip(found, exact, strict=True)) <= 1
