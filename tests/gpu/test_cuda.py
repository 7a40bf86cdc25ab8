"""onnxruntime on a GPU against onnxruntime on the CPU."""

import numpy as np
import pytest

from flux_trt.runtime import Pipeline
from flux_trt.runtime.sampling import noise, schedule

ort = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
    ),
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
