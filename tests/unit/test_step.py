"""What a step predicts: the clean picture that the loop is heading for."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import simulator_bundle
from painting_threads import ASKED, PROMPTS, REFERENCE, scene
from PIL import Image
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.sampling.trajectory import Trajectory

PROFILE = {**simulator_bundle.WIDE, "text": (1, 64, 512), "tokens": (1, 16, 64), "sequence": (1, 80, 1024)}


@pytest.fixture(scope="module")
def nano(bundle):
    with Pipeline.load(bundle("flux-nano"), "onnxruntime", "cpu") as pipeline:
        yield pipeline


def beginning(pipeline, steps=6, grid=(2, 3), seed=3):
    contract = pipeline.bundle.manifest
    levels = schedule.sigmas(contract.schedule, steps, grid[0] * grid[1])
    conditions = pipeline.condition(pipeline.encode(PROMPTS[:1]), levels, 1.0)
    return noise.draw(contract.model.noise, (seed,), grid), levels, conditions, grid


def test_it_is_the_velocity_s_own(nano):
    """x0 = x - sigma v, with the velocity that the denoiser gives for the latents before the step."""
    start, levels, conditions, grid = beginning(nano)
    with nano.loops.lent(loop_shape(nano, start, levels, conditions, grid)) as loop:
        loop.begin(Trajectory(levels, start, (grid,)), conditions)
        before, exact = start, []
        (own,), (taken,) = loop._own, loop._conditions
        for index, (_, now) in enumerate(loop.steps()):
            inputs = {**own, **{name: each.at(index) for name, each in taken.items()}}
            given = {**inputs, "latents": before, "dt": loop._dt[index]}
            velocity = nano._graphs["denoiser"].run(given)["velocity"].numpy()
            exact.append(before - levels[index] * velocity)
            before = now.numpy().copy()
    found = [step.predicted for step in nano.denoise(start, levels, conditions, grid)]
    for mine, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def loop_shape(pipeline, start, levels, conditions, grid):
    from flux_trt.runtime.sampling.loop import LoopShape

    return LoopShape.of(Trajectory(levels, start, (grid,)), pipeline.flow.text(conditions))


def test_it_must_be_taken_before_the_next_step(nano):
    steps = nano.denoise(*beginning(nano))
    first, second = next(steps), next(steps)
    taken = second.predicted
    next(steps)
    with pytest.raises(
        PaintError, match="step 1 is over, the loop is at 3; take `predicted` before the next"
    ):
        _ = first.predicted
    assert second.predicted is taken


EVERY = {**ASKED, "reference": REFERENCE}


def steps_of(pipeline, asked, each):
    if "target" in asked:
        return pipeline.edit(on_step=each, **asked)
    return pipeline.generate(PROMPTS, on_step=each, **asked)


@pytest.mark.parametrize("task", EVERY)
def test_it_nears_the_picture_in_every_task(nano, task):
    """The last prediction is the picture, and each is nearer to it than the one before, but for a little."""
    asked = {**EVERY[task], "steps": 8}
    if "n_max" in asked:
        asked |= {"n_max": 7, "n_min": 3}
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def each(step):
        latents = step.latents.numpy()[: len(step.pictures), : step.predicted.shape[1]]
        seen.setdefault(step.pictures.start, []).append((step.predicted, latents.copy()))
        assert step.predicted.shape == (
            len(step.pictures),
            step.grid[0] * step.grid[1],
            nano.bundle.manifest.model.channels,
        )

    images = steps_of(nano, asked, each)
    for first, steps in seen.items():
        np.testing.assert_array_equal(*steps[-1])
        last = steps[-1][1]
        apart = [float(np.sqrt(np.mean((predicted - last) ** 2))) for predicted, _ in steps]
        noisy = [float(np.sqrt(np.mean((latents - last) ** 2))) for _, latents in steps]
        assert all(after < before * 1.25 for before, after in pairwise(apart[1:])), apart
        if (
            "target" not in asked
        ):  # whose own latents are a picture at all times; strong guidance overshoots first
            assert all(mine < theirs for mine, theirs in zip(apart[3:-1], noisy[3:-1], strict=True))
        grid = (asked["size"][1] // 16, asked["size"][0] // 16) if "size" in asked else (3, 2)
        preview = np.asarray(nano.decode(steps[-1][0], grid)[0])
        if not asked.get("paste"):
            np.testing.assert_array_equal(preview, np.asarray(images[first]))


def test_what_a_mask_leaves_is_predicted_as_it_is(nano):
    """Where nothing is painted the prediction is the picture's own latents from the first step on."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    right = np.arange(16).reshape(4, 4)[:, 2:].reshape(-1)  # tokens that stay
    kept: list[np.ndarray] = []
    asked = {"image": scene((64, 64)), "mask": mask, "strength": 1.0, "steps": 6}
    nano.generate(PROMPTS[:1], on_step=lambda step: kept.append(step.predicted[0]), **asked)
    for each in kept:
        np.testing.assert_allclose(each[right], kept[-1][right], atol=1e-4)
    assert np.abs(kept[0] - kept[-1]).max() > 0.1


@pytest.mark.parametrize("task", EVERY)
def test_a_gpu_predicts_the_same_and_tells_each_step(bundle, nano, tmp_path, task):
    shutil.copytree(bundle("flux-nano"), tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", profiles=[PROFILE])
    cuda, seen = CudaSimulator(), {"cpu": [], "gpu": []}
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda) as gpu:
        for name, pipeline in (("cpu", nano), ("gpu", gpu)):
            steps_of(pipeline, EVERY[task], lambda step, name=name: seen[name].append(step.predicted))
    np.testing.assert_array_equal(seen["gpu"], seen["cpu"])
    assert cuda.calls["cudaGraphLaunch"] == 0
    assert not cuda.faults


def test_a_gpu_tells_each_step_only_when_asked(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle")
    told: list[tuple[str, int, int]] = []
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda) as pipeline:
        pictures = []
        for each_step, expected in ((False, [4]), (True, [1, 2, 3, 4]), (False, [4]), (False, [4])):
            told.clear()
            asked = {"steps": 4, "each_step": each_step, "progress": lambda *seen: told.append(seen)}
            pictures += pipeline.generate("a red", **asked)
            assert [done for what, done, _ in told if what == "denoise"] == expected
    assert len({image.tobytes() for image in pictures}) == 1
    assert cuda.calls["cudaGraphLaunch"] == 2, "the steps that were told one by one took no recording away"
